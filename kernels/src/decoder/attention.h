// attention.h: the attention of a batch of tokens over one layer of the KV cache, shared by
// threads.
//
// A prefill is split by key head and tokens; one token by key head and segments of positions, so
// that every thread reads an equal stretch of a long cache front to back. Segments are fixed
// (kKvSegment) and merged in order: neither the batch size nor the number of threads changes
// a bit.
#pragma once

#include <cstdint>

#include "decoder/arena.h"
#include "decoder/kv_cache.h"
#include "decoder/model_view.h"
#include "decoder/thread_pool.h"
#include "kernel_table.h"

namespace qh {

// Scratch of the attention, laid out by Scratch.
struct AttentionScratch {
  int8_t* codes;  // (threads, code_stride)
  // Parts of attention: (max(threads, num_key_value_heads * segments), part_stride).
  float* parts;
  // Largest score and sum of weights, beside out: (batch, num_attention_heads, 2).
  float* states;
  int64_t code_stride;
  int64_t part_stride;
  int64_t segments;  // of the whole context

  void lay_out(const ModelShape& shape, int64_t context_length, int threads, int64_t batch,
               Arena& arena) noexcept {
    const int64_t group = shape.num_attention_heads / shape.num_key_value_heads;
    segments = (context_length + kKvSegment - 1) / kKvSegment;
    code_stride = round_up(attention_codes(shape.head_dim), kAlignment);
    part_stride = round_up(group * (shape.head_dim + 2), kAlignment / 4);
    const int64_t units = shape.num_key_value_heads * segments;
    codes = arena.take<int8_t>(threads * code_stride);
    parts = arena.take<float>((units > threads ? units : threads) * part_stride);
    states = arena.take<float>(2 * batch * shape.num_attention_heads);
  }
};

struct AttentionStep {
  const KernelTable& table;
  const ModelShape& shape;
  const KvCache& cache;
  const AttentionScratch& scratch;
  int64_t layer;
  int64_t begin;  // position of the first token
  int64_t n_tokens;
  int64_t sliding_window;  // 0: all positions
  const float* q;          // (n_tokens, q_stride), rope applied
  float* out;              // (n_tokens, q_stride)
  int64_t q_stride;
};

void attend(ThreadPool& pool, const AttentionStep& step) noexcept;

}  // namespace qh
