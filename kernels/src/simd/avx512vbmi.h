// avx512vbmi.h: the vocabulary of avx512vnni.h, and tables of 256 entries that are looked up in
// registers by the bytes of a block (VBMI: Ice Lake, Zen 4 and newer).
#pragma once

#include "simd/avx512vnni.h"

namespace qh {
namespace {

struct SimdVbmi : Simd {
  using Simd::lookup;
  // 256 bytes, entry by entry.
  struct ByteTable {
    __m512i quarters[4];
  };
  static constexpr bool kTables128 = true;
  // table[low seven bits of the byte]; the table is aligned to 64 bytes.
  static QH_ALWAYS_INLINE Block lookup128(Block index, const uint8_t* table) noexcept {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
  }
  // One bit per byte of a block.
  using TopBits = __mmask64;

  static QH_ALWAYS_INLINE ByteTable load_table(const uint8_t* p) noexcept {
    return {{_mm512_load_si512(p), _mm512_load_si512(p + 64), _mm512_load_si512(p + 128),
             _mm512_load_si512(p + 192)}};
  }
  static QH_ALWAYS_INLINE TopBits top_bits(Block codes) noexcept {
    return _mm512_movepi8_mask(codes);
  }
  // table[code] for every byte; top are the top_bits of the codes.
  static QH_ALWAYS_INLINE Block lookup(const ByteTable& table, Block codes, TopBits top) noexcept {
    const __m512i low = _mm512_permutex2var_epi8(table.quarters[0], codes, table.quarters[1]);
    const __m512i high = _mm512_permutex2var_epi8(table.quarters[2], codes, table.quarters[3]);
    return _mm512_mask_blend_epi8(top, low, high);
  }

  // Interleaves the lower or upper 8 bytes of every 16 of a and b, by bytes or by pairs.
  static QH_ALWAYS_INLINE Block zip_low(Block a, Block b) noexcept {
    return _mm512_unpacklo_epi8(a, b);
  }
  static QH_ALWAYS_INLINE Block zip_high(Block a, Block b) noexcept {
    return _mm512_unpackhi_epi8(a, b);
  }
  static QH_ALWAYS_INLINE Block zip_low_pairs(Block a, Block b) noexcept {
    return _mm512_unpacklo_epi16(a, b);
  }
  static QH_ALWAYS_INLINE Block zip_high_pairs(Block a, Block b) noexcept {
    return _mm512_unpackhi_epi16(a, b);
  }
  static QH_ALWAYS_INLINE Block add_saturated(Block a, Block b) noexcept {
    return _mm512_adds_epi8(a, b);
  }
  // int16: sums that wrap around.
  static QH_ALWAYS_INLINE Block add_words(Block a, Block b) noexcept {
    return _mm512_add_epi16(a, b);
  }
  // acc + both products of the int16 pairs in each 32 bits.
  static QH_ALWAYS_INLINE I32 dot_words(I32 acc, Block a, Block b) noexcept {
    return _mm512_dpwssd_epi32(acc, a, b);
  }
  static QH_ALWAYS_INLINE Block set_words(int32_t even, int32_t odd) noexcept {
    return _mm512_set1_epi32((even & 0xffff) |
                             static_cast<int32_t>(static_cast<uint32_t>(odd) << 16));
  }
  static QH_ALWAYS_INLINE void store_i32(int32_t* p, I32 a) noexcept { _mm512_store_si512(p, a); }

  // The low and the high bytes of 64 int32, saturated to 16 bits, in order.
  struct BytePlanes {
    Block low, high;
  };
  static QH_ALWAYS_INLINE BytePlanes byte_planes(const I32 (&a)[4]) noexcept {
    const __m512i first = _mm512_packs_epi32(a[0], a[1]);
    const __m512i second = _mm512_packs_epi32(a[2], a[3]);
    const __m512i order = _mm512_load_si512(kPackOrder);
    const __m512i next = _mm512_add_epi8(order, _mm512_set1_epi8(1));
    return {_mm512_permutex2var_epi8(first, order, second),
            _mm512_permutex2var_epi8(first, next, second)};
  }
  // Rows of a block of words: even and odd lanes as dot_words leaves them, 16 rows in order. half
  // 0: those of words 0..3 of every 8, 1: of words 4..7.
  template <int kHalf>
  static QH_ALWAYS_INLINE I32 rows_of(I32 even, I32 odd) noexcept {
    const __m512i first =
        _mm512_setr_epi32(0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    const __m512i order = _mm512_add_epi32(first, _mm512_set1_epi32(2 * kHalf));
    return _mm512_permutex2var_epi32(even, order, odd);
  }

 private:
  // Of 64 int16 that packs leaves in two registers: where the low byte of each is.
  alignas(64) static constexpr uint8_t kPackOrder[64] = {
      0,  2,  4,  6,  16, 18, 20, 22, 32,  34,  36,  38,  48,  50,  52,  54,
      8,  10, 12, 14, 24, 26, 28, 30, 40,  42,  44,  46,  56,  58,  60,  62,
      64, 66, 68, 70, 80, 82, 84, 86, 96,  98,  100, 102, 112, 114, 116, 118,
      72, 74, 76, 78, 88, 90, 92, 94, 104, 106, 108, 110, 120, 122, 124, 126};
};

}  // namespace
}  // namespace qh
