// codebook_sums.h: codebooks of more than 256 vectors, too many for tables. A code's vector of int8
// is fetched from the codebook, which lives in the L2 cache, and multiplied like weights of int8.
//
// One token: vectors go straight into registers where the vocabulary can (load_vectors). Several
// tokens, and elsewhere: 16 rows become int8 weights in the layout of int8 first. Same bits.
#pragma once

#include "codebook_layout.h"
#include "families/codebook_exact.h"
#include "families/int8.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat>
struct CodebookSums {
  using F32 = typename V::F32;
  using I32 = typename V::I32;
  using Multiply = Int8<V, FormatId::int8>;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);
  static constexpr int kBooks = kSpec.codebooks;
  static constexpr int kGroup = kSpec.group;
  static constexpr int kGroups = static_cast<int>(kSpan) / kGroup;
  static constexpr int kMask = (1 << kSpec.code_bits) - 1;
  static constexpr int64_t kBookBytes = (int64_t{1} << kSpec.code_bits) * kGroup;
  static constexpr int64_t kSpanBytes = kGroups * kBooks * kTileRows * 2;
  // Rows for which it pays to ask for the whole codebook first.
  static constexpr int64_t kSweepRows = 256;
  static constexpr int64_t kColumns = kSpan * kBlockSpans;
  static constexpr int64_t kPlaneBytes = kColumns * kTileRows;
  static constexpr bool kDirect = requires(const int8_t* x) { V::template load_inputs<8>(x); };

  // Sums of neighbours: 8 of a, then 8 of b.
  static QH_ALWAYS_INLINE I32 pair_sums(I32 a, I32 b) noexcept {
    return V::add(V::template every_second<0>(a, b), V::template every_second<1>(a, b));
  }

  // The rows of a tile times one token, unscaled.
  static QH_ALWAYS_INLINE F32 one_token(const uint8_t* book, const uint8_t* codes, int64_t spans,
                                        const TokenBlock& in) noexcept {
    constexpr int kParts = kGroup / 4;  // registers of kTileRows / kParts rows
    F32 total = V::zero();
    for (int64_t span = 0; span < spans; ++span) {
      const uint8_t* at = codes + span * kSpanBytes;
      I32 sums[kParts];
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) sums[part] = V::zero_i32();
#pragma GCC unroll 4
      for (int group = 0; group < kGroups; ++group) {
        const typename V::Quad x =
            V::template load_inputs<kGroup>(in.codes + span * kSpan + group * kGroup);
#pragma GCC unroll 2
        for (int m = 0; m < kBooks; ++m) {
          const uint8_t* tile = at + (group * kBooks + m) * kTileRows * 2;
          if ((group * kBooks + m) % 2 == 0) prefetch<1>(tile);
#pragma GCC unroll 4
          for (int part = 0; part < kParts; ++part) {
            const typename V::Block vectors = V::template load_vectors<kGroup, kMask>(
                book + m * kBookBytes,
                reinterpret_cast<const uint16_t*>(tile) + part * kTileRows / kParts);
            sums[part] = V::dot_unsigned(sums[part], V::xor_mask(vectors, 0x80), x);
          }
        }
      }
      I32 rows;
      if constexpr (kParts == 2) {
        rows = pair_sums(sums[0], sums[1]);
      } else {
        rows = pair_sums(pair_sums(sums[0], sums[1]), pair_sums(sums[2], sums[3]));
      }
      // Bytes were taken as unsigned, 128 too large.
      rows = V::sub(rows, V::set_i32(128 * kBooks * in.sums[2 * span]));
      total = V::add(total, V::mul(V::set(in.scales[span]), V::to_f32(rows)));
    }
    return total;
  }

  // One group of columns of a tile: kGroup / 4 blocks of int8.
  static QH_ALWAYS_INLINE void unpack_group(const uint8_t* book, const uint8_t* codes,
                                            uint8_t* out) noexcept {
    constexpr int kParts = kGroup / 4;
    typename V::Block rows[kParts];
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      rows[part] = V::template load_vectors<kGroup, kMask>(
          book, reinterpret_cast<const uint16_t*>(codes) + part * kTileRows / kParts);
    }
    if constexpr (kParts == 2) {
      V::store_block(out, V::template every_second<0>(rows[0], rows[1]));
      V::store_block(out + 64, V::template every_second<1>(rows[0], rows[1]));
    } else {
      const auto even0 = V::template every_second<0>(rows[0], rows[1]);
      const auto even1 = V::template every_second<0>(rows[2], rows[3]);
      const auto odd0 = V::template every_second<1>(rows[0], rows[1]);
      const auto odd1 = V::template every_second<1>(rows[2], rows[3]);
      V::store_block(out, V::template every_second<0>(even0, even1));
      V::store_block(out + 64, V::template every_second<0>(odd0, odd1));
      V::store_block(out + 128, V::template every_second<1>(even0, even1));
      V::store_block(out + 192, V::template every_second<1>(odd0, odd1));
    }
  }

  // int8 weights of n spans of a tile, one plane per codebook.
  static void unpack(const uint8_t* book, const uint8_t* codes, int64_t n,
                     uint8_t* planes) noexcept {
    for (int64_t i = 0; i < n * kGroups * kBooks; ++i) {
      const int64_t m = i % kBooks;
      uint8_t* out = planes + m * kPlaneBytes + i / kBooks * kGroup * kTileRows;
      prefetch<V::kTokens>(codes + i * kTileRows * 2);
      if constexpr (kDirect) {
        unpack_group(book + m * kBookBytes, codes + i * kTileRows * 2, out);
        continue;
      }
      for (int64_t r = 0; r < kTileRows; ++r) {
        const int64_t code = load_u16(codes + (i * kTileRows + r) * 2) & kMask;
        const uint8_t* vector = book + m * kBookBytes + code * kGroup;
#pragma GCC unroll 4
        for (int q = 0; q < kGroup / 4; ++q) {
          __builtin_memcpy(out + q * 64 + 4 * r, vector + 4 * q, 4);
        }
      }
    }
  }

  template <int T>
  static QH_ALWAYS_INLINE void tokens(const uint8_t* planes, int64_t span, int64_t n,
                                      const QuantizedActivations& x, int64_t token, float* y,
                                      int64_t y_stride, int n_rows) noexcept {
    const TokenBlock in{x.codes + token * x.code_stride + span * kSpan,
                        x.scales + token * x.group_stride + span,
                        x.sums + token * x.sum_stride + 2 * span,
                        x.code_stride,
                        x.group_stride,
                        x.sum_stride};
    F32 totals[T];
    float* out = y + token * y_stride;
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      totals[t] = span == 0 ? V::zero() : V::load_partial(out + t * y_stride, n_rows);
    }
    Multiply::template add_groups<T, kBooks>(planes, kPlaneBytes, n, in, totals);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) V::store_partial(out + t * y_stride, totals[t], n_rows);
  }

  static void many_tokens(const uint8_t* book, const uint8_t* codes, int64_t spans,
                          const QuantizedActivations& x, float* y, int64_t y_stride,
                          int n_rows) noexcept {
    alignas(64) uint8_t planes[kBooks * kPlaneBytes];
    for (int64_t span = 0; span < spans; span += kBlockSpans) {
      const int64_t n = spans - span < kBlockSpans ? spans - span : kBlockSpans;
      unpack(book, codes + span * kSpanBytes, n, planes);
      int64_t t = 0;
      for (; t + V::kTokens <= x.n_tokens; t += V::kTokens) {
        tokens<V::kTokens>(planes, span, n, x, t, y, y_stride, n_rows);
      }
      for (; t + 2 <= x.n_tokens; t += 2) tokens<2>(planes, span, n, x, t, y, y_stride, n_rows);
      for (; t < x.n_tokens; ++t) tokens<1>(planes, span, n, x, t, y, y_stride, n_rows);
    }
  }

  static void linear_quantized(const MatrixView& w, const QuantizedActivations& x, float* y,
                               int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    const int64_t spans = round_up(w.cols, kSpan) / kSpan;
    const uint8_t* book = w.data + codebooks_at(kSpec);
    // Front to back memory gives the codebook up several times faster than code by code.
    if (row_end - row_begin >= kSweepRows) {
      for (int64_t at = 0; at < codebook_bytes(kSpec); at += 64) {
        __builtin_prefetch(book + at, 0, 2);
      }
    }
    for (int64_t row = row_begin; row < row_end; row += kTileRows) {
      const uint8_t* codes =
          w.data + codes_at(kSpec, w.rows) + row / kTileRows * code_tile_bytes(kSpec, w.cols);
      const int n =
          row_end - row < kTileRows ? static_cast<int>(row_end - row) : static_cast<int>(kTileRows);
      const F32 factors =
          V::load(reinterpret_cast<const float*>(w.data + row_factors_at(kSpec) + 4 * row));
      if constexpr (kDirect) {
        if (x.n_tokens == 1) {
          const TokenBlock in{x.codes, x.scales, x.sums, 0, 0, 0};
          V::store_partial(y + row, V::mul(one_token(book, codes, spans, in), factors), n);
          continue;
        }
      }
      many_tokens(book, codes, spans, x, y + row, y_stride, n);
      for (int64_t t = 0; t < x.n_tokens; ++t) {
        float* out = y + t * y_stride + row;
        V::store_partial(out, V::mul(V::load_partial(out, n), factors), n);
      }
    }
  }

  static constexpr FormatKernels kernels() noexcept {
    using Exact = CodebookExact<V, kFormat>;
    return {&linear_quantized, &Exact::linear_f32, &Exact::unpack_row};
  }
};

}  // namespace
}  // namespace qh
