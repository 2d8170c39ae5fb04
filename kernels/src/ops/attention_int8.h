// attention_int8.h: products with int8 keys and values in integer arithmetic.
//
// Queries become int8 codes with one step for a head, and so do the weights of a chunk times the
// scales of its values, with one step for a chunk: step = max|x| / 127, off by at most half a step.
// Products of bytes are exact in int32. Two parts of 8 bits in place of one would round 128 times
// less and take 1.4 times as long (AVX-512 VNNI, 4 heads of 128, November 2026).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/half.h"
#include "core/kv_layout.h"
#include "kernel_table.h"
#include "ops/attention_floats.h"
#include "ops/quantize.h"

namespace qh {
namespace {

template <typename V>
struct Int8Cache {
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using Block = typename V::Block;
  using Quad = typename V::Quad;
  static constexpr int kHeads = 4;
  // Tiles of keys scored, and slabs of 16 values mixed at a time.
  static constexpr int kTiles = V::kUnsignedDot ? 4 : 1;
  static constexpr int kSlabs = kTiles;
  static constexpr int64_t kQuad = 64;  // bytes of a vector: 16 positions or values, 4 codes each

  // One in so many bytes of the next block is asked for between scoring and mixing, the others
  // beside the products, which alone would ask faster than memory answers.
  static constexpr int kBetween = 2;

  // Writes the codes of n values and the sum of them, and returns the step; codes 0 and NaN where a
  // value is not finite.
  static QH_ALWAYS_INLINE float encode(const float* x, int64_t n, int8_t* codes,
                                       int32_t* sum) noexcept {
    const uint32_t bits = largest_bits<V>(x, n);
    const bool finite = bits < kInfinityBits;
    const float largest = float_from_bits(bits);
    // Below, 1 / step would overflow; nothing that small adds to a sum of float32.
    const bool zeros = !finite || largest < 1e-30f;
    const F32 factor = V::set(zeros ? 0.0f : 127.0f / largest);
    I32 total = V::zero_i32();
    for_lanes(n, [&](int64_t k, int lanes) {
      const F32 scaled = V::mul(load_lanes<V>(x + k, lanes), factor);
      // Infinity times 0 is not 0.
      const I32 code = finite ? V::round_i32(scaled) : V::zero_i32();
      total = V::add(total, code);
      if (lanes == 16) {
        V::store_codes(codes + k, code);
      } else {
        int8_t group[16];
        V::store_codes(group, code);
        __builtin_memcpy(codes + k, group, static_cast<size_t>(lanes));
      }
    });
    *sum = V::reduce_add(total);
    return finite ? (zeros ? 0.0f : largest / 127.0f) : float_from_bits(kNanBits);
  }

  // acc += the products of one block with four codes.
  static QH_ALWAYS_INLINE I32 dot(I32 acc, Block block, Quad x) noexcept {
    if constexpr (V::kUnsignedDot) {
      return V::dot_unsigned(acc, block, x);
    } else {
      return V::dot_signed(acc, block, x);
    }
  }
  // code ^ 0x80 is code + 128 as an unsigned byte; sums start from what that adds too much.
  static QH_ALWAYS_INLINE Block load(const uint8_t* p) noexcept {
    const Block block = V::load_block(p);
    if constexpr (V::kUnsignedDot) {
      return V::xor_mask(block, 0x80);
    } else {
      return block;
    }
  }
  // The first `lanes` quads; reads nothing else.
  static QH_ALWAYS_INLINE Block load_lanes_of(const uint8_t* p, int lanes) noexcept {
    if (lanes == 16) return load(p);
    uint8_t bytes[64] = {};
    __builtin_memcpy(bytes, p, 4 * static_cast<size_t>(lanes));
    return load(bytes);
  }
  static QH_ALWAYS_INLINE I32 start(int32_t sum) noexcept {
    return V::kUnsignedDot ? V::set_i32(-128 * sum) : V::zero_i32();
  }

  template <int H>
  struct Query {
    const int8_t* codes[H];
    int32_t sums[H];
    float steps[H];  // times the scale of scores
    Query(const AttentionArgs& a, const float* q) noexcept {
      const int64_t dim = a.cache.head_dim;
      const int64_t padded = key_values(KvType::int8, dim);
      for (int h = 0; h < H; ++h) {
        int8_t* mine = a.codes + h * padded;
        codes[h] = mine;
        for (int64_t k = dim; k < padded; ++k) mine[k] = 0;
        steps[h] = encode(q + h * dim, dim, mine, &sums[h]) * a.scale;
      }
    }
  };

  // weights[h][16 * tile ...] = scores of T tiles of positions.
  template <int H, int T>
  static QH_ALWAYS_INLINE void score_tiles(const KvBlock& cache, const Query<H>& query, Chunk& at,
                                           int64_t quads, int tile,
                                           float (&weights)[H][kKvBlock]) noexcept {
    const uint8_t* keys = cache.keys + tile * kQuad;
    I32 sums[H][T];
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sums[h][t] = start(query.sums[h]);
    }
#pragma GCC unroll 2
    for (int64_t b = 0; b < quads; ++b) {
      Block block[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        block[t] = load(keys + b * 4 * kKvBlock + t * kQuad);
      }
      at.prefetch(T * kQuad / 2);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        const Quad x = V::load_quad(query.codes[h] + 4 * b);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sums[h][t] = dot(sums[h][t], block[t], x);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const float* scales = cache.key_scales + (tile + t) * 16;
      const F32 key_scales = V::load(scales);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        const F32 score = V::mul(V::to_f32(sums[h][t]), V::set(query.steps[h]));
        V::store(weights[h] + (tile + t) * 16, V::mul(score, key_scales));
      }
    }
  }

  template <int H>
  static QH_ALWAYS_INLINE void scores(const KvBlock& cache, int64_t dim, const Query<H>& query,
                                      Chunk& at, float (&weights)[H][kKvBlock]) noexcept {
    const int64_t quads = key_values(KvType::int8, dim) / 4;
    const int last = (at.end + 15) / 16;
    int tile = at.begin / 16;
    for (; tile + kTiles <= last; tile += kTiles) {
      score_tiles<H, kTiles>(cache, query, at, quads, tile, weights);
    }
    for (; tile < last; ++tile) score_tiles<H, 1>(cache, query, at, quads, tile, weights);
  }

  // The weights of a chunk, times the scales of the values, as codes.
  template <int H>
  struct Weights {
    int8_t codes[H][kKvBlock];
    int32_t sums[H];
    float steps[H];
    Weights(const KvBlock& cache, const Chunk& at, const float (&weights)[H][kKvBlock]) noexcept {
      const float* scales = cache.value_scales;
      for (int h = 0; h < H; ++h) {
        float scaled[kKvBlock];
        // What was never stored has no scale.
        for (int p = 0; p < kKvBlock; p += 16) {
          if (p < at.end) {
            V::store(scaled + p, V::mul(V::load(weights[h] + p), V::load(scales + p)));
          } else {
            V::store(scaled + p, V::zero());
          }
        }
        for (int p = 0; p < at.begin; ++p) scaled[p] = 0.0f;
        for (int p = at.end; p < kKvBlock; ++p) scaled[p] = 0.0f;
        steps[h] = encode(scaled, kKvBlock, codes[h], &sums[h]);
      }
    }
  };

  // out[h] = out[h] * corrections[h] + sum over positions of weight * value, for 16 S values.
  template <int H, int S>
  static QH_ALWAYS_INLINE void mix_slab(const uint8_t* values, int64_t width, int64_t dim,
                                        Chunk& at, const Weights<H>& weights,
                                        const float (&corrections)[H], int lanes,
                                        float* out) noexcept {
    I32 sums[H][S];
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) sums[h][s] = start(weights.sums[h]);
    }
    for (int p = at.begin / 4 * 4; p < at.end; p += 4) {
      const uint8_t* row = values + p * width;
      at.prefetch(S * kQuad / 2);
      Block block[S];
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) block[s] = load_lanes_of(row + s * kQuad, lanes);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        const Quad x = V::load_quad(weights.codes[h] + p);
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) sums[h][s] = dot(sums[h][s], block[s], x);
      }
    }
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        float* p = out + h * dim + 16 * s;
        const F32 earlier = V::mul(load_lanes<V>(p, lanes), V::set(corrections[h]));
        const F32 now = V::fma(V::to_f32(sums[h][s]), V::set(weights.steps[h]), earlier);
        store_lanes<V>(p, now, lanes);
      }
    }
  }

  template <int H>
  static QH_ALWAYS_INLINE void mix(const KvBlock& cache, int64_t dim, Chunk& at,
                                   const float (&weights)[H][kKvBlock],
                                   const float (&corrections)[H], float* out) noexcept {
    const uint8_t* values = cache.values;
    const Weights<H> coded(cache, at, weights);
    int64_t k = 0;
    for (; k + 16 * kSlabs <= dim; k += 16 * kSlabs) {
      mix_slab<H, kSlabs>(values + value_at(KvType::int8, dim, 0, k), slab_width(dim, k), dim, at,
                          coded, corrections, 16, out + k);
    }
    for (; k < dim; k += 16) {
      const int lanes = dim - k < 16 ? static_cast<int>(dim - k) : 16;
      mix_slab<H, 1>(values + value_at(KvType::int8, dim, 0, k), slab_width(dim, k), dim, at, coded,
                     corrections, lanes, out + k);
    }
  }
};

}  // namespace
}  // namespace qh
