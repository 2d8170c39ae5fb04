// avx2.h: the vector vocabulary on AVX2 without dot products: bytes are multiplied in pairs.
#pragma once

#include "simd/avx2_base.h"

namespace qh {
namespace {

struct Simd : Avx2Base {
  // int16 sums of two neighbouring products. A caller adds at most 32767 in magnitude:
  // each narrow_dot adds up to 2 * max(code) * 128.
  using Narrow = I32;

  static constexpr bool kUnsignedDot = false;

  // Exact for any int8 code, -128 included, and inputs in -127..127: |code| is an unsigned byte
  // up to 128, the sign moves to the input, and two products stay within 2 * 128 * 127 = 32512.
  static QH_ALWAYS_INLINE I32 dot_signed(I32 acc, Block codes, Quad x) noexcept {
    return {dot_signed_half(acc.low, codes.low, x), dot_signed_half(acc.high, codes.high, x)};
  }
  // The same for codes in -127..127 that meet one token: signs move to the codes, and |x| serves
  // all rows. With more tokens |code| serves all of them.
  static QH_ALWAYS_INLINE I32 dot_once(I32 acc, Block codes, Quad x) noexcept {
    const __m256i magnitudes = _mm256_abs_epi8(x);
    const auto half = [&](__m256i sums, __m256i some) {
      const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(some, x));
      return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    };
    return {half(acc.low, codes.low), half(acc.high, codes.high)};
  }
  static QH_ALWAYS_INLINE Narrow narrow_zero() noexcept { return zero_i32(); }
  static QH_ALWAYS_INLINE Narrow narrow_dot(Narrow acc, Block codes, Quad x) noexcept {
    return {_mm256_add_epi16(acc.low, _mm256_maddubs_epi16(codes.low, x)),
            _mm256_add_epi16(acc.high, _mm256_maddubs_epi16(codes.high, x))};
  }
  static QH_ALWAYS_INLINE I32 widen(Narrow acc) noexcept {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(acc.low, ones), _mm256_madd_epi16(acc.high, ones)};
  }

 private:
  static QH_ALWAYS_INLINE __m256i dot_signed_half(__m256i acc, __m256i codes, Quad x) noexcept {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

}  // namespace
}  // namespace qh
