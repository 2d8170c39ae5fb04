// ternary.h: weights -1, 0, 1 in two bits, one float32 scale per row, int8 inputs with one scale
// per token.
//
// The field f = code + 1 is an unsigned number, so sum(code * x) = sum(f * x) - sum(x), and sum(x)
// is the same for every row. Field 3 is never written; in a hostile file it acts as code 2 on
// every instruction set.
#pragma once

#include "families/packed.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat>
struct Ternary {
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using Block = typename V::Block;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);

  static constexpr float value(uint8_t byte, int field) noexcept {
    return static_cast<float>(((byte >> (2 * field)) & 3) - 1);
  }

  template <int T>
  static QH_ALWAYS_INLINE void tile(const uint8_t* blocks, int64_t padded, const TokenBlock& in,
                                    F32 (&results)[T]) noexcept {
    const int64_t n_blocks = padded / 16;
    I32 sums[T];
    if constexpr (T == 1) {
      if constexpr (V::kUnsignedDot) {
        sums[0] = one_token_in_place(blocks, n_blocks, in.codes);
      } else {
        sums[0] = one_token_narrow(blocks, n_blocks, in.codes);
      }
    } else {
      many_tokens<T>(blocks, n_blocks, in, sums);
    }
    scale_ternary<V, T>(sums, in, blocks + n_blocks * 64, results);
  }

  template <int T>
  static QH_ALWAYS_INLINE void exact_tile(const uint8_t* blocks, int64_t padded,
                                          const ExactBlock& in, F32 (&results)[T]) noexcept {
    const int64_t n_blocks = padded / 16;
    F32 sums[T][2];
    clear<V, T>(sums);
    for (int64_t b = 0; b < n_blocks; ++b) {
      const uint8_t* p = blocks + b * 64;
      prefetch<T>(p);
      const Block packed = V::load_block(p);
      const Block f0 = V::and_mask(packed, 3);
      const Block f1 = V::and_mask(V::template shift_right<2>(packed), 3);
      const Block f2 = V::and_mask(V::template shift_right<4>(packed), 3);
      const Block f3 = V::and_mask(V::template shift_right<6>(packed), 3);
      add_exact<V, T>(sums, V::lookup(f0, kCodes), in, 16 * b);
      add_exact<V, T>(sums, V::lookup(f1, kCodes), in, 16 * b + 4);
      add_exact<V, T>(sums, V::lookup(f2, kCodes), in, 16 * b + 8);
      add_exact<V, T>(sums, V::lookup(f3, kCodes), in, 16 * b + 12);
    }
    scale_exact<V, T>(sums, blocks + n_blocks * 64, results);
  }

  // The int8 codes of one block, 64 bytes for every 4 columns (src/tiles/).
  static QH_ALWAYS_INLINE void unpack_block(const uint8_t* block, uint8_t* out) noexcept {
    const Block packed = V::load_block(block);
    V::store_block(out, V::lookup(V::and_mask(packed, 3), kCodes));
    V::store_block(out + 64, V::lookup(V::and_mask(V::template shift_right<2>(packed), 3), kCodes));
    V::store_block(out + 128,
                   V::lookup(V::and_mask(V::template shift_right<4>(packed), 3), kCodes));
    V::store_block(out + 192,
                   V::lookup(V::and_mask(V::template shift_right<6>(packed), 3), kCodes));
  }

 private:
  // The field minus one, looked up so that field 3 acts as code 2.
  alignas(16) static constexpr int8_t kCodes[16] = {-1, 0, 1, 2};

  // Fields stay where they are in the byte: the products come out 1, 4, 16 and 64 times too large
  // and are divided once per tile. No overflow: 4 * 192 * 128 per block of 16 columns, and cols is
  // below 2^18 (kMaxCols), so sums stay below 2^31.
  static QH_ALWAYS_INLINE I32 one_token_in_place(const uint8_t* blocks, int64_t n_blocks,
                                                 const int8_t* x) noexcept {
    I32 s0 = V::zero_i32();
    I32 s1 = V::zero_i32();
    I32 s2 = V::zero_i32();
    I32 s3 = V::zero_i32();
    for (int64_t b = 0; b < n_blocks; ++b) {
      const uint8_t* p = blocks + b * 64;
      prefetch<1>(p);
      const Block packed = V::load_block(p);
      const int8_t* inputs = x + 16 * b;
      s0 = V::dot_unsigned(s0, V::and_mask(packed, 0x03), V::load_quad(inputs));
      s1 = V::dot_unsigned(s1, V::and_mask(packed, 0x0c), V::load_quad(inputs + 4));
      s2 = V::dot_unsigned(s2, V::and_mask(packed, 0x30), V::load_quad(inputs + 8));
      s3 = V::dot_unsigned(s3, V::and_mask(packed, 0xc0), V::load_quad(inputs + 12));
    }
    const I32 low = V::add(s0, V::template shift_right_signed<2>(s1));
    const I32 high =
        V::add(V::template shift_right_signed<4>(s2), V::template shift_right_signed<6>(s3));
    return V::add(low, high);
  }

  // Narrow sums hold fields 0, 2 as they are and fields 1, 3 four times too large, widened every 4
  // blocks: at most 8 products of 2 * 12 * 128 = 3072 each, 24576 < 32768.
  static QH_ALWAYS_INLINE I32 one_token_narrow(const uint8_t* blocks, int64_t n_blocks,
                                               const int8_t* x) noexcept {
    I32 sum = V::zero_i32();
    int64_t b = 0;
    while (b < n_blocks) {
      const int64_t end = b + 4 < n_blocks ? b + 4 : n_blocks;
      typename V::Narrow even = V::narrow_zero();
      typename V::Narrow odd = V::narrow_zero();
      for (; b < end; ++b) {
        const uint8_t* p = blocks + b * 64;
        prefetch<1>(p);
        const Block packed = V::load_block(p);
        const Block shifted = V::template shift_right<4>(packed);
        const int8_t* inputs = x + 16 * b;
        even = V::narrow_dot(even, V::and_mask(packed, 0x03), V::load_quad(inputs));
        odd = V::narrow_dot(odd, V::and_mask(packed, 0x0c), V::load_quad(inputs + 4));
        even = V::narrow_dot(even, V::and_mask(shifted, 0x03), V::load_quad(inputs + 8));
        odd = V::narrow_dot(odd, V::and_mask(shifted, 0x0c), V::load_quad(inputs + 12));
      }
      sum = V::add(sum, V::add(V::widen(even), V::template shift_right_signed<2>(V::widen(odd))));
    }
    return sum;
  }

  // Narrow sums over 8 blocks: at most 32 products of 2 * 3 * 128 = 768 each, 24576 < 32768.
  template <int T>
  static QH_ALWAYS_INLINE void many_tokens(const uint8_t* blocks, int64_t n_blocks,
                                           const TokenBlock& in, I32 (&sums)[T]) noexcept {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[t] = V::zero_i32();
    int64_t b = 0;
    while (b < n_blocks) {
      const int64_t end = b + 8 < n_blocks ? b + 8 : n_blocks;
      typename V::Narrow narrow[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) narrow[t] = V::narrow_zero();
      for (; b < end; ++b) {
        const uint8_t* p = blocks + b * 64;
        prefetch<T>(p);
        const Block packed = V::load_block(p);
        const int8_t* inputs = in.codes + 16 * b;
        add_field<T>(narrow, V::and_mask(packed, 3), inputs, in.code_stride);
        add_field<T>(narrow, V::and_mask(V::template shift_right<2>(packed), 3), inputs + 4,
                     in.code_stride);
        add_field<T>(narrow, V::and_mask(V::template shift_right<4>(packed), 3), inputs + 8,
                     in.code_stride);
        add_field<T>(narrow, V::and_mask(V::template shift_right<6>(packed), 3), inputs + 12,
                     in.code_stride);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sums[t] = V::add(sums[t], V::widen(narrow[t]));
    }
  }

  template <int T>
  static QH_ALWAYS_INLINE void add_field(typename V::Narrow (&narrow)[T], Block field,
                                         const int8_t* inputs, int64_t stride) noexcept {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      narrow[t] = V::narrow_dot(narrow[t], field, V::load_quad(inputs + t * stride));
    }
  }
};

}  // namespace
}  // namespace qh
