// attention_floats.h: products with float16 or float32 keys and values; everything is summed in
// float32, scores in the order of the values of a head.
#pragma once

#include <cstdint>

#include "core/kv_layout.h"
#include "kernel_table.h"
#include "ops/elementwise.h"

namespace qh {
namespace {

// One block of the cache.
struct Chunk {
  int begin, end;  // of its positions, those that are attended to
  // Goes through the block that is read next, front to back while this one is computed: the
  // hardware prefetcher does not see ahead of kernels that compute. Integer arithmetic keeps an
  // address past the end of the cache defined.
  uintptr_t ahead;

  // Asks for the next `bytes` bytes.
  QH_ALWAYS_INLINE void prefetch(int64_t bytes) noexcept {
    for (int64_t i = 0; i < bytes; i += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(ahead + static_cast<uintptr_t>(i)), 0, 2);
    }
    ahead += static_cast<uintptr_t>(bytes);
  }
};

template <KvType kType>
struct CacheElement {
  using Type = uint16_t;
};
template <>
struct CacheElement<KvType::f32> {
  using Type = float;
};

template <typename V, KvType kType>
struct FloatCache {
  using F32 = typename V::F32;
  using Element = typename CacheElement<kType>::Type;
  static constexpr int kHeads = 4;
  // Tiles of keys scored, and slabs of 16 values mixed at a time: 16 sums where there are 32
  // registers of 512 bits.
  static constexpr int kTiles = V::kExactTokens >= 4 ? 4 : 1;
  static constexpr int kSlabs = kTiles;
  static constexpr int64_t kBytes = sizeof(Element);

  // The share of the next block that is asked for between scoring and mixing: products take long
  // enough for all of it to be asked for beside them.
  static constexpr int kBetween = 0;

  template <int H>
  struct Query {
    const float* q;
    float scale;
    Query(const AttentionArgs& a, const float* first) noexcept : q(first), scale(a.scale) {}
  };

  static QH_ALWAYS_INLINE F32 load(const Element* p, int lanes) noexcept {
    if constexpr (kType == KvType::f32) {
      return load_lanes<V>(p, lanes);
    } else {
      return lanes == 16 ? V::load_half(p) : V::load_half_partial(p, lanes);
    }
  }

  // weights[h][16 * tile ...] = scores of T tiles of positions.
  template <int H, int T>
  static QH_ALWAYS_INLINE void score_tiles(const Element* keys, int64_t dim, const Query<H>& query,
                                           Chunk& at, int tile,
                                           float (&weights)[H][kKvBlock]) noexcept {
    F32 sums[T][H];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) sums[t][h] = V::zero();
    }
    const auto add = [&](int64_t k) __attribute__((always_inline)) {
      F32 key[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) key[t] = load(keys + k * kKvBlock + 16 * t, 16);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        const F32 q = V::set(query.q[h * dim + k]);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sums[t][h] = V::fma(q, key[t], sums[t][h]);
      }
    };
    for (int64_t k = 0; k < dim; k += 2) {  // head_dim is even
      at.prefetch(2 * T * 16 * kBytes);
      add(k);
      add(k + 1);
    }
    const F32 scale = V::set(query.scale);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        V::store(weights[h] + (tile + t) * 16, V::mul(sums[t][h], scale));
      }
    }
  }

  template <int H>
  static QH_ALWAYS_INLINE void scores(const KvBlock& cache, int64_t dim, const Query<H>& query,
                                      Chunk& at, float (&weights)[H][kKvBlock]) noexcept {
    const Element* keys = reinterpret_cast<const Element*>(cache.keys);
    const int last = (at.end + 15) / 16;
    int tile = at.begin / 16;
    for (; tile + kTiles <= last; tile += kTiles) {
      score_tiles<H, kTiles>(keys + tile * 16, dim, query, at, tile, weights);
    }
    for (; tile < last; ++tile) {
      score_tiles<H, 1>(keys + tile * 16, dim, query, at, tile, weights);
    }
  }

  // out[h] = out[h] * corrections[h] + sum over positions of weight * value, for 16 S values.
  template <int H, int S>
  static QH_ALWAYS_INLINE void mix_slab(const Element* values, int64_t width, int64_t dim,
                                        Chunk& at, const float (&weights)[H][kKvBlock],
                                        const float (&corrections)[H], int lanes,
                                        float* out) noexcept {
    F32 sums[H][S];
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        const F32 earlier = load_lanes<V>(out + h * dim + 16 * s, lanes);
        sums[h][s] = V::mul(earlier, V::set(corrections[h]));
      }
    }
    for (int p = at.begin; p < at.end; ++p) {
      const Element* row = values + p * width;
      at.prefetch(16 * S * kBytes);
      F32 value[S];
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) value[s] = load(row + 16 * s, lanes);
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

  template <int H>
  static QH_ALWAYS_INLINE void mix(const KvBlock& cache, int64_t dim, Chunk& at,
                                   const float (&weights)[H][kKvBlock],
                                   const float (&corrections)[H], float* out) noexcept {
    const Element* values = reinterpret_cast<const Element*>(cache.values);
    int64_t k = 0;
    for (; k + 16 * kSlabs <= dim; k += 16 * kSlabs) {
      mix_slab<H, kSlabs>(values + value_at(kType, dim, 0, k), slab_width(dim, k), dim, at, weights,
                          corrections, 16, out + k);
    }
    for (; k < dim; k += 16) {
      const int lanes = dim - k < 16 ? static_cast<int>(dim - k) : 16;
      mix_slab<H, 1>(values + value_at(kType, dim, 0, k), slab_width(dim, k), dim, at, weights,
                     corrections, lanes, out + k);
    }
  }
};

}  // namespace
}  // namespace qh
