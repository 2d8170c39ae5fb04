// attention_bench.h: the rate of attention of one token over a KV cache that no other cache holds.
#pragma once

#include <cstdint>

#include "kernel_table.h"

namespace qh {

struct AttentionBench {
  const KernelTable* table;
  KvType type;
  int64_t n_heads, n_kv_heads, head_dim;
  int64_t positions;  // attended to, of as many in the cache
  int threads;        // a thread pool of the decoder's
  double seconds;
  int64_t working_set_bytes;  // layers are used in turn; as many as fill this
};

struct AttentionBenchResult {
  int64_t calls = 0;
  double seconds = 0;
  int64_t bytes_per_call = 0;  // keys, values and scales that one call reads
};

// May throw std::bad_alloc or std::system_error.
AttentionBenchResult run(const AttentionBench& bench);

}  // namespace qh
