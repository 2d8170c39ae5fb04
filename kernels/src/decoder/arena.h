// arena.h: one aligned block per purpose, cut into aligned pieces when the decoder is made.
//
// The same layout function runs twice: over no memory, which yields the size that the plan counts,
// and over the block of exactly that size. The two cannot drift apart.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>

#include "formats.h"

namespace qh {

// Cache line and widest vector register.
inline constexpr int64_t kAlignment = 64;

enum class Pages { small, large };

// Owns `bytes` bytes, aligned, not initialised: pages that are never used never become resident.
// Pages are large where that was wished, the block holds several and the system grants it: for what
// is read front to back, small ones cost a third of the bandwidth (bench/bench_memory.h).
class AlignedBlock {
 public:
  explicit AlignedBlock(int64_t bytes, Pages pages = Pages::small)
      : alignment_{pages == Pages::large && bytes >= 4 * kLargePage ? kLargePage : kAlignment},
        data_(static_cast<uint8_t*>(::operator new(static_cast<size_t>(bytes > 0 ? bytes : 1),
                                                   std::align_val_t(alignment_)))),
        bytes_(bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment_ == kLargePage) madvise(data_, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  }
  ~AlignedBlock() { ::operator delete(data_, std::align_val_t(alignment_)); }
  AlignedBlock(const AlignedBlock&) = delete;
  AlignedBlock& operator=(const AlignedBlock&) = delete;

  uint8_t* data() const noexcept { return data_; }
  int64_t bytes() const noexcept { return bytes_; }

 private:
  static constexpr int64_t kLargePage = int64_t{1} << 21;

  int64_t alignment_;
  uint8_t* data_;
  int64_t bytes_;
};

// Hands out consecutive aligned pieces of a block; over nullptr it only adds up their sizes.
class Arena {
 public:
  explicit Arena(uint8_t* base) noexcept : base_(base) {}

  template <class T>
  T* take(int64_t n) noexcept {
    static_assert(std::is_trivial_v<T>);
    uint8_t* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += round_up(n * static_cast<int64_t>(sizeof(T)), kAlignment);
    return reinterpret_cast<T*>(piece);
  }

  int64_t used() const noexcept { return used_; }

 private:
  uint8_t* base_;
  int64_t used_ = 0;
};

}  // namespace qh
