// avx2_base.h: what the vocabularies on AVX2, FMA and F16C share: everything but products of bytes.
// Each name means what avx512vnni.h says. A vector of 16 is two registers: rows 0..7 and 8..15.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "core/compiler.h"

namespace qh {
namespace {

struct Avx2Base {
  struct F32 {
    __m256 low, high;
  };
  struct I32 {
    __m256i low, high;
  };
  using Block = I32;
  using Quad = __m256i;

  static constexpr int kTokens = 4;
  static constexpr int kExactTokens = 2;
  static constexpr int kDenseRows = 4;
  static constexpr int kDenseBlock = 2;

  static QH_ALWAYS_INLINE Block load_block(const uint8_t* p) noexcept {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  static QH_ALWAYS_INLINE Block and_mask(Block a, uint8_t mask) noexcept {
    const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(a.low, m), _mm256_and_si256(a.high, m)};
  }
  static constexpr bool kTables128 = false;
  static QH_ALWAYS_INLINE Block set_bytes(int a) noexcept {
    const __m256i bytes = _mm256_set1_epi8(static_cast<char>(a));
    return {bytes, bytes};
  }
  static QH_ALWAYS_INLINE Block sub_bytes(Block a, Block b) noexcept {
    return {_mm256_sub_epi8(a.low, b.low), _mm256_sub_epi8(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE Block min_bytes(Block a, Block b) noexcept {
    return {_mm256_min_epu8(a.low, b.low), _mm256_min_epu8(a.high, b.high)};
  }
  template <int kBits>
  static QH_ALWAYS_INLINE Block shift_right(Block a) noexcept {
    return {_mm256_srli_epi16(a.low, kBits), _mm256_srli_epi16(a.high, kBits)};
  }
  static QH_ALWAYS_INLINE Block lookup(Block nibbles, const int8_t* table) noexcept {
    const __m256i entries =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return {_mm256_shuffle_epi8(entries, nibbles.low), _mm256_shuffle_epi8(entries, nibbles.high)};
  }
  template <int kByte>
  static QH_ALWAYS_INLINE F32 lookup_f32(Block nibbles, const float* table) noexcept {
    const I32 index = byte_of<kByte>(nibbles);
    return {lookup_f32_half(index.low, table), lookup_f32_half(index.high, table)};
  }
  static QH_ALWAYS_INLINE Quad load_quad(const int8_t* p) noexcept {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
  }
  template <int kByte>
  static QH_ALWAYS_INLINE I32 byte_of(Block codes) noexcept {
    return {_mm256_srai_epi32(_mm256_slli_epi32(codes.low, 24 - 8 * kByte), 24),
            _mm256_srai_epi32(_mm256_slli_epi32(codes.high, 24 - 8 * kByte), 24)};
  }

  static QH_ALWAYS_INLINE I32 zero_i32() noexcept {
    return {_mm256_setzero_si256(), _mm256_setzero_si256()};
  }
  static QH_ALWAYS_INLINE I32 set_i32(int32_t a) noexcept {
    return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)};
  }
  static QH_ALWAYS_INLINE I32 add(I32 a, I32 b) noexcept {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE I32 sub(I32 a, I32 b) noexcept {
    return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE I32 mul(I32 a, I32 b) noexcept {
    return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE I32 max(I32 a, I32 b) noexcept {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE I32 min(I32 a, I32 b) noexcept {
    return {_mm256_min_epi32(a.low, b.low), _mm256_min_epi32(a.high, b.high)};
  }
  template <int kBits>
  static QH_ALWAYS_INLINE I32 shift_right_signed(I32 a) noexcept {
    return {_mm256_srai_epi32(a.low, kBits), _mm256_srai_epi32(a.high, kBits)};
  }
  static QH_ALWAYS_INLINE int32_t reduce_add(I32 a) noexcept {
    const __m256i eight = _mm256_add_epi32(a.low, a.high);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return _mm_cvtsi128_si32(four);
  }
  static QH_ALWAYS_INLINE int32_t reduce_max(I32 a) noexcept {
    const __m256i eight = _mm256_max_epi32(a.low, a.high);
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return _mm_cvtsi128_si32(four);
  }
  static QH_ALWAYS_INLINE void store_codes(int8_t* p, I32 a) noexcept {
    // packs works within 128-bit halves; the permutation puts the four groups of four in order.
    const __m256i words = _mm256_packs_epi32(a.low, a.high);
    const __m256i bytes = _mm256_packs_epi16(words, words);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)));
  }

  static QH_ALWAYS_INLINE F32 zero() noexcept { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static QH_ALWAYS_INLINE F32 set(float a) noexcept {
    return {_mm256_set1_ps(a), _mm256_set1_ps(a)};
  }
  static QH_ALWAYS_INLINE F32 load(const float* p) noexcept {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
  }
  static QH_ALWAYS_INLINE F32 load_partial(const float* p, int n) noexcept {
    float lanes[16] = {};
    __builtin_memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
    return load(lanes);
  }
  static QH_ALWAYS_INLINE void store(float* p, F32 a) noexcept {
    _mm256_storeu_ps(p, a.low);
    _mm256_storeu_ps(p + 8, a.high);
  }
  static QH_ALWAYS_INLINE void store_partial(float* p, F32 a, int n) noexcept {
    float lanes[16];
    store(lanes, a);
    __builtin_memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
  }
  static QH_ALWAYS_INLINE F32 load_half(const uint16_t* p) noexcept {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static QH_ALWAYS_INLINE F32 load_half_partial(const uint16_t* p, int n) noexcept {
    uint16_t lanes[16] = {};
    __builtin_memcpy(lanes, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return load_half(lanes);
  }
  static QH_ALWAYS_INLINE F32 load_e8m0(const uint8_t* p) noexcept {
    const auto half = [](const uint8_t* eight) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(eight));
      const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23);
      return _mm256_castsi256_ps(_mm256_max_epi32(bits, _mm256_set1_epi32(0x00400000)));
    };
    return {half(p), half(p + 8)};
  }
  static QH_ALWAYS_INLINE F32 load_e4m3(const uint8_t* p) noexcept {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i halves = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
  }
  static QH_ALWAYS_INLINE void store_half(uint16_t* p, F32 a) noexcept {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_half(a.low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), to_half(a.high));
  }
  static QH_ALWAYS_INLINE void store_half_partial(uint16_t* p, F32 a, int n) noexcept {
    uint16_t lanes[16];
    store_half(lanes, a);
    __builtin_memcpy(p, lanes, static_cast<size_t>(n) * sizeof(uint16_t));
  }
  static QH_ALWAYS_INLINE F32 load_bf16(const uint16_t* p) noexcept {
    return {from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static QH_ALWAYS_INLINE F32 load_bf16_partial(const uint16_t* p, int n) noexcept {
    uint16_t lanes[16] = {};
    __builtin_memcpy(lanes, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return load_bf16(lanes);
  }

  static QH_ALWAYS_INLINE F32 add(F32 a, F32 b) noexcept {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE F32 sub(F32 a, F32 b) noexcept {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE F32 mul(F32 a, F32 b) noexcept {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE F32 div(F32 a, F32 b) noexcept {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE F32 max(F32 a, F32 b) noexcept {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE F32 min(F32 a, F32 b) noexcept {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
  }
  static QH_ALWAYS_INLINE F32 fma(F32 a, F32 b, F32 c) noexcept {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static QH_ALWAYS_INLINE float reduce_add(F32 a) noexcept {
    __m128 four = fold(a);
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  static QH_ALWAYS_INLINE void reduce_add_each(const F32 (&a)[4], float* out) noexcept {
    const __m128 r0 = fold(a[0]);
    const __m128 r1 = fold(a[1]);
    const __m128 r2 = fold(a[2]);
    const __m128 r3 = fold(a[3]);
    // Lanes 0 + 2 and 1 + 3 of each, then their sum.
    const __m128 low = _mm_add_ps(_mm_unpacklo_ps(r0, r1), _mm_unpackhi_ps(r0, r1));
    const __m128 high = _mm_add_ps(_mm_unpacklo_ps(r2, r3), _mm_unpackhi_ps(r2, r3));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(low, high), _mm_movehl_ps(high, low)));
  }
  static QH_ALWAYS_INLINE float reduce_max(F32 a) noexcept {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  static QH_ALWAYS_INLINE F32 to_f32(I32 a) noexcept {
    return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)};
  }
  static QH_ALWAYS_INLINE I32 round_i32(F32 a) noexcept {
    return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)};
  }
  static QH_ALWAYS_INLINE I32 magnitude_bits(F32 a) noexcept {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    return {_mm256_and_si256(_mm256_castps_si256(a.low), mask),
            _mm256_and_si256(_mm256_castps_si256(a.high), mask)};
  }
  static QH_ALWAYS_INLINE F32 power_of_two(I32 n) noexcept {
    const I32 biased = add(n, set_i32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(biased.low, 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(biased.high, 23))};
  }

 private:
  // 16 lanes to 4: halves added, twice.
  static QH_ALWAYS_INLINE __m128 fold(F32 a) noexcept {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  }
  static QH_ALWAYS_INLINE __m256 lookup_f32_half(__m256i index, const float* table) noexcept {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index);
    // The sign bit chooses: bit 3 of the index.
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
  }
  static QH_ALWAYS_INLINE __m128i to_half(__m256 a) noexcept {
    return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
  }
  static QH_ALWAYS_INLINE __m256 from_bf16(__m128i a) noexcept {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
  }
};

}  // namespace
}  // namespace qh
