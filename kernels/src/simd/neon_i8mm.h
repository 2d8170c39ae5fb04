// neon_i8mm.h: the vector vocabulary on Advanced SIMD with dot products of unsigned and signed
// bytes (Armv8.6 FEAT_I8MM).
//
// Its matrix products (SMMLA) are not used: they take 8 columns of 2 rows where a block has 4, and
// 2 tokens at a time, which the families do not know.
#pragma once

#include "simd/neon_base.h"

namespace qh {
namespace {

struct Simd : NeonBase {
  // int32 already.
  using Narrow = I32;

  static constexpr bool kUnsignedDot = true;
  static constexpr int kTokens = 4;

  static QH_ALWAYS_INLINE Block xor_mask(Block a, uint8_t mask) noexcept {
    const uint8x16_t m = vdupq_n_u8(mask);
    return each<Block>([&](int i) { return veorq_u8(a.val[i], m); });
  }
  static QH_ALWAYS_INLINE I32 dot_unsigned(I32 acc, Block codes, Quad x) noexcept {
    return each<I32>([&](int i) { return vusdotq_s32(acc.val[i], codes.val[i], x); });
  }
  static QH_ALWAYS_INLINE I32 dot_signed(I32 acc, Block codes, Quad x) noexcept {
    return each<I32>(
        [&](int i) { return vdotq_s32(acc.val[i], vreinterpretq_s8_u8(codes.val[i]), x); });
  }
  static QH_ALWAYS_INLINE Narrow narrow_zero() noexcept { return zero_i32(); }
  static QH_ALWAYS_INLINE Narrow narrow_dot(Narrow acc, Block codes, Quad x) noexcept {
    return dot_unsigned(acc, codes, x);
  }
  static QH_ALWAYS_INLINE I32 widen(Narrow acc) noexcept { return acc; }
};

}  // namespace
}  // namespace qh
