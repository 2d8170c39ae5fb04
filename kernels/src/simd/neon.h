// neon.h: the vector vocabulary on Advanced SIMD without dot products.
#pragma once

#include "simd/neon_base.h"

namespace qh {
namespace {

struct Simd : NeonBase {
  // int16 sums, one for each byte of a block. A caller adds at most 32767 in magnitude: each
  // narrow_dot adds up to max(code) * 128 to a lane.
  struct Narrow {
    int16x8_t val[8];
  };
  static constexpr bool kUnsignedDot = false;
  static constexpr int kTokens = 2;

  static QH_ALWAYS_INLINE Narrow narrow_zero() noexcept {
    const int16x8_t zero = vdupq_n_s16(0);
    return {{zero, zero, zero, zero, zero, zero, zero, zero}};
  }
  static QH_ALWAYS_INLINE Narrow narrow_dot(Narrow acc, Block codes, Quad x) noexcept {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int8x16_t c = vreinterpretq_s8_u8(codes.val[i]);
      acc.val[2 * i] = vmlal_s8(acc.val[2 * i], vget_low_s8(c), vget_low_s8(x));
      acc.val[2 * i + 1] = vmlal_high_s8(acc.val[2 * i + 1], c, x);
    }
    return acc;
  }
  static QH_ALWAYS_INLINE I32 widen(Narrow acc) noexcept {
    return each<I32>([&](int i) {
      return vpaddq_s32(vpaddlq_s16(acc.val[2 * i]), vpaddlq_s16(acc.val[2 * i + 1]));
    });
  }
  // Any codes and inputs: one product is at most 128 * 128 and pairs are added in int32.
  static QH_ALWAYS_INLINE I32 dot_signed(I32 acc, Block codes, Quad x) noexcept {
    return each<I32>([&](int i) {
      const int8x16_t c = vreinterpretq_s8_u8(codes.val[i]);
      const int16x8_t low = vmull_s8(vget_low_s8(c), vget_low_s8(x));
      const int16x8_t high = vmull_high_s8(c, x);
      return vaddq_s32(acc.val[i], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
    });
  }
  static QH_ALWAYS_INLINE I32 dot_once(I32 acc, Block codes, Quad x) noexcept {
    return dot_signed(acc, codes, x);
  }
};

}  // namespace
}  // namespace qh
