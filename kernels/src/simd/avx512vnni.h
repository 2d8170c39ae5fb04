// avx512vnni.h: the vector vocabulary on AVX-512 (F, BW, VL, DQ) with VNNI.
//
// Every instruction set has a type with these names; families/ and ops/ are templates over it.
//   F32     16 float32        I32     16 int32, one per row of a tile
//   Block   64 bytes, byte 4r+t = row r, sub-column t        Quad   4 int8 inputs, for every row
//   Narrow  sums of byte products that become I32 by widen; see kUnsignedDot
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/compiler.h"

namespace qh {
namespace {

struct Simd {
  using F32 = __m512;
  using I32 = __m512i;
  using Block = __m512i;
  using Quad = __m512i;
  using Narrow = __m512i;

  // dot_unsigned adds products of any uint8 and any int8 exactly into int32.
  static constexpr bool kUnsignedDot = true;
  static constexpr int kTokens = 8;       // tokens that share one unpacked block
  static constexpr int kExactTokens = 4;  // the same with float32 inputs
  static constexpr int kDenseRows = 8;    // rows at a time, one token
  static constexpr int kDenseBlock = 4;   // rows and tokens at a time, several tokens

  // Blocks and integer products.
  static QH_ALWAYS_INLINE Block load_block(const uint8_t* p) noexcept {
    return _mm512_loadu_si512(p);
  }
  static QH_ALWAYS_INLINE void store_block(uint8_t* p, Block a) noexcept {
    _mm512_storeu_si512(p, a);
  }
  static QH_ALWAYS_INLINE Block and_mask(Block a, uint8_t mask) noexcept {
    return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(mask)));
  }
  // Whether there is lookup128.
  static constexpr bool kTables128 = false;
  static QH_ALWAYS_INLINE Block set_bytes(int a) noexcept {
    return _mm512_set1_epi8(static_cast<char>(a));
  }
  // Differences wrap around; the smaller of unsigned bytes.
  static QH_ALWAYS_INLINE Block sub_bytes(Block a, Block b) noexcept {
    return _mm512_sub_epi8(a, b);
  }
  static QH_ALWAYS_INLINE Block min_bytes(Block a, Block b) noexcept {
    return _mm512_min_epu8(a, b);
  }
  static QH_ALWAYS_INLINE Block xor_mask(Block a, uint8_t mask) noexcept {
    return _mm512_xor_si512(a, _mm512_set1_epi8(static_cast<char>(mask)));
  }
  // Shifts 16-bit lanes; the caller masks away what crossed a byte.
  template <int kBits>
  static QH_ALWAYS_INLINE Block shift_right(Block a) noexcept {
    return _mm512_srli_epi16(a, kBits);
  }
  // table[byte] for bytes 0..15.
  static QH_ALWAYS_INLINE Block lookup(Block nibbles, const int8_t* table) noexcept {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), nibbles);
  }
  // table[byte kByte of every row] for bytes 0..15.
  template <int kByte>
  static QH_ALWAYS_INLINE F32 lookup_f32(Block nibbles, const float* table) noexcept {
    return _mm512_permutexvar_ps(byte_of<kByte>(nibbles), _mm512_loadu_ps(table));
  }
  static QH_ALWAYS_INLINE Quad load_quad(const int8_t* p) noexcept {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
  }
  static QH_ALWAYS_INLINE I32 dot_unsigned(I32 acc, Block codes, Quad x) noexcept {
    return _mm512_dpbusd_epi32(acc, codes, x);
  }
  static QH_ALWAYS_INLINE Narrow narrow_zero() noexcept { return _mm512_setzero_si512(); }
  static QH_ALWAYS_INLINE Narrow narrow_dot(Narrow acc, Block codes, Quad x) noexcept {
    return _mm512_dpbusd_epi32(acc, codes, x);
  }
  static QH_ALWAYS_INLINE I32 widen(Narrow acc) noexcept { return acc; }
  // Vectors of 8 bytes, or 4 vectors of 16, one after the other: what codes stand for in a
  // codebook.
  template <int kBytes, int kMask>
  static QH_ALWAYS_INLINE Block load_vectors(const uint8_t* book, const uint16_t* codes) noexcept {
    // Calls first: without optimization the intrinsics are macros, which commas of templates upset.
    if constexpr (kBytes == 16) {
      const __m128i first = vector<16, kMask>(book, codes);
      const __m128i second = vector<16, kMask>(book, codes + 1);
      const __m128i third = vector<16, kMask>(book, codes + 2);
      const __m128i fourth = vector<16, kMask>(book, codes + 3);
      return join(first, second, third, fourth);
    } else {
      const __m128i first = two_vectors<kMask>(book, codes);
      const __m128i second = two_vectors<kMask>(book, codes + 2);
      const __m128i third = two_vectors<kMask>(book, codes + 4);
      const __m128i fourth = two_vectors<kMask>(book, codes + 6);
      return join(first, second, third, fourth);
    }
  }
  // kBytes inputs, for every vector of load_vectors.
  template <int kBytes>
  static QH_ALWAYS_INLINE Quad load_inputs(const int8_t* p) noexcept {
    if constexpr (kBytes == 16) {
      return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    } else {
      int64_t eight;
      __builtin_memcpy(&eight, p, sizeof eight);
      return _mm512_set1_epi64(eight);
    }
  }
  // Every second int32: 8 of a, then 8 of b. kOdd: the others.
  template <int kOdd>
  static QH_ALWAYS_INLINE I32 every_second(I32 a, I32 b) noexcept {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_epi32(a, _mm512_add_epi32(even, _mm512_set1_epi32(kOdd)), b);
  }
  // Sub-column t of every row, sign-extended.
  template <int kByte>
  static QH_ALWAYS_INLINE I32 byte_of(Block codes) noexcept {
    return _mm512_srai_epi32(_mm512_slli_epi32(codes, 24 - 8 * kByte), 24);
  }

  static QH_ALWAYS_INLINE I32 load_i32(const int32_t* p) noexcept { return _mm512_loadu_si512(p); }
  static QH_ALWAYS_INLINE I32 zero_i32() noexcept { return _mm512_setzero_si512(); }
  static QH_ALWAYS_INLINE I32 set_i32(int32_t a) noexcept { return _mm512_set1_epi32(a); }
  static QH_ALWAYS_INLINE I32 add(I32 a, I32 b) noexcept { return _mm512_add_epi32(a, b); }
  static QH_ALWAYS_INLINE I32 sub(I32 a, I32 b) noexcept { return _mm512_sub_epi32(a, b); }
  // The low 32 bits of products.
  static QH_ALWAYS_INLINE I32 mul(I32 a, I32 b) noexcept { return _mm512_mullo_epi32(a, b); }
  static QH_ALWAYS_INLINE I32 max(I32 a, I32 b) noexcept { return _mm512_max_epi32(a, b); }
  static QH_ALWAYS_INLINE I32 min(I32 a, I32 b) noexcept { return _mm512_min_epi32(a, b); }
  template <int kBits>
  static QH_ALWAYS_INLINE I32 shift_right_signed(I32 a) noexcept {
    return _mm512_srai_epi32(a, kBits);
  }
  static QH_ALWAYS_INLINE int32_t reduce_add(I32 a) noexcept { return _mm512_reduce_add_epi32(a); }
  static QH_ALWAYS_INLINE int32_t reduce_max(I32 a) noexcept { return _mm512_reduce_max_epi32(a); }
  // The low bytes of 16 values in -128..127.
  static QH_ALWAYS_INLINE void store_codes(int8_t* p, I32 a) noexcept {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
  }

  // float32.
  static QH_ALWAYS_INLINE F32 zero() noexcept { return _mm512_setzero_ps(); }
  static QH_ALWAYS_INLINE F32 set(float a) noexcept { return _mm512_set1_ps(a); }
  static QH_ALWAYS_INLINE F32 load(const float* p) noexcept { return _mm512_loadu_ps(p); }
  // The first n lanes, 0 <= n <= 16; zeros in the others; reads nothing else.
  static QH_ALWAYS_INLINE F32 load_partial(const float* p, int n) noexcept {
    return _mm512_maskz_loadu_ps(lanes(n), p);
  }
  static QH_ALWAYS_INLINE void store(float* p, F32 a) noexcept { _mm512_storeu_ps(p, a); }
  static QH_ALWAYS_INLINE void store_partial(float* p, F32 a, int n) noexcept {
    _mm512_mask_storeu_ps(p, lanes(n), a);
  }
  static QH_ALWAYS_INLINE F32 load_half(const uint16_t* p) noexcept {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static QH_ALWAYS_INLINE F32 load_half_partial(const uint16_t* p, int n) noexcept {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes(n), p));
  }
  // 16 scales of one byte each, as lut4_group_scale reads them (core/packed_scale.h).
  static QH_ALWAYS_INLINE F32 load_e8m0(const uint8_t* p) noexcept {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23);
    return _mm512_castsi512_ps(_mm512_max_epi32(bits, _mm512_set1_epi32(0x00400000)));
  }
  static QH_ALWAYS_INLINE F32 load_e4m3(const uint8_t* p) noexcept {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7));
  }
  static QH_ALWAYS_INLINE void store_half(uint16_t* p, F32 a) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_half(a));
  }
  static QH_ALWAYS_INLINE void store_half_partial(uint16_t* p, F32 a, int n) noexcept {
    _mm256_mask_storeu_epi16(p, lanes(n), to_half(a));
  }
  static QH_ALWAYS_INLINE F32 load_bf16(const uint16_t* p) noexcept {
    return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static QH_ALWAYS_INLINE F32 load_bf16_partial(const uint16_t* p, int n) noexcept {
    return from_bf16(_mm256_maskz_loadu_epi16(lanes(n), p));
  }

  static QH_ALWAYS_INLINE F32 add(F32 a, F32 b) noexcept { return _mm512_add_ps(a, b); }
  static QH_ALWAYS_INLINE F32 sub(F32 a, F32 b) noexcept { return _mm512_sub_ps(a, b); }
  static QH_ALWAYS_INLINE F32 mul(F32 a, F32 b) noexcept { return _mm512_mul_ps(a, b); }
  static QH_ALWAYS_INLINE F32 div(F32 a, F32 b) noexcept { return _mm512_div_ps(a, b); }
  // a * b + c with one rounding.
  static QH_ALWAYS_INLINE F32 fma(F32 a, F32 b, F32 c) noexcept { return _mm512_fmadd_ps(a, b, c); }
  // A NaN in b is kept.
  static QH_ALWAYS_INLINE F32 max(F32 a, F32 b) noexcept { return _mm512_max_ps(a, b); }
  static QH_ALWAYS_INLINE F32 min(F32 a, F32 b) noexcept { return _mm512_min_ps(a, b); }
  static QH_ALWAYS_INLINE float reduce_add(F32 a) noexcept {
    __m128 four = fold(a);
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  // out[i] = reduce_add(a[i]), with the same tree.
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
  static QH_ALWAYS_INLINE float reduce_max(F32 a) noexcept { return _mm512_reduce_max_ps(a); }
  static QH_ALWAYS_INLINE F32 to_f32(I32 a) noexcept { return _mm512_cvtepi32_ps(a); }
  // Nearest, ties to even; some int32 for NaN and values out of range.
  static QH_ALWAYS_INLINE I32 round_i32(F32 a) noexcept {
    return _mm512_cvt_roundps_epi32(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // The bits of |a| as int32: ordered as the magnitudes are, 0x7f800000 and above not finite.
  static QH_ALWAYS_INLINE I32 magnitude_bits(F32 a) noexcept {
    return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff));
  }
  // 2^n for n in -127..128 (0 and infinity at the ends).
  static QH_ALWAYS_INLINE F32 power_of_two(I32 n) noexcept {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
  }

 private:
  static QH_ALWAYS_INLINE Block join(__m128i a, __m128i b, __m128i c, __m128i d) noexcept {
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  template <int kBytes, int kMask>
  static QH_ALWAYS_INLINE __m128i vector(const uint8_t* book, const uint16_t* code) noexcept {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(book + (*code & kMask) * kBytes));
  }
  template <int kMask>
  static QH_ALWAYS_INLINE __m128i two_vectors(const uint8_t* book, const uint16_t* codes) noexcept {
    const __m128i first =
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(book + (codes[0] & kMask) * 8));
    return _mm_castpd_si128(_mm_loadh_pd(
        _mm_castsi128_pd(first), reinterpret_cast<const double*>(book + (codes[1] & kMask) * 8)));
  }
  // 16 lanes to 4: halves added, twice.
  static QH_ALWAYS_INLINE __m128 fold(F32 a) noexcept {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  }
  static QH_ALWAYS_INLINE __mmask16 lanes(int n) noexcept {
    return static_cast<__mmask16>((1u << n) - 1u);
  }
  static QH_ALWAYS_INLINE __m256i to_half(F32 a) noexcept {
    return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static QH_ALWAYS_INLINE F32 from_bf16(__m256i a) noexcept {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
  }
};

}  // namespace
}  // namespace qh
