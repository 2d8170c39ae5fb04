// attention.h: softmax(q . K * scale) . V of one token, head by head, over float16 or float32 keys
// and values; two passes over the scores, everything summed in float32.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "ops/elementwise.h"

namespace qh {
namespace {

template <KvType kType>
struct CacheElement {
  using Type = uint16_t;
};
template <>
struct CacheElement<KvType::f32> {
  using Type = float;
};

template <typename V, KvType kType>
struct Attention {
  using F32 = typename V::F32;
  using Element = typename CacheElement<kType>::Type;

  static QH_ALWAYS_INLINE F32 load(const Element* p, int lanes) noexcept {
    if constexpr (kType == KvType::f32) {
      return load_lanes<V>(p, lanes);
    } else {
      return lanes == 16 ? V::load_half(p) : V::load_half_partial(p, lanes);
    }
  }

  // Scores of N positions against one query.
  template <int N>
  static QH_ALWAYS_INLINE void scores(const float* q, const Element* keys, int64_t row, int64_t dim,
                                      float scale, float* out) noexcept {
    F32 sums[N];
#pragma GCC unroll 8
    for (int p = 0; p < N; ++p) sums[p] = V::zero();
    for_lanes(dim, [&](int64_t k, int lanes) {
      const F32 query = load_lanes<V>(q + k, lanes);
#pragma GCC unroll 8
      for (int p = 0; p < N; ++p) sums[p] = V::fma(query, load(keys + p * row + k, lanes), sums[p]);
    });
#pragma GCC unroll 8
    for (int p = 0; p < N; ++p) out[p] = V::reduce_add(sums[p]) * scale;
  }

  // In place: scores to exp(score - largest); returns their sum.
  static float exponentiate(float* scores, int64_t count) noexcept {
    F32 largest = V::set(scores[0]);
    int64_t p = 0;
    for (; p + 16 <= count; p += 16) largest = V::max(largest, V::load(scores + p));
    float top = V::reduce_max(largest);
    for (; p < count; ++p) top = scores[p] > top ? scores[p] : top;
    const F32 shift = V::set(top);
    F32 total = V::zero();
    float tail = 0.0f;
    for (p = 0; p + 16 <= count; p += 16) {
      const F32 e = exponential<V>(V::sub(V::load(scores + p), shift));
      V::store(scores + p, e);
      total = V::add(total, e);
    }
    if (p < count) {
      const int lanes = static_cast<int>(count - p);
      V::store_partial(scores + p,
                       exponential<V>(V::sub(V::load_partial(scores + p, lanes), shift)), lanes);
      for (; p < count; ++p) tail += scores[p];
    }
    return V::reduce_add(total) + tail;
  }

  // out[0..16 N) = sum over positions of weight * value, times inverse.
  template <int N>
  static QH_ALWAYS_INLINE void mix(const float* weights, const Element* values, int64_t row,
                                   int64_t count, float inverse, int lanes, float* out) noexcept {
    F32 sums[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sums[i] = V::zero();
    for (int64_t p = 0; p < count; ++p) {
      const F32 weight = V::set(weights[p]);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        sums[i] = V::fma(weight, load(values + p * row + 16 * i, lanes), sums[i]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      store_lanes<V>(out + 16 * i, V::mul(sums[i], V::set(inverse)), lanes);
    }
  }

  static void run(const AttentionArgs& a) noexcept {
    const int64_t dim = a.head_dim;
    const int64_t row = a.n_kv_heads * dim;
    const int64_t count = a.last - a.first + 1;
    const int64_t heads_per_kv = a.n_heads / a.n_kv_heads;
    for (int64_t head = a.head_begin; head < a.head_end; ++head) {
      const int64_t start = a.first * row + head / heads_per_kv * dim;
      const Element* keys = static_cast<const Element*>(a.keys) + start;
      const Element* values = static_cast<const Element*>(a.values) + start;
      const float* q = a.q + head * dim;
      int64_t p = 0;
      for (; p + 4 <= count; p += 4) {
        scores<4>(q, keys + p * row, row, dim, a.scale, a.scores + p);
      }
      for (; p < count; ++p) scores<1>(q, keys + p * row, row, dim, a.scale, a.scores + p);
      const float inverse = 1.0f / exponentiate(a.scores, count);
      float* out = a.out + head * dim;
      int64_t k = 0;
      for (; k + 64 <= dim; k += 64) {
        mix<4>(a.scores, values + k, row, count, inverse, 16, out + k);
      }
      for (; k + 16 <= dim; k += 16) {
        mix<1>(a.scores, values + k, row, count, inverse, 16, out + k);
      }
      if (k < dim) {
        mix<1>(a.scores, values + k, row, count, inverse, static_cast<int>(dim - k), out + k);
      }
    }
  }
};

template <typename V>
void attention(const AttentionArgs& args) noexcept {
  if (args.kv_type == KvType::f16) {
    Attention<V, KvType::f16>::run(args);
  } else {
    Attention<V, KvType::f32>::run(args);
  }
}

}  // namespace
}  // namespace qh
