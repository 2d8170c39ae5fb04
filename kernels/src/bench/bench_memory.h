// bench_memory.h: a block of memory in the largest pages that the system gives on request. In small
// ones a measurement of memory is partly one of page tables: 20 instead of 33 GB/s for one thread
// (2 cores of an EPYC, November 2026).
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace qh {

class BenchMemory {
 public:
  // Zeros. Throws std::bad_alloc.
  explicit BenchMemory(int64_t bytes)
      : block_(static_cast<uint8_t*>(
            ::operator new(static_cast<size_t>(bytes), std::align_val_t{kPageBytes}))) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // A wish: where it is not granted, the pages are small.
    madvise(block_.get(), static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
    std::memset(block_.get(), 0, static_cast<size_t>(bytes));
  }

  uint8_t* data() const noexcept { return block_.get(); }

 private:
  static constexpr size_t kPageBytes = size_t{1} << 21;
  struct Free {
    void operator()(uint8_t* block) const noexcept {
      ::operator delete(block, std::align_val_t{kPageBytes});
    }
  };
  std::unique_ptr<uint8_t, Free> block_;
};

}  // namespace qh
