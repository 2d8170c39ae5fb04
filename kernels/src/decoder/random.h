// random.h: the generator behind sampling; the same numbers from the same seed on every platform.
//
// xoshiro256** seeded by SplitMix64. Source: Blackman and Vigna, "Scrambled Linear Pseudorandom
// Number Generators", ACM TOMS 47(4), 2021, figure 1; Steele, Lea and Flood, "Fast Splittable
// Pseudorandom Number Generators", OOPSLA 2014, for the seeding.
#pragma once

#include <bit>
#include <cstdint>

namespace qh {

class Random {
 public:
  explicit Random(uint64_t seed) noexcept {
    for (uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15u;
      uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      word = z ^ (z >> 31);
    }
  }

  uint64_t next() noexcept {
    const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  // Uniform in [0, 1), all 53 bits of a double.
  double uniform() noexcept { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

 private:
  uint64_t state_[4];
};

}  // namespace qh
