// scratch.h: every buffer a forward pass writes, laid out once for batches of up to `batch` tokens.
#pragma once

#include <algorithm>
#include <cstdint>

#include "decoder/arena.h"
#include "decoder/attention.h"
#include "decoder/best_rows.h"
#include "decoder/model_view.h"

namespace qh {

// Rows of all activations are `stride` apart: the number of values rounded up so that every row
// starts aligned and the padding a kernel may read belongs to the row.
struct Scratch {
  int64_t hidden_stride;
  int64_t q_stride;
  int64_t kv_stride;
  int64_t intermediate_stride;
  int64_t input_stride;  // the widest of them: rows of `input` and of the codes

  float* hidden;        // (batch, hidden_stride): the residual stream
  float* input;         // (batch, input_stride): what the next linear layers multiply
  int8_t* token_codes;  // (batch, input_stride): one scale per token
  float* token_scales;  // (batch)
  int32_t* token_sums;  // (batch)
  int8_t* group_codes;  // (batch, input_stride): one scale per kActivationGroup inputs
  float* group_scales;  // (batch, input_stride / kActivationGroup)
  int32_t* group_sums;  // (batch, 2 * input_stride / kActivationGroup)
  float* q;             // (batch, q_stride)
  float* k;             // (batch, kv_stride)
  float* v;             // (batch, kv_stride)
  float* attention;     // (batch, q_stride)
  float* branch;        // (batch, hidden_stride): output of o and of down, before it is added
  float* gate;          // (batch, intermediate_stride)
  float* up;            // (batch, intermediate_stride)
  float* product;       // (batch, intermediate_stride): act(gate) * up
  float* parts;         // (part_capacity): parts of products by column blocks, one token
  int64_t part_capacity;
  float* logits;      // (vocab_size)
  float* block_best;  // (2 * best_blocks): the largest logit of each block; see best_rows.h
  int32_t* best;      // (best_capacity): candidates for the best rows
  AttentionScratch attend;
  float* cos;  // (context_length, head_dim / 2), filled as positions are reached
  float* sin;  // (context_length, head_dim / 2)

  // Column blocks of a product, and floats of the parts of all of them; see codebook_layout.h.
  static int64_t part_blocks(int64_t cols) noexcept { return (cols + 1023) / 1024; }
  static int64_t part_floats(int64_t rows, int64_t cols) noexcept {
    return part_blocks(cols) * round_up(rows, 256);
  }

  // Sets every pointer into the block at base (nullptr: none) and returns the bytes it needs.
  int64_t lay_out(const ModelShape& shape, int64_t context_length, int threads, int64_t batch,
                  uint8_t* base) noexcept {
    Arena arena(base);
    hidden_stride = round_up(shape.hidden_size, kActivationPad);
    q_stride = round_up(shape.q_size(), kActivationPad);
    kv_stride = round_up(shape.kv_size(), kActivationPad);
    intermediate_stride = round_up(shape.intermediate_size, kActivationPad);
    input_stride = std::max({hidden_stride, q_stride, intermediate_stride});
    const int64_t half_dim = shape.head_dim / 2;
    const int64_t groups = input_stride / kActivationGroup;

    hidden = arena.take<float>(batch * hidden_stride);
    input = arena.take<float>(batch * input_stride);
    token_codes = arena.take<int8_t>(batch * input_stride);
    token_scales = arena.take<float>(batch);
    token_sums = arena.take<int32_t>(batch);
    group_codes = arena.take<int8_t>(batch * input_stride);
    group_scales = arena.take<float>(batch * groups);
    group_sums = arena.take<int32_t>(2 * batch * groups);
    q = arena.take<float>(batch * q_stride);
    k = arena.take<float>(batch * kv_stride);
    v = arena.take<float>(batch * kv_stride);
    attention = arena.take<float>(batch * q_stride);
    branch = arena.take<float>(batch * hidden_stride);
    gate = arena.take<float>(batch * intermediate_stride);
    up = arena.take<float>(batch * intermediate_stride);
    product = arena.take<float>(batch * intermediate_stride);
    part_capacity = std::max({part_floats(shape.q_size(), shape.hidden_size) +
                                  2 * part_floats(shape.kv_size(), shape.hidden_size),
                              part_floats(shape.hidden_size, shape.q_size()),
                              2 * part_floats(shape.intermediate_size, shape.hidden_size),
                              part_floats(shape.hidden_size, shape.intermediate_size)});
    parts = arena.take<float>(part_capacity);
    logits = arena.take<float>(shape.vocab_size);
    block_best = arena.take<float>(2 * best_blocks(shape.vocab_size));
    best = arena.take<int32_t>(best_capacity(shape.vocab_size));
    attend.lay_out(shape, context_length, threads, batch, arena);
    cos = arena.take<float>(context_length * half_dim);
    sin = arena.take<float>(context_length * half_dim);
    return arena.used();
  }
};

}  // namespace qh
