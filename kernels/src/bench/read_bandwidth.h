// read_bandwidth.h: how fast threads can read memory that no cache holds.
#pragma once

#include <cstdint>

namespace qh {

// Bytes per second summed over `threads` threads, each reading its own part of `bytes` of memory
// front to back, again and again, for about `seconds`: the better of two ways to read. May throw
// std::bad_alloc.
double measure_read_bandwidth(int64_t bytes, int threads, double seconds);

}  // namespace qh
