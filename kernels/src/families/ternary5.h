// ternary5.h: weights -1, 0, 1, five to a byte; otherwise as in ternary.h.
//
// A byte is t0 + 3 t1 + 9 t2 + 27 t3 + 82 t4 of digits t = code + 1. With tables of 128 bytes in
// registers, half a byte's value gives 82 t4, and what is left the other four digits in two bits
// each; elsewhere digits come off one by one: min(b, b - 82, b - 164) of unsigned bytes that wrap
// around is b without its 82 t4.
#pragma once

#include "core/ternary5.h"
#include "families/packed.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat>
struct Ternary5 {
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using Block = typename V::Block;
  using Narrow = typename V::Narrow;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);
  static constexpr int64_t kColumns = 20;
  static_assert(kSpec.block_columns == kColumns);

  static constexpr float value(uint8_t byte, int field) noexcept {
    return static_cast<float>(ternary5_digit(byte, field) - 1);
  }

  template <int T>
  static QH_ALWAYS_INLINE void tile(const uint8_t* blocks, int64_t padded, const TokenBlock& in,
                                    F32 (&results)[T]) noexcept {
    const int64_t n_blocks = padded / kColumns;
    const Ends<int8_t, T> ends(in.codes, in.code_stride, n_blocks);
    I32 sums[T];
    if constexpr (T == 1 && V::kUnsignedDot) {
      sums[0] = one_token_in_place(blocks, in.codes, ends);
    } else {
      by_digits<T>(blocks, in, ends, sums);
    }
    scale_ternary<V, T>(sums, in, blocks + n_blocks * 64, results);
  }

  template <int T>
  static QH_ALWAYS_INLINE void exact_tile(const uint8_t* blocks, int64_t padded,
                                          const ExactBlock& in, F32 (&results)[T]) noexcept {
    const int64_t n_blocks = padded / kColumns;
    const Ends<float, T> ends(in.x, in.stride, n_blocks);
    F32 sums[T][2];
    clear<V, T>(sums);
    for (int64_t b = 0; b < n_blocks; ++b) {
      prefetch<T>(blocks + b * 64);
      Block digits[5];
      split(V::load_block(blocks + b * 64), digits);
      const bool whole = b < ends.whole;
      const ExactBlock x{whole ? in.x : ends.last, whole ? in.stride : kColumns};
#pragma GCC unroll 5
      for (int i = 0; i < 5; ++i) {
        add_exact<V, T>(sums, V::lookup(digits[i], kCodes), x, (whole ? kColumns * b : 0) + 4 * i);
      }
    }
    scale_exact<V, T>(sums, blocks + n_blocks * 64, results);
  }

  // The int8 codes of one block, 64 bytes for every 4 columns (src/tiles/).
  static QH_ALWAYS_INLINE void unpack_block(const uint8_t* block, uint8_t* out) noexcept {
    Block digits[5];
    split(V::load_block(block), digits);
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) V::store_block(out + 64 * i, V::lookup(digits[i], kCodes));
  }

 private:
  alignas(16) static constexpr int8_t kCodes[16] = {-1, 0, 1};
  // Digits of 0..8, of 27 t3 by its low four bits, and of 0..8 in two bits each.
  alignas(16) static constexpr int8_t kFirst[16] = {0, 1, 2, 0, 1, 2, 0, 1, 2};
  alignas(16) static constexpr int8_t kSecond[16] = {0, 0, 0, 1, 1, 1, 2, 2, 2};
  alignas(16) static constexpr int8_t kFourth[16] = {0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1};
  alignas(16) static constexpr int8_t kFirstTwo[16] = {0, 1, 2, 4, 5, 6, 8, 9, 10};

  struct Table128 {
    uint8_t of[128];
  };
  // 82 t4 of a byte by half its value, and the other digits by what is left.
  static constexpr Table128 tops() noexcept {
    Table128 table{};
    for (int half = 0; half < 128; ++half) {
      table.of[half] =
          static_cast<uint8_t>(kTopDigit * ternary5_digit(static_cast<uint8_t>(2 * half), 4));
    }
    return table;
  }
  static constexpr Table128 lows() noexcept {
    Table128 table{};
    for (int rest = 0; rest < 128; ++rest) {
      int fields = 0;
      for (int i = 0; i < 4; ++i) fields |= ternary5_low_digit(rest, i) << (2 * i);
      table.of[rest] = static_cast<uint8_t>(fields);
    }
    return table;
  }
  alignas(64) static constexpr Table128 kTops = tops();
  alignas(64) static constexpr Table128 kLows = lows();

  // Blocks whose inputs are all there, and the inputs of the block after them with zeros behind:
  // rows of inputs are padded, but not to a multiple of 20.
  template <typename X, int T>
  struct Ends {
    int64_t whole;
    bool partial;
    X last[T * kColumns];

    Ends(const X* x, int64_t stride, int64_t n_blocks) noexcept
        : whole(stride / kColumns < n_blocks ? stride / kColumns : n_blocks),
          partial(whole < n_blocks) {
      const int64_t begin = whole * kColumns;
      const int64_t left = partial ? stride - begin : 0;
      if (!partial) return;
      for (int t = 0; t < T; ++t) {
        for (int64_t k = 0; k < kColumns; ++k) {
          last[t * kColumns + k] = k < left ? x[t * stride + begin + k] : X{0};
        }
      }
    }
  };

  // A byte without the largest of 0, step, 2 step in it.
  template <int kStep>
  static QH_ALWAYS_INLINE Block without(Block bytes) noexcept {
    return V::min_bytes(V::min_bytes(bytes, V::sub_bytes(bytes, V::set_bytes(kStep))),
                        V::sub_bytes(bytes, V::set_bytes(2 * kStep)));
  }

  // The digits of a block as they are: 0, 1, 2.
  static QH_ALWAYS_INLINE void split(Block packed, Block (&digits)[5]) noexcept {
    if constexpr (V::kTables128) {
      const Parts parts = parts_of(packed);
      digits[0] = V::and_mask(parts.of[0], 3);
      digits[1] = V::and_mask(V::template shift_right<2>(parts.of[0]), 3);
      digits[2] = V::and_mask(V::template shift_right<4>(parts.of[0]), 3);
      digits[3] = V::and_mask(V::template shift_right<6>(parts.of[0]), 3);
      // 82 and 164 differ from 0 in their top two bits: 01 and 10.
      digits[4] = V::and_mask(V::template shift_right<6>(parts.of[1]), 3);
    } else {
      const Parts parts = parts_of(packed);
      digits[0] = V::lookup(parts.of[0], kFirst);
      digits[1] = V::lookup(parts.of[0], kSecond);
      // 9 and 18 have 01 and 10 in bits 3 and 4.
      digits[2] = V::and_mask(V::template shift_right<3>(parts.of[1]), 3);
      digits[3] = V::lookup(V::and_mask(parts.of[2], 15), kFourth);
      digits[4] = V::and_mask(V::template shift_right<6>(parts.of[3]), 3);
    }
  }

  // With tables: the first four digits in two bits each, and 82 t4. Else: t0 + 3 t1, 9 t2, 27 t3
  // and 82 t4.
  struct Parts {
    Block of[V::kTables128 ? 2 : 4];
  };
  static QH_ALWAYS_INLINE Parts parts_of(Block packed) noexcept {
    if constexpr (V::kTables128) {
      const Block top = V::lookup128(V::template shift_right<1>(packed), kTops.of);
      return {{V::lookup128(V::sub_bytes(packed, top), kLows.of), top}};
    } else {
      const Block four = without<kTopDigit>(packed);
      const Block three = without<27>(four);
      const Block two = without<9>(three);
      return {{V::min_bytes(two, V::set_bytes(8)), V::sub_bytes(three, two),
               V::sub_bytes(four, three), V::sub_bytes(packed, four)}};
    }
  }

  // Adds the products of one block, each digit times a factor of its own.
  static QH_ALWAYS_INLINE void add_in_place(const Parts& parts, const int8_t* x,
                                            I32 (&sums)[5]) noexcept {
    Block fields[5];
    if constexpr (V::kTables128) {
      fields[0] = V::and_mask(parts.of[0], 0x03);
      fields[1] = V::and_mask(parts.of[0], 0x0c);
      fields[2] = V::and_mask(parts.of[0], 0x30);
      fields[3] = V::and_mask(parts.of[0], 0xc0);
      fields[4] = parts.of[1];
    } else {
      const Block two = V::lookup(parts.of[0], kFirstTwo);
      fields[0] = V::and_mask(two, 0x03);
      fields[1] = V::and_mask(two, 0x0c);
      fields[2] = parts.of[1];
      fields[3] = parts.of[2];
      fields[4] = parts.of[3];
    }
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) {
      sums[i] = V::dot_unsigned(sums[i], fields[i], V::load_quad(x + 4 * i));
    }
  }

  // A sum of multiples of kFactor, divided by it: by shifting, and by the inverse of the odd part
  // modulo 2^32.
  template <int kFactor>
  static QH_ALWAYS_INLINE I32 divide(I32 sum) noexcept {
    constexpr int kShift = __builtin_ctz(kFactor);
    constexpr uint32_t kOdd = static_cast<uint32_t>(kFactor >> kShift);
    uint32_t inverse = 1;
    for (int i = 0; i < 5; ++i) inverse *= 2u - kOdd * inverse;
    I32 shifted = sum;
    if constexpr (kShift > 0) shifted = V::template shift_right_signed<kShift>(sum);
    if constexpr (kOdd == 1) {
      return shifted;
    } else {
      return V::mul(shifted, V::set_i32(static_cast<int32_t>(inverse)));
    }
  }

  // No overflow: 4 * 192 * 128 per block of 20 columns at most, and cols is below 2^18 (kMaxCols).
  // Two blocks are taken apart while the two before are multiplied: the tables have a latency of
  // several cycles each.
  static QH_ALWAYS_INLINE I32 one_token_in_place(const uint8_t* blocks, const int8_t* x,
                                                 const Ends<int8_t, 1>& ends) noexcept {
    I32 sums[5];
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) sums[i] = V::zero_i32();
    int64_t b = 0;
    if constexpr (V::kTables128) {
      if (ends.whole >= 2) {
        Parts first = parts_of(V::load_block(blocks));
        Parts second = parts_of(V::load_block(blocks + 64));
        for (; b + 4 <= ends.whole; b += 2) {
          const uint8_t* p = blocks + b * 64 + 128;
          prefetch<1>(p);
          const Parts third = parts_of(V::load_block(p));
          add_in_place(first, x + kColumns * b, sums);
          prefetch<1>(p + 64);
          const Parts fourth = parts_of(V::load_block(p + 64));
          add_in_place(second, x + kColumns * b + kColumns, sums);
          first = third;
          second = fourth;
        }
        add_in_place(first, x + kColumns * b, sums);
        add_in_place(second, x + kColumns * b + kColumns, sums);
        b += 2;
      }
    }
    for (; b < ends.whole; ++b) {
      prefetch<1>(blocks + b * 64);
      add_in_place(parts_of(V::load_block(blocks + b * 64)), x + kColumns * b, sums);
    }
    if (ends.partial) add_in_place(parts_of(V::load_block(blocks + b * 64)), ends.last, sums);
    const I32 low = V::add(sums[0], divide<4>(sums[1]));
    const I32 high = V::kTables128 ? V::add(divide<16>(sums[2]), divide<64>(sums[3]))
                                   : V::add(divide<9>(sums[2]), divide<27>(sums[3]));
    return V::add(V::add(low, high), divide<kTopDigit>(sums[4]));
  }

  // Narrow sums over 12 blocks: at most 60 times two products of 2 * 128, 30720 < 32768.
  template <int T>
  static QH_ALWAYS_INLINE void by_digits(const uint8_t* blocks, const TokenBlock& in,
                                         const Ends<int8_t, T>& ends, I32 (&sums)[T]) noexcept {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[t] = V::zero_i32();
    int64_t b = 0;
    while (b < ends.whole) {
      const int64_t end = b + 12 < ends.whole ? b + 12 : ends.whole;
      Narrow narrow[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) narrow[t] = V::narrow_zero();
      for (; b < end; ++b) {
        prefetch<T>(blocks + b * 64);
        add_digits<T>(blocks + b * 64, in.codes + kColumns * b, in.code_stride, narrow);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sums[t] = V::add(sums[t], V::widen(narrow[t]));
    }
    if (!ends.partial) return;
    Narrow narrow[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) narrow[t] = V::narrow_zero();
    add_digits<T>(blocks + b * 64, ends.last, kColumns, narrow);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[t] = V::add(sums[t], V::widen(narrow[t]));
  }

  template <int T>
  static QH_ALWAYS_INLINE void add_digits(const uint8_t* block, const int8_t* x, int64_t stride,
                                          Narrow (&narrow)[T]) noexcept {
    Block digits[5];
    split(V::load_block(block), digits);
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const typename V::Quad quad = V::load_quad(x + t * stride + 4 * i);
        narrow[t] = V::narrow_dot(narrow[t], digits[i], quad);
      }
    }
  }
};

}  // namespace
}  // namespace qh
