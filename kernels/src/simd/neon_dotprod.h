// neon_dotprod.h: the vector vocabulary on Advanced SIMD with dot products (Armv8.2 FEAT_DotProd).
#pragma once

#include "simd/neon_base.h"

namespace qh {
namespace {

struct Simd : NeonBase {
  // int32 already; narrow_dot takes codes up to 127, which a signed byte holds.
  using Narrow = I32;
  static constexpr bool kUnsignedDot = false;
  static constexpr int kTokens = 4;

  static QH_ALWAYS_INLINE Narrow narrow_zero() noexcept { return zero_i32(); }
  static QH_ALWAYS_INLINE Narrow narrow_dot(Narrow acc, Block codes, Quad x) noexcept {
    return dot_signed(acc, codes, x);
  }
  static QH_ALWAYS_INLINE I32 widen(Narrow acc) noexcept { return acc; }
  static QH_ALWAYS_INLINE I32 dot_signed(I32 acc, Block codes, Quad x) noexcept {
    return each<I32>(
        [&](int i) { return vdotq_s32(acc.val[i], vreinterpretq_s8_u8(codes.val[i]), x); });
  }
  static QH_ALWAYS_INLINE I32 dot_once(I32 acc, Block codes, Quad x) noexcept {
    return dot_signed(acc, codes, x);
  }
};

}  // namespace
}  // namespace qh
