// check.h: the whole test framework of the native tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

namespace qh_test {

inline constexpr int kSkipped = 77;  // CTest's SKIP_RETURN_CODE

// Counts failures and prints the first few of each case with everything needed to repeat it.
class Report {
 public:
  bool check(bool holds, const char* what, const char* where, int64_t index, double expected,
             double found, double bound) {
    ++checks_;
    if (holds) return true;
    if (++failures_ <= 20) {
      std::printf("FAIL %s [%s] index %lld: expected %.9g, found %.9g, bound %.3g\n", what, where,
                  static_cast<long long>(index), expected, found, bound);
    }
    return false;
  }

  // Equal bits, or both NaN.
  void same_bits(float expected, float found, const char* what, const char* where, int64_t index) {
    uint32_t a;
    uint32_t b;
    std::memcpy(&a, &expected, 4);
    std::memcpy(&b, &found, 4);
    const bool both_nan = std::isnan(expected) && std::isnan(found);
    check(a == b || both_nan, what, where, index, static_cast<double>(expected),
          static_cast<double>(found), 0);
  }

  void same(int64_t expected, int64_t found, const char* what, const char* where, int64_t index) {
    check(expected == found, what, where, index, static_cast<double>(expected),
          static_cast<double>(found), 0);
  }

  void close(double expected, double found, double bound, const char* what, const char* where,
             int64_t index) {
    const bool holds = std::isfinite(expected)
                           ? std::fabs(expected - found) <= bound
                           : (std::isnan(expected) ? std::isnan(found) : expected == found);
    check(holds, what, where, index, expected, found, bound);
  }

  int finish(const char* name) const {
    std::printf("%s: %lld checks, %lld failures\n", name, static_cast<long long>(checks_),
                static_cast<long long>(failures_));
    return checks_ > 0 && failures_ == 0 ? 0 : 1;
  }

 private:
  int64_t checks_ = 0;
  int64_t failures_ = 0;
};

// Exactly n elements on the heap, so that a sanitizer sees the first byte read past them.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t n) : data_(new T[static_cast<size_t>(n)]()), size_(n) {}
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[static_cast<size_t>(i)]; }
  const T& operator[](int64_t i) const { return data_[static_cast<size_t>(i)]; }

 private:
  std::unique_ptr<T[]> data_;
  int64_t size_;
};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  float normal(float scale) { return scale * std::normal_distribution<float>()(engine_); }

 private:
  std::mt19937 engine_;
};

}  // namespace qh_test
