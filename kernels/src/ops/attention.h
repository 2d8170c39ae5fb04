// attention.h: softmax(q . K * scale) . V of one token over float16 or float32 keys and values.
//
// Positions are taken in chunks with a running maximum and a running sum, so one pass over the
// cache is enough and scores stay on the stack; heads that share a key head are done together, so
// that each key and value is loaded and converted once. What is computed for a head does not depend
// on which heads are done with it. Everything is summed in float32. Source: Milakov and Gimelshein
// 2018, Online normalizer calculation for softmax, algorithm 3.
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
  static constexpr int kChunk = 32;                   // positions; a multiple of 16
  static constexpr int kSlabs = V::kExactTokens / 2;  // 16 values each, mixed at a time

  static QH_ALWAYS_INLINE F32 load(const Element* p, int lanes) noexcept {
    if constexpr (kType == KvType::f32) {
      return load_lanes<V>(p, lanes);
    } else {
      return lanes == 16 ? V::load_half(p) : V::load_half_partial(p, lanes);
    }
  }

  // Asks for what is read next: the values of this position, and its key in the next chunk. The
  // hardware prefetcher does not see ahead of kernels that compute. Past the end of the cache this
  // is a harmless hint; integer arithmetic keeps it defined.
  static QH_ALWAYS_INLINE void prefetch(const Element* key, const Element* value, int64_t row,
                                        int64_t dim) noexcept {
    const uintptr_t next =
        reinterpret_cast<uintptr_t>(key) + static_cast<uintptr_t>(kChunk * row) * sizeof(Element);
    const uintptr_t now = reinterpret_cast<uintptr_t>(value);
    for (uintptr_t at = 0; at < static_cast<uintptr_t>(dim) * sizeof(Element); at += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(next + at), 0, 2);
      __builtin_prefetch(reinterpret_cast<const void*>(now + at), 0, 2);
    }
  }

  // weights[h][p] = q[h] . key p * scale for n positions.
  template <int H>
  static QH_ALWAYS_INLINE void scores(const float* q, const Element* keys, const Element* values,
                                      int64_t row, int64_t dim, float scale, int n,
                                      float (&weights)[H][kChunk]) noexcept {
    for (int p = 0; p < n; ++p) {
      prefetch(keys + p * row, values + p * row, row, dim);
      F32 sums[H];
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) sums[h] = V::zero();
      for_lanes(dim, [&](int64_t k, int lanes) {
        const F32 key = load(keys + p * row + k, lanes);
#pragma GCC unroll 8
        for (int h = 0; h < H; ++h) {
          sums[h] = V::fma(load_lanes<V>(q + h * dim + k, lanes), key, sums[h]);
        }
      });
      if constexpr (H == 4) {
        float totals[4];
        V::reduce_add_each(sums, totals);
#pragma GCC unroll 8
        for (int h = 0; h < H; ++h) weights[h][p] = totals[h] * scale;
      } else {
#pragma GCC unroll 8
        for (int h = 0; h < H; ++h) weights[h][p] = V::reduce_add(sums[h]) * scale;
      }
    }
  }

  // Scores of one head to exp(score - largest), with the running maximum and sum brought up to
  // date. Returns what earlier results must be multiplied by.
  static QH_ALWAYS_INLINE float exponentiate(float* weights, int n, float* largest,
                                             float* total) noexcept {
    // Lanes past n become copies of the first score: no effect on the maximum, weight 0 below.
    for (int p = n; p < kChunk; ++p) weights[p] = weights[0];
    F32 top = V::set(*largest);
#pragma GCC unroll 4
    for (int p = 0; p < kChunk; p += 16) top = V::max(top, V::load(weights + p));
    const float now = V::reduce_max(top);
    const F32 shift = V::set(now);
#pragma GCC unroll 4
    for (int p = 0; p < kChunk; p += 16) {
      V::store(weights + p, exponential<V>(V::sub(V::load(weights + p), shift)));
    }
    for (int p = n; p < kChunk; ++p) weights[p] = 0.0f;
    F32 sum = V::load(weights);
#pragma GCC unroll 4
    for (int p = 16; p < kChunk; p += 16) sum = V::add(sum, V::load(weights + p));
    float lanes[16];
    V::store(lanes, exponential<V>(V::set(*largest - now)));
    // A maximum that did not move corrects nothing, exactly.
    const float correction = now == *largest ? 1.0f : lanes[0];
    *total = *total * correction + V::reduce_add(sum);
    *largest = now;
    return correction;
  }

  // out[h] = out[h] * corrections[h] + sum over n positions of weight * value, for 16 S values.
  template <int H, int S>
  static QH_ALWAYS_INLINE void mix(const float (&weights)[H][kChunk], const float (&corrections)[H],
                                   const Element* values, int64_t row, int64_t dim, int n,
                                   int lanes, float* out) noexcept {
    F32 sums[H][S];
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        const F32 earlier = load_lanes<V>(out + h * dim + 16 * s, lanes);
        sums[h][s] = V::mul(earlier, V::set(corrections[h]));
      }
    }
    for (int p = 0; p < n; ++p) {
      F32 value[S];
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) value[s] = load(values + p * row + 16 * s, lanes);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        const F32 weight = V::set(weights[h][p]);
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) sums[h][s] = V::fma(weight, value[s], sums[h][s]);
      }
    }
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) store_lanes<V>(out + h * dim + 16 * s, sums[h][s], lanes);
    }
  }

  // H heads, from `head` on, that share one key head.
  template <int H>
  static void heads(const AttentionArgs& a, int64_t head) noexcept {
    const int64_t dim = a.head_dim;
    const int64_t row = a.n_kv_heads * dim;
    const int64_t count = a.last - a.first + 1;
    const int64_t start = a.first * row + head / (a.n_heads / a.n_kv_heads) * dim;
    const float* q = a.q + head * dim;
    float* out = a.out + head * dim;
    float largest[H];
    float total[H];
    for (int h = 0; h < H; ++h) {
      largest[h] = -__builtin_inff();
      total[h] = 0.0f;
    }
    for (int64_t i = 0; i < H * dim; ++i) out[i] = 0.0f;
    for (int64_t begin = 0; begin < count; begin += kChunk) {
      const int n = count - begin < kChunk ? static_cast<int>(count - begin) : kChunk;
      const Element* keys = static_cast<const Element*>(a.keys) + start + begin * row;
      const Element* values = static_cast<const Element*>(a.values) + start + begin * row;
      float weights[H][kChunk];
      float corrections[H];
      scores<H>(q, keys, values, row, dim, a.scale, n, weights);
      for (int h = 0; h < H; ++h) {
        corrections[h] = exponentiate(weights[h], n, &largest[h], &total[h]);
      }
      int64_t k = 0;
      for (; k + 16 * kSlabs <= dim; k += 16 * kSlabs) {
        mix<H, kSlabs>(weights, corrections, values + k, row, dim, n, 16, out + k);
      }
      for (; k < dim; k += 16) {
        const int lanes = dim - k < 16 ? static_cast<int>(dim - k) : 16;
        mix<H, 1>(weights, corrections, values + k, row, dim, n, lanes, out + k);
      }
    }
    for (int h = 0; h < H; ++h) {
      const F32 inverse = V::set(1.0f / total[h]);
      for_lanes(dim, [=](int64_t k, int lanes) {
        float* p = out + h * dim + k;
        store_lanes<V>(p, V::mul(load_lanes<V>(p, lanes), inverse), lanes);
      });
    }
  }

  static void run(const AttentionArgs& a) noexcept {
    const int64_t sharing = a.n_heads / a.n_kv_heads;
    int64_t head = a.head_begin;
    while (head < a.head_end) {
      const int64_t next_key_head = (head / sharing + 1) * sharing;
      const int64_t left = (next_key_head < a.head_end ? next_key_head : a.head_end) - head;
      if (left >= 4) {
        heads<4>(a, head);
        head += 4;
      } else if (left >= 2) {
        heads<2>(a, head);
        head += 2;
      } else {
        heads<1>(a, head);
        head += 1;
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
