// codebook_tables.h: codebooks of 256 vectors. For 32 inputs at a time, the products of all vectors
// with the inputs are put into tables of 13 or 14 bits, and every code of every row is a lookup.
//
// With byte lookups in registers (SimdVbmi) a table is two planes of 256 bytes, 64 rows are looked
// up at once, and a table stays in registers for 256 rows. Elsewhere tables are int16 in memory.
// Tables cost as much as some 500 rows, so that a split by columns is better than one by rows.
// Many tokens multiply weights of 8 bits, unpacked tile by tile, with the kernel of int8.
#pragma once

#include "codebook_layout.h"
#include "families/codebook_exact.h"
#include "families/codebook_narrow.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat>
struct CodebookTables {
  using F32 = typename V::F32;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);
  static constexpr int kLookups = static_cast<int>(lookups(kSpec));
  static constexpr int kGroups = static_cast<int>(kSpan / kSpec.group);
  static constexpr int kBooks = kSpec.codebooks;
  static constexpr int64_t kPassRows = row_unit(kSpec);
  static constexpr int kPassBlocks = static_cast<int>(kPassRows / kLookupRows);
  static constexpr bool kInRegisters = requires { typename V::ByteTable; };
  // Rows whose sums are kept: 32 KiB of int32. Fewer repeat the making of tables.
  static constexpr int64_t kPanelRows = 8192;

  struct Tables {
    // In registers: 256 low bytes, then 256 high bytes, of each lookup.
    alignas(64) int16_t entries[kLookups][256];
  };

  static const uint8_t* books(const MatrixView& w) noexcept { return w.data + codebooks_at(kSpec); }

  static QH_ALWAYS_INLINE void make_tables(const uint8_t* codebooks, const int8_t* x,
                                           Tables& tables) noexcept {
    if constexpr (kInRegisters) {
      constexpr int kShared = kGroups > 1 ? 2 : 1;
      for (int group = 0; group < kGroups; group += kShared) {
        for (int m = 0; m < kBooks; ++m) make_planes<kShared>(codebooks, x, group, m, tables);
      }
    } else {
      for (int group = 0; group < kGroups; ++group) {
        for (int m = 0; m < kBooks; ++m) make_words(codebooks, x, group, m, tables);
      }
    }
  }

  // The tables of codebook m for kShared groups, which read the codebook once.
  template <int kShared>
  static QH_ALWAYS_INLINE void make_planes(const uint8_t* codebooks, const int8_t* x, int group,
                                           int m, Tables& tables) noexcept {
    constexpr int kPairs = kSpec.group / 2;
    const uint8_t* book = codebooks + m * kPairs * 1024;
    typename V::Block inputs[kShared][kPairs];
#pragma GCC unroll 2
    for (int i = 0; i < kShared; ++i) {
#pragma GCC unroll 16
      for (int p = 0; p < kPairs; ++p) {
        const int8_t* pair = x + (group + i) * kSpec.group + 2 * p;
        inputs[i][p] = V::set_words(pair[0], pair[1]);
      }
    }
    for (int quarter = 0; quarter < 4; ++quarter) {
      typename V::I32 dots[kShared][4];
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
#pragma GCC unroll 2
        for (int i = 0; i < kShared; ++i) {
          dots[i][part] = V::set_i32((1 << kSpec.table_shift) >> 1);
        }
#pragma GCC unroll 16
        for (int p = 0; p < kPairs; ++p) {
          const typename V::Block entries =
              V::load_block(book + p * 1024 + quarter * 256 + part * 64);
#pragma GCC unroll 2
          for (int i = 0; i < kShared; ++i) {
            dots[i][part] = V::dot_words(dots[i][part], entries, inputs[i][p]);
          }
        }
#pragma GCC unroll 2
        for (int i = 0; i < kShared; ++i) {
          dots[i][part] = V::template shift_right_signed<kSpec.table_shift>(dots[i][part]);
        }
      }
#pragma GCC unroll 2
      for (int i = 0; i < kShared; ++i) {
        const typename V::BytePlanes planes = V::byte_planes(dots[i]);
        uint8_t* table = reinterpret_cast<uint8_t*>(tables.entries[(group + i) * kBooks + m]);
        V::store_block(table + quarter * 64, planes.low);
        V::store_block(table + 256 + quarter * 64, planes.high);
      }
    }
  }

  static void make_words(const uint8_t* codebooks, const int8_t* x, int group, int m,
                         Tables& tables) noexcept {
    constexpr int kPairs = kSpec.group / 2;
    int32_t dots[256];
    for (int c = 0; c < 256; ++c) dots[c] = (1 << kSpec.table_shift) >> 1;
    for (int p = 0; p < kPairs; ++p) {
      const int32_t first = x[group * kSpec.group + 2 * p];
      const int32_t second = x[group * kSpec.group + 2 * p + 1];
      const uint8_t* pairs = codebooks + (m * kPairs + p) * 1024;
      for (int c = 0; c < 256; ++c) {
        dots[c] += load_i16(pairs + 4 * c) * first + load_i16(pairs + 4 * c + 2) * second;
      }
    }
    int16_t* table = tables.entries[group * kBooks + m];
    for (int c = 0; c < 256; ++c) {
      const int32_t entry = dots[c] >> kSpec.table_shift;
      table[c] = static_cast<int16_t>(entry > 32767 ? 32767 : entry < -32768 ? -32768 : entry);
    }
  }

  // acc += weight * sums of one span, for R * 64 rows.
  template <int R>
  static QH_ALWAYS_INLINE void pass(const uint8_t* codes, const uint8_t* ahead,
                                    const Tables& tables, int32_t weight, int32_t* acc) noexcept {
    if constexpr (kInRegisters) {
      pass_in_registers<R>(codes, ahead, tables, weight, acc);
    } else {
      for (int r = 0; r < R; ++r) {
        uint16_t sums[kLookupRows] = {};
        for (int l = 0; l < kLookups; ++l) {
          const uint8_t* block = codes + (l * R + r) * 64;
          __builtin_prefetch(ahead + (l * R + r) * 64, 0, 2);
          const int16_t* table = tables.entries[l];
          for (int i = 0; i < 64; ++i) {
            sums[i] = static_cast<uint16_t>(sums[i] + static_cast<uint16_t>(table[block[i]]));
          }
        }
        int32_t* rows = acc + r * kLookupRows;
        for (int64_t row = 0; row < kLookupRows; ++row) {
          rows[row] += weight * static_cast<int16_t>(sums[byte_of_row(row)]);
        }
      }
    }
  }

  template <int R>
  static QH_ALWAYS_INLINE void pass_in_registers(const uint8_t* codes, const uint8_t* ahead,
                                                 const Tables& tables, int32_t weight,
                                                 int32_t* acc) noexcept {
    using Block = typename V::Block;
    Block first[R];
    Block second[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) first[r] = second[r] = V::zero_i32();
    for (int l = 0; l < kLookups; ++l) {
      const uint8_t* table = reinterpret_cast<const uint8_t*>(tables.entries[l]);
      const typename V::ByteTable low_bytes = V::load_table(table);
      const typename V::ByteTable high_bytes = V::load_table(table + 256);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        __builtin_prefetch(ahead + (l * R + r) * 64, 0, 2);
        const Block block = V::load_block(codes + (l * R + r) * 64);
        const typename V::TopBits top = V::top_bits(block);
        const Block low = V::lookup(low_bytes, block, top);
        const Block high = V::lookup(high_bytes, block, top);
        first[r] = V::add_words(first[r], V::zip_low(low, high));
        second[r] = V::add_words(second[r], V::zip_high(low, high));
      }
    }
    const Block even = V::set_words(weight, 0);
    const Block odd = V::set_words(0, weight);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      int32_t* at = acc + r * kLookupRows;
      V::store_i32(at, V::dot_words(V::load_i32(at), first[r], even));
      V::store_i32(at + 16, V::dot_words(V::load_i32(at + 16), first[r], odd));
      V::store_i32(at + 32, V::dot_words(V::load_i32(at + 32), second[r], even));
      V::store_i32(at + 48, V::dot_words(V::load_i32(at + 48), second[r], odd));
    }
  }

  // part += factor * acc and acc = 0, for 64 rows.
  static QH_ALWAYS_INLINE void add_sums(float factor, int32_t* acc, float* part) noexcept {
    if constexpr (kInRegisters) {
      for (int half = 0; half < 2; ++half) {
        const typename V::I32 even = V::load_i32(acc + 32 * half);
        const typename V::I32 odd = V::load_i32(acc + 32 * half + 16);
        add_rows(factor, V::template rows_of<0>(even, odd), part + 32 * half);
        add_rows(factor, V::template rows_of<1>(even, odd), part + 32 * half + 16);
      }
    } else {
      for (int64_t row = 0; row < kLookupRows; ++row) {
        part[row] = part[row] + factor * static_cast<float>(acc[row]);
      }
    }
    for (int64_t row = 0; row < kLookupRows; ++row) acc[row] = 0;
  }
  static QH_ALWAYS_INLINE void add_rows(float factor, typename V::I32 sums, float* part) noexcept {
    V::store(part, V::add(V::load(part), V::mul(V::set(factor), V::to_f32(sums))));
  }

  // Where the code that comes kPrefetchBytes after offset `at` of a span's rows lies, in the rows
  // that are read here: the next span's when these end before.
  static QH_ALWAYS_INLINE const uint8_t* ahead_of(const uint8_t* span, int64_t at, int64_t used,
                                                  int64_t stride) noexcept {
    const int64_t next = at + static_cast<int64_t>(kPrefetchBytes);
    const uintptr_t place = reinterpret_cast<uintptr_t>(span) +
                            static_cast<uintptr_t>(next / used * stride + next % used);
    return reinterpret_cast<const uint8_t*>(place);
  }

  // part[r] = what column block `block` adds to rows [row_begin, row_begin + n), n <= kPanelRows.
  static void block_part(const MatrixView& w, const int8_t* codes, const float* scales,
                         int64_t block, float* part, int64_t row_begin, int64_t n) noexcept {
    const int64_t rows = round_up(n, kLookupRows);
    const int64_t spans = round_up(w.cols, kSpan) / kSpan;
    const int64_t begin = block * kBlockSpans;
    const int64_t end = begin + kBlockSpans < spans ? begin + kBlockSpans : spans;
    const int64_t stride = span_bytes(kSpec, w.rows);
    const uint8_t* first = w.data + codes_at(kSpec, w.rows) + row_begin * kLookups;
    alignas(64) int32_t acc[kPanelRows];
    for (int64_t row = 0; row < rows; ++row) acc[row] = 0;
    for (int64_t row = 0; row < rows; ++row) part[row] = 0.0f;
    Tables tables;
    for (int64_t chunk = begin; chunk < end; chunk += kChunkSpans) {
      const int64_t n_spans = end - chunk < kChunkSpans ? end - chunk : kChunkSpans;
      const ChunkScales chunk_of = chunk_scales(kSpec, scales + chunk, n_spans);
      for (int64_t i = 0; i < n_spans; ++i) {
        make_tables(books(w), codes + (chunk + i) * kSpan, tables);
        const uint8_t* span = first + (chunk + i) * stride;
        const int32_t weight = chunk_of.weights[i];
        int64_t row = 0;
        for (; row + kPassRows <= rows; row += kPassRows) {
          const uint8_t* ahead = ahead_of(span, row * kLookups, rows * kLookups, stride);
          pass<kPassBlocks>(span + row * kLookups, ahead, tables, weight, acc + row);
        }
        const uint8_t* ahead = ahead_of(span, row * kLookups, rows * kLookups, stride);
        switch ((rows - row) / kLookupRows) {
          case 1:
            pass<1>(span + row * kLookups, ahead, tables, weight, acc + row);
            break;
          case 2:
            pass<2>(span + row * kLookups, ahead, tables, weight, acc + row);
            break;
          case 3:
            pass<3>(span + row * kLookups, ahead, tables, weight, acc + row);
            break;
          default:
            break;
        }
      }
      for (int64_t row = 0; row < rows; row += kLookupRows) {
        add_sums(chunk_of.factor, acc + row, part + row);
      }
    }
  }

  static void linear_part(const MatrixView& w, const QuantizedActivations& x, int64_t block,
                          float* part, int64_t row_begin, int64_t row_end) noexcept {
    for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
      const int64_t n = row_end - row < kPanelRows ? row_end - row : kPanelRows;
      block_part(w, x.codes, x.scales, block, part + row, row, n);
    }
  }

  static void sum_parts(const MatrixView& w, const float* parts, int64_t part_stride, float* y,
                        int64_t row_begin, int64_t row_end) noexcept {
    const int64_t blocks = round_up(w.cols, kSpan * kBlockSpans) / (kSpan * kBlockSpans);
    const uint8_t* factors = w.data + row_factors_at(kSpec);
    int64_t row = row_begin;
    for (; row < row_end; row += 16) {
      const int n = row_end - row < 16 ? static_cast<int>(row_end - row) : 16;
      F32 sum = V::zero();
      for (int64_t block = 0; block < blocks; ++block) {
        sum = V::add(sum, V::load_partial(parts + block * part_stride + row, n));
      }
      const F32 factor = V::load(reinterpret_cast<const float*>(factors + 4 * row));
      V::store_partial(y + row, V::mul(sum, factor), n);
    }
  }

  static void linear_quantized(const MatrixView& w, const QuantizedActivations& x, float* y,
                               int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    if (x.n_tokens >= kBlockTokens) {
      CodebookNarrow<V, kFormat>::linear(w, x, y, y_stride, row_begin, row_end);
      return;
    }
    constexpr int64_t kRows = 4096;
    const int64_t blocks = round_up(w.cols, kSpan * kBlockSpans) / (kSpan * kBlockSpans);
    alignas(64) float part[kRows];
    for (int64_t row = row_begin; row < row_end; row += kRows) {
      const int64_t n = row_end - row < kRows ? row_end - row : kRows;
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t t = 0; t < x.n_tokens; ++t) {
          block_part(w, x.codes + t * x.code_stride, x.scales + t * x.group_stride, block, part,
                     row, n);
          float* out = y + t * y_stride + row;
          for (int64_t r = 0; r < n; ++r) out[r] = (block == 0 ? 0.0f : out[r]) + part[r];
        }
      }
      for (int64_t t = 0; t < x.n_tokens; ++t) {
        float* out = y + t * y_stride + row;
        for (int64_t r = 0; r < n; ++r) out[r] = out[r] * row_factor(kSpec, w, row + r);
      }
    }
  }

  static constexpr FormatKernels kernels() noexcept {
    using Exact = CodebookExact<V, kFormat>;
    return {&linear_quantized, &Exact::linear_f32, &Exact::unpack_row, &linear_part, &sum_parts};
  }
};

}  // namespace
}  // namespace qh
