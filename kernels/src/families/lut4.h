// lut4.h: 4-bit codes that stand for 16 integers (the table of the format), one float16 scale per
// group of weights, int8 inputs with one scale per 32.
//
// With o = -min(table), table[q] + o is unsigned, and sum(table[q] * x) =
// sum((table[q] + o) * x) - o * sum(x). For int4 table[q] + o is q itself: no lookup.
#pragma once

#include "families/packed.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat>
struct Lut4 {
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using Block = typename V::Block;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);
  static constexpr int kGroupBlocks = static_cast<int>(kActivationGroup) / 8;

  static constexpr int code(uint8_t byte, int nibble) noexcept {
    return kSpec.table[(byte >> (4 * nibble)) & 15];
  }

  template <int T>
  static QH_ALWAYS_INLINE void tile(const uint8_t* tile_data, int64_t padded, const TokenBlock& in,
                                    F32 (&results)[T]) noexcept {
    constexpr int kInputGroups = kSpec.group / static_cast<int>(kActivationGroup);
    const uint8_t* blocks = tile_data + group_scale_bytes(kSpec, padded);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) results[t] = V::zero();
    // Runs over scales and blocks alike, so that the next tile's first blocks are asked for too.
    const uint8_t* ahead = blocks;
    for (int64_t wide = 0; wide < padded / kSpec.group; ++wide) {
      F32 totals[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) totals[t] = V::zero();
      for (int64_t g = wide * kInputGroups; g < (wide + 1) * kInputGroups; ++g) {
        I32 sums[T];
        group<T>(blocks + g * kGroupBlocks * 64, ahead, in, g, sums);
        ahead += kGroupBlocks * 64;
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const F32 x_scale = V::set(in.scales[t * in.group_stride + g]);
          totals[t] = V::add(totals[t], V::mul(x_scale, V::to_f32(sums[t])));
        }
      }
      prefetch(ahead);
      ahead += kTileRows * 2;
      const F32 scales = group_scales(tile_data, wide);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        results[t] = V::add(results[t], V::mul(scales, totals[t]));
      }
    }
  }

  template <int T>
  static QH_ALWAYS_INLINE void exact_tile(const uint8_t* tile_data, int64_t padded,
                                          const ExactBlock& in, F32 (&results)[T]) noexcept {
    const uint8_t* blocks = tile_data + group_scale_bytes(kSpec, padded);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) results[t] = V::zero();
    for (int64_t wide = 0; wide < padded / kSpec.group; ++wide) {
      F32 sums[T][2];
      clear<V, T>(sums);
      for (int64_t b = wide * kSpec.group / 8; b < (wide + 1) * kSpec.group / 8; ++b) {
        prefetch(blocks + b * 64);
        const Block packed = V::load_block(blocks + b * 64);
        const Block low = V::and_mask(packed, 15);
        const Block high = V::and_mask(V::template shift_right<4>(packed), 15);
        add_exact<V, T>(sums, V::lookup(low, kSpec.table), in, 8 * b);
        add_exact<V, T>(sums, V::lookup(high, kSpec.table), in, 8 * b + 4);
      }
      const F32 scales = group_scales(tile_data, wide);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        results[t] = V::fma(scales, V::add(sums[t][0], sums[t][1]), results[t]);
      }
    }
  }

 private:
  static constexpr int offset() noexcept {
    int smallest = 0;
    for (const int8_t entry : kSpec.table) smallest = entry < smallest ? entry : smallest;
    return -smallest;
  }
  static constexpr int largest() noexcept {
    int best = 0;
    for (const int8_t entry : kSpec.table) best = entry > best ? entry : best;
    return best + offset();
  }
  static constexpr bool is_linear() noexcept {
    for (int q = 0; q < 16; ++q) {
      if (kSpec.table[q] + offset() != q) return false;
    }
    return true;
  }
  struct Table {
    int8_t entries[16];
  };
  static constexpr Table unsigned_table() noexcept {
    Table table{};
    for (int q = 0; q < 16; ++q) table.entries[q] = static_cast<int8_t>(kSpec.table[q] + offset());
    return table;
  }
  static constexpr int kOffset = offset();
  static constexpr Table kUnsigned = unsigned_table();
  // One group adds 8 products of two inputs each (-127..127) to a narrow sum.
  static constexpr bool kNarrow = 8 * 2 * largest() * 127 < 32768;

  static QH_ALWAYS_INLINE F32 group_scales(const uint8_t* tile_data, int64_t wide) noexcept {
    return V::load_half(reinterpret_cast<const uint16_t*>(tile_data + wide * kTileRows * 2));
  }

  // sums[t] = the exact products of one group of 32 columns.
  template <int T>
  static QH_ALWAYS_INLINE void group(const uint8_t* blocks, const uint8_t* ahead,
                                     const TokenBlock& in, int64_t g, I32 (&sums)[T]) noexcept {
    const int8_t* inputs = in.codes + g * kActivationGroup;
    typename V::Narrow narrow[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      narrow[t] = V::narrow_zero();
      sums[t] = V::zero_i32();
    }
#pragma GCC unroll 4
    for (int b = 0; b < kGroupBlocks; ++b) {
      prefetch(ahead + b * 64);
      const Block packed = V::load_block(blocks + b * 64);
      add_nibble<T>(narrow, sums, V::and_mask(packed, 15), inputs + 8 * b, in.code_stride);
      add_nibble<T>(narrow, sums, V::and_mask(V::template shift_right<4>(packed), 15),
                    inputs + 8 * b + 4, in.code_stride);
    }
    if constexpr (kNarrow || V::kUnsignedDot) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const I32 excess = V::set_i32(kOffset * in.sums[t * in.group_stride + g]);
        sums[t] = V::sub(V::widen(narrow[t]), excess);
      }
    }
  }

  template <int T>
  static QH_ALWAYS_INLINE void add_nibble(typename V::Narrow (&narrow)[T], I32 (&sums)[T],
                                          Block nibbles, const int8_t* inputs,
                                          int64_t stride) noexcept {
    Block codes = nibbles;
    if constexpr (kNarrow || V::kUnsignedDot) {
      if constexpr (!is_linear()) codes = V::lookup(nibbles, kUnsigned.entries);
    } else {
      codes = V::lookup(nibbles, kSpec.table);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const typename V::Quad x = V::load_quad(inputs + t * stride);
      if constexpr (kNarrow || V::kUnsignedDot) {
        narrow[t] = V::narrow_dot(narrow[t], codes, x);
      } else {
        sums[t] = V::dot_signed(sums[t], codes, x);
      }
    }
  }
};

}  // namespace
}  // namespace qh
