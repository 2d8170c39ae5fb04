// attention.h: the KV cache and the attention over it, in plain loops.
//
// What is stored is exact and the same on every instruction set; attention agrees with the vector
// versions within a bound (sums here are float64, and int8 keys and values are multiplied as they
// are, with float32 queries and weights).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/half.h"
#include "core/kv_layout.h"
#include "kernel_table.h"
#include "scalar/ops.h"

namespace qh {
namespace {

// Codes of a key or value, one scale; kAt says where they go.
template <int64_t (*kAt)(KvType, int64_t, int64_t, int64_t)>
inline float scalar_store_codes(const float* x, int64_t n, int64_t position,
                                uint8_t* codes) noexcept {
  const uint32_t bits = largest_magnitude_bits(x, n);
  const bool finite = bits < 0x7f800000u;
  const float scale = float_from_bits(bits) / 127.0f;
  for (int64_t k = 0; k < n; ++k) {
    float code = finite && scale > 0.0f ? std::nearbyintf(x[k] / scale) : 0.0f;
    if (code > 127.0f) code = 127.0f;
    if (code < -127.0f) code = -127.0f;
    codes[kAt(KvType::int8, n, position, k)] = static_cast<uint8_t>(static_cast<int8_t>(code));
  }
  return finite ? scale : float_from_bits(0x7fc00000u);
}

template <int64_t (*kAt)(KvType, int64_t, int64_t, int64_t)>
inline void scalar_store_floats(KvType type, const float* x, int64_t n, int64_t position,
                                uint8_t* out) noexcept {
  for (int64_t k = 0; k < n; ++k) {
    const int64_t at = kAt(type, n, position, k);
    if (type == KvType::f16) {
      reinterpret_cast<uint16_t*>(out)[at] = half_from_float(x[k]);
    } else {
      reinterpret_cast<float*>(out)[at] = x[k];
    }
  }
}

inline void scalar_store_kv(const KvHead& c, int64_t position, const float* key,
                            const float* value) noexcept {
  const KvBlock block = kv_block(c, position);
  const int64_t p = position % kKvBlock;
  if (c.type == KvType::int8) {
    block.key_scales[p] = scalar_store_codes<key_at>(key, c.head_dim, p, block.keys);
    block.value_scales[p] = scalar_store_codes<value_at>(value, c.head_dim, p, block.values);
  } else {
    scalar_store_floats<key_at>(c.type, key, c.head_dim, p, block.keys);
    scalar_store_floats<value_at>(c.type, value, c.head_dim, p, block.values);
  }
}

inline double kv_element(KvType type, const uint8_t* data, int64_t at, const float* scales,
                         int64_t position) noexcept {
  if (type == KvType::f32) {
    return static_cast<double>(reinterpret_cast<const float*>(data)[at]);
  }
  if (type == KvType::f16) {
    return static_cast<double>(float_from_half(reinterpret_cast<const uint16_t*>(data)[at]));
  }
  return static_cast<double>(static_cast<int8_t>(data[at])) * static_cast<double>(scales[position]);
}

inline void scalar_attention_head(const AttentionArgs& a, int64_t head) noexcept {
  const KvHead& c = a.cache;
  const int64_t dim = c.head_dim;
  const int64_t count = a.last - a.first + 1;
  const float* q = a.q + head * dim;
  float weights[kKvSegment];
  float largest = 0.0f;
  for (int64_t p = 0; p < count; ++p) {
    const int64_t position = a.first + p;
    const KvBlock block = kv_block(c, position);
    double sum = 0.0;
    for (int64_t k = 0; k < dim; ++k) {
      const int64_t at = key_at(c.type, dim, position % kKvBlock, k);
      sum += static_cast<double>(q[k]) *
             kv_element(c.type, block.keys, at, block.key_scales, position % kKvBlock);
    }
    weights[p] = static_cast<float>(sum) * a.scale;
    if (p == 0 || weights[p] > largest) largest = weights[p];
  }
  double total = 0.0;
  for (int64_t p = 0; p < count; ++p) {
    weights[p] = std::exp(weights[p] - largest);
    total += static_cast<double>(weights[p]);
  }
  for (int64_t k = 0; k < dim; ++k) {
    double sum = 0.0;
    for (int64_t p = 0; p < count; ++p) {
      const int64_t position = a.first + p;
      const KvBlock block = kv_block(c, position);
      const int64_t at = value_at(c.type, dim, position % kKvBlock, k);
      sum += static_cast<double>(weights[p]) *
             kv_element(c.type, block.values, at, block.value_scales, position % kKvBlock);
    }
    a.part.out[head * dim + k] = static_cast<float>(sum);
  }
  a.part.state[2 * head] = largest;
  a.part.state[2 * head + 1] = static_cast<float>(total);
}

inline void scalar_attention(const AttentionArgs& args) noexcept {
  for (int64_t head = 0; head < args.n_heads; ++head) scalar_attention_head(args, head);
}

inline void scalar_attention_merge(const AttentionPart& part, const AttentionPart& later,
                                   int64_t n_heads, int64_t head_dim) noexcept {
  for (int64_t head = 0; head < n_heads; ++head) {
    float* state = part.state + 2 * head;
    const float* other = later.state + 2 * head;
    const float largest = other[0] > state[0] ? other[0] : state[0];
    const float factor = std::exp(state[0] - largest);
    const float other_factor = std::exp(other[0] - largest);
    for (int64_t i = head * head_dim; i < (head + 1) * head_dim; ++i) {
      part.out[i] = part.out[i] * factor + later.out[i] * other_factor;
    }
    state[0] = largest;
    state[1] = state[1] * factor + other[1] * other_factor;
  }
}

inline void scalar_attention_finish(const AttentionPart& part, int64_t n_heads,
                                    int64_t head_dim) noexcept {
  for (int64_t head = 0; head < n_heads; ++head) {
    const float inverse = 1.0f / part.state[2 * head + 1];
    for (int64_t i = head * head_dim; i < (head + 1) * head_dim; ++i) part.out[i] *= inverse;
  }
}

}  // namespace
}  // namespace qh
