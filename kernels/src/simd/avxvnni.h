// avxvnni.h: the vector vocabulary on AVX2 with dot products (AVX-VNNI).
#pragma once

#include "simd/avx2_base.h"

namespace qh {
namespace {

struct Simd : Avx2Base {
  // int32 already.
  using Narrow = I32;

  static constexpr bool kUnsignedDot = true;

  static QH_ALWAYS_INLINE Block xor_mask(Block a, uint8_t mask) noexcept {
    const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_xor_si256(a.low, m), _mm256_xor_si256(a.high, m)};
  }
  // One name for two encodings of one instruction: the compiler's flags choose.
  static QH_ALWAYS_INLINE I32 dot_unsigned(I32 acc, Block codes, Quad x) noexcept {
    return {_mm256_dpbusd_epi32(acc.low, codes.low, x),
            _mm256_dpbusd_epi32(acc.high, codes.high, x)};
  }
  static QH_ALWAYS_INLINE Narrow narrow_zero() noexcept { return zero_i32(); }
  static QH_ALWAYS_INLINE Narrow narrow_dot(Narrow acc, Block codes, Quad x) noexcept {
    return dot_unsigned(acc, codes, x);
  }
  static QH_ALWAYS_INLINE I32 widen(Narrow acc) noexcept { return acc; }
};

}  // namespace
}  // namespace qh
