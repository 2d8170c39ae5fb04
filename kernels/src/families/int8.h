// int8.h: 8-bit weights with one float32 scale per row, int8 inputs with one scale per 32.
//
// Any byte is a valid code, -128 too. Input codes are in -127..127 (quantize_groups).
#pragma once

#include "families/packed.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat>
struct Int8 {
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);
  static constexpr int kGroupBlocks = static_cast<int>(kActivationGroup) / 4;

  // Whether codes are multiplied as they are, not as unsigned bytes.
  static constexpr bool kSignedDot = requires(I32 sum, typename V::Block codes,
                                              typename V::Quad x) { V::dot_signed(sum, codes, x); };

  static constexpr float value(uint8_t byte, int) noexcept { return static_cast<int8_t>(byte); }

  template <int T>
  static QH_ALWAYS_INLINE void tile(const uint8_t* blocks, int64_t padded, const TokenBlock& in,
                                    F32 (&results)[T]) noexcept {
    F32 totals[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) totals[t] = V::zero();
    add_groups<T>(blocks, 0, padded / kActivationGroup, in, totals);
    prefetch<T>(blocks + padded * kTileRows);
    const F32 row_scales = V::load(reinterpret_cast<const float*>(blocks + padded * kTileRows));
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) results[t] = V::mul(totals[t], row_scales);
  }

  // totals += x_scale * (float)acc of n_groups groups of 32 columns, in order. A weight is the sum
  // of kPlanes codes; the blocks of a plane are plane_bytes behind those of the one before.
  template <int T, int kPlanes = 1>
  static QH_ALWAYS_INLINE void add_groups(const uint8_t* blocks, int64_t plane_bytes,
                                          int64_t n_groups, const TokenBlock& in,
                                          F32 (&totals)[T]) noexcept {
    for (int64_t g = 0; g < n_groups; ++g) {
      I32 sums[T];
      group<T>(blocks + g * kGroupBlocks * 64, in, g, sums);
      for (int plane = 1; plane < kPlanes; ++plane) {
        I32 more[T];
        group<T>(blocks + plane * plane_bytes + g * kGroupBlocks * 64, in, g, more);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sums[t] = V::add(sums[t], more[t]);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const F32 x_scale = V::set(in.scales[t * in.group_stride + g]);
        totals[t] = V::add(totals[t], V::mul(x_scale, V::to_f32(sums[t])));
      }
    }
  }

  template <int T>
  static QH_ALWAYS_INLINE void exact_tile(const uint8_t* blocks, int64_t padded,
                                          const ExactBlock& in, F32 (&results)[T]) noexcept {
    F32 sums[T][2];
    clear<V, T>(sums);
    for (int64_t b = 0; b < padded / 4; ++b) {
      prefetch<T>(blocks + b * 64);
      add_exact<V, T>(sums, V::load_block(blocks + b * 64), in, 4 * b);
    }
    scale_exact<V, T>(sums, blocks + padded * kTileRows, results);
  }

 private:
  // sums[t] = the exact products of one group of 32 columns.
  template <int T>
  static QH_ALWAYS_INLINE void group(const uint8_t* blocks, const TokenBlock& in, int64_t g,
                                     I32 (&sums)[T]) noexcept {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      if constexpr (!kSignedDot) {
        // code ^ 0x80 is code + 128 as an unsigned byte; start from what that adds too much.
        sums[t] = V::set_i32(-128 * in.sums[t * in.sum_stride + 2 * g]);
      } else {
        sums[t] = V::zero_i32();
      }
    }
    const int8_t* inputs = in.codes + g * kActivationGroup;
#pragma GCC unroll 8
    for (int b = 0; b < kGroupBlocks; ++b) {
      prefetch<T>(blocks + b * 64);
      const typename V::Block codes = V::load_block(blocks + b * 64);
      if constexpr (!kSignedDot) {
        const typename V::Block shifted = V::xor_mask(codes, 0x80);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const typename V::Quad x = V::load_quad(inputs + t * in.code_stride + 4 * b);
          sums[t] = V::dot_unsigned(sums[t], shifted, x);
        }
      } else {
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const typename V::Quad x = V::load_quad(inputs + t * in.code_stride + 4 * b);
          sums[t] = V::dot_signed(sums[t], codes, x);
        }
      }
    }
  }
};

}  // namespace
}  // namespace qh
