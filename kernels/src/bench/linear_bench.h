// linear_bench.h: the rate of one matrix product, on weights that no cache holds.
#pragma once

#include <cstdint>

#include "kernel_table.h"

namespace qh {

struct LinearBench {
  const KernelTable* table;
  FormatId format;
  int64_t rows;
  int64_t cols;
  int64_t nbytes;  // of one matrix
  int64_t n_tokens;
  int threads;  // rows are split between them, as the decoder does
  double seconds;
  int64_t working_set_bytes;  // copies of the matrix are used in turn until they fill this
};

struct LinearBenchResult {
  int64_t calls = 0;  // whole products, all threads together
  double seconds = 0;
};

// May throw std::bad_alloc.
LinearBenchResult run(const LinearBench& bench);

}  // namespace qh
