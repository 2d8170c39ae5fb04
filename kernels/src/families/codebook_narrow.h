// codebook_narrow.h: many tokens times a matrix of a table format. Some columns of 64 rows become
// int8 weights in the layout of int8 (in the cache), which the kernel of int8 multiplies.
#pragma once

#include "codebook_layout.h"
#include "families/int8.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat>
struct CodebookNarrow {
  using F32 = typename V::F32;
  using Multiply = Int8<V, FormatId::int8>;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);
  static constexpr int kGroups = static_cast<int>(kSpan / kSpec.group);
  static constexpr int kBooks = kSpec.codebooks;
  static constexpr bool kInRegisters = requires { typename V::ByteTable; };
  static constexpr int64_t kTiles = kLookupRows / kTileRows;
  // Spans unpacked at a time, as many as leave sums of many tokens alone for a while: 64 KiB.
  static constexpr int64_t kSpans = 32;

  // Narrowed codebooks: [codebook][column of the group][256].
  struct Books {
    alignas(64) int8_t entries[kBooks][kSpec.group][256];
  };
  // Tiles of 16 rows in the layout of int8, without its scales.
  struct Rows {
    alignas(64) uint8_t tiles[kTiles][kSpan * kSpans * kTileRows];
  };

  static void narrow_books(const MatrixView& w, int32_t multiplier, Books& books) noexcept {
    for (int m = 0; m < kBooks; ++m) {
      for (int j = 0; j < kSpec.group; ++j) {
        for (int c = 0; c < 256; ++c) {
          const int32_t entry = codebook_entry(kSpec, w.data, m, c, j);
          books.entries[m][j][c] = static_cast<int8_t>(narrowed(entry, multiplier));
        }
      }
    }
  }

  // Columns 4q..4q+3 of a group, which begins at `column` of the columns here. codes: of the
  // group's first codebook, those of the next are stride further.
  static QH_ALWAYS_INLINE void quad(const uint8_t* codes, int64_t stride, const Books& books, int q,
                                    int64_t column, Rows& rows) noexcept {
    if constexpr (kInRegisters) {
      using Block = typename V::Block;
      Block sums[4];
#pragma GCC unroll 8
      for (int m = 0; m < kBooks; ++m) {
        const Block block = V::load_block(codes + m * stride);
        const typename V::TopBits top = V::top_bits(block);
#pragma GCC unroll 4
        for (int t = 0; t < 4; ++t) {
          const int8_t* book = books.entries[m][4 * q + t];
          const Block found =
              V::lookup(V::load_table(reinterpret_cast<const uint8_t*>(book)), block, top);
          sums[t] = m == 0 ? found : V::add_saturated(sums[t], found);
        }
      }
      const Block low01 = V::zip_low(sums[0], sums[1]);
      const Block low23 = V::zip_low(sums[2], sums[3]);
      const Block high01 = V::zip_high(sums[0], sums[1]);
      const Block high23 = V::zip_high(sums[2], sums[3]);
      V::store_block(rows.tiles[0] + column * kTileRows, V::zip_low_pairs(low01, low23));
      V::store_block(rows.tiles[1] + column * kTileRows, V::zip_high_pairs(low01, low23));
      V::store_block(rows.tiles[2] + column * kTileRows, V::zip_low_pairs(high01, high23));
      V::store_block(rows.tiles[3] + column * kTileRows, V::zip_high_pairs(high01, high23));
    } else {
      for (int64_t row = 0; row < kLookupRows; ++row) {
        uint8_t* out = rows.tiles[row / kTileRows] + column * kTileRows + row % kTileRows * 4;
        for (int t = 0; t < 4; ++t) {
          int32_t sum = 0;
          for (int m = 0; m < kBooks; ++m) {
            sum += books.entries[m][4 * q + t][codes[m * stride + byte_of_row(row)]];
            sum = sum > 127 ? 127 : sum < -128 ? -128 : sum;
          }
          out[t] = static_cast<uint8_t>(sum);
        }
      }
    }
  }

  // n spans from `span` on, of 64 rows.
  static void unpack(const MatrixView& w, int64_t row, int64_t span, int64_t n, const Books& books,
                     Rows& rows) noexcept {
    const uint8_t* codes = w.data + codes_at(kSpec, w.rows);
    for (int64_t i = 0; i < n; ++i) {
      const LookupPlace place = lookup_place(kSpec, w.rows, span + i, row);
      for (int group = 0; group < kGroups; ++group) {
        const uint8_t* at = codes + place.at + group * kBooks * place.stride;
        for (int q = 0; q < kSpec.group / 4; ++q) {
          quad(at, place.stride, books, q, i * kSpan + group * kSpec.group + 4 * q, rows);
        }
      }
    }
  }

  // The products of n spans from `span` on, on top of those before; the last ones are scaled.
  template <int T>
  static QH_ALWAYS_INLINE void tokens(const uint8_t* tile, int64_t span, int64_t n, bool last,
                                      const QuantizedActivations& x, int64_t token, F32 factors,
                                      float* y, int64_t y_stride, int n_rows) noexcept {
    const TokenBlock in{x.codes + token * x.code_stride + span * kSpan,
                        x.scales + token * x.group_stride + span,
                        x.sums + token * x.sum_stride + 2 * span,
                        x.code_stride,
                        x.group_stride,
                        x.sum_stride};
    float* out = y + token * y_stride;
    F32 totals[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      totals[t] = span == 0 ? V::zero() : V::load_partial(out + t * y_stride, n_rows);
    }
    Multiply::template add_groups<T>(tile, 0, n, in, totals);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const F32 result = last ? V::mul(totals[t], factors) : totals[t];
      V::store_partial(out + t * y_stride, result, n_rows);
    }
  }

  static void linear(const MatrixView& w, const QuantizedActivations& x, float* y, int64_t y_stride,
                     int64_t row_begin, int64_t row_end) noexcept {
    const Narrowing narrow = narrowing(w.data);
    Books books;
    narrow_books(w, narrow.multiplier, books);
    const int64_t spans = round_up(w.cols, kSpan) / kSpan;
    Rows rows;
    for (int64_t row = row_begin; row < row_end; row += kLookupRows) {
      const int64_t n_rows = row_end - row < kLookupRows ? row_end - row : kLookupRows;
      for (int64_t span = 0; span < spans; span += kSpans) {
        const int64_t n = spans - span < kSpans ? spans - span : kSpans;
        unpack(w, row, span, n, books, rows);
        for (int64_t at = 0; at < n_rows; at += kTileRows) {
          const uint8_t* tile = rows.tiles[at / kTileRows];
          const uint8_t* stored = w.data + row_factors_at(kSpec) + 4 * (row + at);
          const F32 factors =
              V::mul(V::load(reinterpret_cast<const float*>(stored)), V::set(narrow.step));
          const int n_out =
              n_rows - at < kTileRows ? static_cast<int>(n_rows - at) : static_cast<int>(kTileRows);
          const bool last = span + kSpans >= spans;
          float* out = y + row + at;
          int64_t t = 0;
          for (; t + V::kTokens <= x.n_tokens; t += V::kTokens) {
            tokens<V::kTokens>(tile, span, n, last, x, t, factors, out, y_stride, n_out);
          }
          for (; t + 2 <= x.n_tokens; t += 2) {
            tokens<2>(tile, span, n, last, x, t, factors, out, y_stride, n_out);
          }
          for (; t < x.n_tokens; ++t) {
            tokens<1>(tile, span, n, last, x, t, factors, out, y_stride, n_out);
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace qh
