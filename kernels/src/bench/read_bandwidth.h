// read_bandwidth.h: how fast threads can read memory.
#pragma once

#include <cstdint>

#include "bench/bench_memory.h"

namespace qh {

// Memory to read, kept between measurements.
class ReadBench {
 public:
  // May throw std::bad_alloc.
  explicit ReadBench(int64_t bytes);

  // Bytes per second summed over `threads` threads, each reading its own part of the first `bytes`
  // of the memory front to back, again and again, for about `seconds`: the better of two ways to
  // read. At least a cache line for each thread, and no more than there is.
  double measure(int64_t bytes, int threads, double seconds) const;

  int64_t bytes() const noexcept { return bytes_; }

 private:
  int64_t bytes_;
  BenchMemory memory_;
};

}  // namespace qh
