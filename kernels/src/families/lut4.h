// lut4.h: 4-bit codes that stand for 16 integers (the table of the format), one scale per group of
// weights, int8 inputs with one scale per 32.
//
// With o = -min(table), table[q] + o is unsigned, and sum(table[q] * x) =
// sum((table[q] + o) * x) - o * sum(x). For int4 table[q] + o is q itself: no lookup.
#pragma once

#include "families/packed.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat, Family kFamily>
struct GroupScaling;  // src/tiles/

template <typename V, FormatId kFormat>
struct Lut4 {
  friend GroupScaling<V, kFormat, Family::lut4>;
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using Block = typename V::Block;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);
  static constexpr const Lut4Table& kTable = *kSpec.table;

  static constexpr float value(uint8_t byte, int nibble) noexcept {
    return kTable.values[(byte >> (4 * nibble)) & 15];
  }

  template <int T>
  static QH_ALWAYS_INLINE void tile(const uint8_t* tile_data, int64_t padded, const TokenBlock& in,
                                    F32 (&results)[T]) noexcept {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) results[t] = V::zero();
    const uint8_t* p = tile_data;
    int64_t k = 0;
    for (; k + kSpanColumns <= padded; k += kSpanColumns) {
      span<T>(p, in, k, kSpanColumns, results);
      p += span_bytes(kSpec);
    }
    if (k < padded) {
      span<T>(p, in, k, padded - k, results);
      p += 64 + (padded - k) / 8 * 64;
    }
    finish<T>(p, kTable.step, results);
  }

  template <int T>
  static QH_ALWAYS_INLINE void exact_tile(const uint8_t* tile_data, int64_t padded,
                                          const ExactBlock& in, F32 (&results)[T]) noexcept {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) results[t] = V::zero();
    for (int64_t wide = 0; wide < padded / kSpec.group; ++wide) {
      F32 sums[T][2];
      clear<V, T>(sums);
      for (int64_t b = wide * kSpec.group / 8; b < (wide + 1) * kSpec.group / 8; ++b) {
        const uint8_t* block = tile_data + block_at(kSpec, b);
        prefetch<T>(block);
        const Block packed = V::load_block(block);
        add_values<T>(sums, V::and_mask(packed, 15), in, 8 * b);
        add_values<T>(sums, V::and_mask(V::template shift_right<4>(packed), 15), in, 8 * b + 4);
      }
      const F32 scales = group_scales(tile_data + group_scales_at(kSpec, wide));
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        results[t] = V::fma(scales, V::add(sums[t][0], sums[t][1]), results[t]);
      }
    }
    finish<T>(tile_data + row_scales_at(kSpec, padded),
              kIntegersAreExact ? kTable.step : kScaleUnit, results);
  }

  // The integers of one block as int8, 64 bytes for every 4 columns (src/tiles/).
  static QH_ALWAYS_INLINE void unpack_block(const uint8_t* block, uint8_t* out) noexcept {
    const Block packed = V::load_block(block);
    const Block high = V::and_mask(V::template shift_right<4>(packed), 15);
    V::store_block(out, V::lookup(V::and_mask(packed, 15), kTable.integers));
    V::store_block(out + 64, V::lookup(high, kTable.integers));
  }

 private:
  static constexpr int offset() noexcept {
    int smallest = 0;
    for (const int8_t entry : kTable.integers) smallest = entry < smallest ? entry : smallest;
    return -smallest;
  }
  static constexpr int largest() noexcept {
    int best = 0;
    for (const int8_t entry : kTable.integers) best = entry > best ? entry : best;
    return best + offset();
  }
  static constexpr bool is_linear() noexcept {
    for (int q = 0; q < 16; ++q) {
      if (kTable.integers[q] + offset() != q) return false;
    }
    return true;
  }
  // Whether products with float32 inputs can use the integers too.
  static constexpr bool integers_are_exact() noexcept {
    for (int q = 0; q < 16; ++q) {
      const float integer = static_cast<float>(kTable.integers[q]);
      if (integer * kTable.step != kTable.values[q] * kScaleUnit) return false;
    }
    return true;
  }
  struct Table {
    int8_t entries[16];
  };
  static constexpr Table unsigned_table() noexcept {
    Table table{};
    for (int q = 0; q < 16; ++q) {
      table.entries[q] = static_cast<int8_t>(kTable.integers[q] + offset());
    }
    return table;
  }
  // Blocks whose products a narrow sum holds, 0 where not even one: each block adds two narrow dots
  // of two products of an unsigned code and an input in -127..127.
  static constexpr int part_blocks() noexcept {
    if (V::kUnsignedDot) return kPieceBlocks;
    for (int blocks = kPieceBlocks; blocks > 0; blocks /= 2) {
      if (blocks * 2 * 2 * largest() * 127 < 32768) return blocks;
    }
    return 0;
  }

  // Columns that follow one line of scales.
  static constexpr int64_t kSpanColumns = span_columns(kSpec);
  // Columns of one step of the loop over a span.
  static constexpr int64_t kStep = kSpec.group < kActivationGroup ? kActivationGroup : kSpec.group;
  // Columns that share both scales.
  static_assert(kSpec.group % kActivationGroup == 0 || 2 * kSpec.group == kActivationGroup);
  static_assert(kSpanColumns % kStep == 0);
  static constexpr int64_t kPiece = kSpec.group < kActivationGroup ? kSpec.group : kActivationGroup;
  static constexpr int kPieceBlocks = static_cast<int>(kPiece) / 8;
  // What a group scale as read has to be multiplied by.
  static constexpr float kScaleUnit = kSpec.scale == ScaleType::e4m3 ? 256.0f : 1.0f;
  static constexpr int kOffset = offset();
  static constexpr Table kUnsigned = unsigned_table();
  static constexpr int kPartBlocks = part_blocks();
  static constexpr bool kIntegersAreExact = integers_are_exact();

  static QH_ALWAYS_INLINE F32 group_scales(const uint8_t* scales) noexcept {
    if constexpr (kSpec.scale == ScaleType::e8m0) {
      return V::load_e8m0(scales);
    } else if constexpr (kSpec.scale == ScaleType::e4m3) {
      return V::load_e4m3(scales);
    } else {
      return V::load_half(reinterpret_cast<const uint16_t*>(scales));
    }
  }

  // results *= step, and the row scales of a format that has them.
  template <int T>
  static QH_ALWAYS_INLINE void finish(const uint8_t* row_scales, float step,
                                      F32 (&results)[T]) noexcept {
    if (!kSpec.row_scales && step == 1.0f) return;
    F32 factor = V::set(step);
    if constexpr (kSpec.row_scales) {
      prefetch<T>(row_scales);
      factor = V::mul(V::load(reinterpret_cast<const float*>(row_scales)), factor);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) results[t] = V::mul(results[t], factor);
  }

  // The columns [first, first + columns), from their line of scales on.
  template <int T>
  static QH_ALWAYS_INLINE void span(const uint8_t* p, const TokenBlock& in, int64_t first,
                                    int64_t columns, F32 (&results)[T]) noexcept {
    prefetch<T>(p);
    const uint8_t* scales = p;
    const uint8_t* blocks = p + 64;
    for (int64_t k = 0; k < columns; k += kStep) {
      const int64_t group = (first + k) / kActivationGroup;
      if constexpr (kSpec.group < kActivationGroup) {
        narrow_groups<T>(scales, blocks, in, group, results);
      } else {
        wide_group<T>(scales, blocks, in, group, results);
      }
      scales += kStep / kSpec.group * group_scale_bytes(kSpec);
      blocks += kStep / 8 * 64;
    }
  }

  // A weight group of 32 columns or more, from input group `first` on.
  template <int T>
  static QH_ALWAYS_INLINE void wide_group(const uint8_t* scales, const uint8_t* blocks,
                                          const TokenBlock& in, int64_t first,
                                          F32 (&results)[T]) noexcept {
    F32 totals[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) totals[t] = V::zero();
    for (int64_t i = 0; i < kStep / kPiece; ++i) {
      const int64_t g = first + i;
      I32 sums[T];
      piece<T>(blocks + i * kPieceBlocks * 64, in, g, 0, sums);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const F32 x_scale = V::set(in.scales[t * in.group_stride + g]);
        totals[t] = V::add(totals[t], V::mul(x_scale, V::to_f32(sums[t])));
      }
    }
    const F32 w_scales = group_scales(scales);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      results[t] = V::add(results[t], V::mul(w_scales, totals[t]));
    }
  }

  // Input group g, with two weight groups in it.
  template <int T>
  static QH_ALWAYS_INLINE void narrow_groups(const uint8_t* scales, const uint8_t* blocks,
                                             const TokenBlock& in, int64_t g,
                                             F32 (&results)[T]) noexcept {
    F32 totals[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) totals[t] = V::zero();
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      I32 sums[T];
      piece<T>(blocks + half * kPieceBlocks * 64, in, g, half, sums);
      const F32 w_scales = group_scales(scales + half * group_scale_bytes(kSpec));
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        totals[t] = V::add(totals[t], V::mul(w_scales, V::to_f32(sums[t])));
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const F32 x_scale = V::set(in.scales[t * in.group_stride + g]);
      results[t] = V::add(results[t], V::mul(x_scale, totals[t]));
    }
  }

  // sums[t] = the exact products of the kPiece columns that are input group g or a half of it.
  template <int T>
  static QH_ALWAYS_INLINE void piece(const uint8_t* blocks, const TokenBlock& in, int64_t g,
                                     int half, I32 (&sums)[T]) noexcept {
    constexpr int kPart = kPartBlocks > 0 ? kPartBlocks : kPieceBlocks;
    const int8_t* inputs = in.codes + g * kActivationGroup + half * kPiece;
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[t] = V::zero_i32();
#pragma GCC unroll 2
    for (int part = 0; part < kPieceBlocks; part += kPart) {
      typename V::Narrow narrow[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) narrow[t] = V::narrow_zero();
#pragma GCC unroll 4
      for (int b = part; b < part + kPart; ++b) {
        prefetch<T>(blocks + b * 64);
        const Block packed = V::load_block(blocks + b * 64);
        add_nibble<T>(narrow, sums, V::and_mask(packed, 15), inputs + 8 * b, in.code_stride);
        add_nibble<T>(narrow, sums, V::and_mask(V::template shift_right<4>(packed), 15),
                      inputs + 8 * b + 4, in.code_stride);
      }
      if constexpr (kPartBlocks > 0) {
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const I32 wide = V::widen(narrow[t]);
          sums[t] = part == 0 ? wide : V::add(sums[t], wide);
        }
      }
    }
    if constexpr (kPartBlocks > 0) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const int32_t excess = kOffset * input_sum(in, t, g, half);
        sums[t] = V::sub(sums[t], V::set_i32(excess));
      }
    }
  }

  // The sum of the input codes of a piece.
  static QH_ALWAYS_INLINE int32_t input_sum(const TokenBlock& in, int t, int64_t g,
                                            int half) noexcept {
    const int32_t* sums = in.sums + t * in.sum_stride + 2 * g;
    if constexpr (kPiece == kActivationGroup) return sums[0];
    return half == 0 ? sums[1] : sums[0] - sums[1];
  }

  template <int T>
  static QH_ALWAYS_INLINE void add_values(F32 (&sums)[T][2], Block nibbles, const ExactBlock& in,
                                          int64_t column) noexcept {
    if constexpr (kIntegersAreExact) {
      add_exact<V, T>(sums, V::lookup(nibbles, kTable.integers), in, column);
    } else {
      add_exact<V, T>(sums, V::template lookup_f32<0>(nibbles, kTable.values),
                      V::template lookup_f32<1>(nibbles, kTable.values),
                      V::template lookup_f32<2>(nibbles, kTable.values),
                      V::template lookup_f32<3>(nibbles, kTable.values), in, column);
    }
  }

  template <int T>
  static QH_ALWAYS_INLINE void add_nibble(typename V::Narrow (&narrow)[T], I32 (&sums)[T],
                                          Block nibbles, const int8_t* inputs,
                                          int64_t stride) noexcept {
    Block codes = nibbles;
    if constexpr (kPartBlocks > 0) {
      if constexpr (!is_linear()) codes = V::lookup(nibbles, kUnsigned.entries);
    } else {
      codes = V::lookup(nibbles, kTable.integers);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const typename V::Quad x = V::load_quad(inputs + t * stride);
      if constexpr (kPartBlocks > 0) {
        narrow[t] = V::narrow_dot(narrow[t], codes, x);
      } else if constexpr (T == 1) {
        sums[t] = V::dot_once(sums[t], codes, x);
      } else {
        sums[t] = V::dot_signed(sums[t], codes, x);
      }
    }
  }
};

}  // namespace
}  // namespace qh
