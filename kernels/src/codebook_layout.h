// codebook_layout.h: where the parts of a codebook matrix lie, and the integers its products share.
// Drawn in runtime/qh_runtime/formats/families/codebook.py; defined in scalar/codebook.h.
#pragma once

#include <cstdint>

#include "core/compiler.h"
#include "core/packed_scale.h"
#include "formats.h"

namespace qh {
namespace {

// Inputs of one span: of one activation scale. The codes of a span that a row has are its lookups.
constexpr int64_t kSpan = kActivationGroup;
// Rows whose codes of one lookup are one 64-byte block.
constexpr int64_t kLookupRows = 64;
// Spans whose sums are added as integers, in units of the largest of their scales.
constexpr int64_t kChunkSpans = 8;
// Spans of a column block: what is added up before it is added to the row.
constexpr int64_t kBlockSpans = 32;
// Scales of a chunk become integers up to this: kChunkSpans * 8191 * 32768 < 2^31.
constexpr int32_t kSpanWeight = 8191;
// From so many tokens on, tables are dearer than weights rounded to 8 bits.
constexpr int64_t kBlockTokens = 16;

constexpr int64_t lookups(const FormatSpec& spec) noexcept {
  return kSpan / spec.group * spec.codebooks;
}

constexpr int64_t padded_rows(const FormatSpec& spec, int64_t rows) noexcept {
  return round_up(rows, has_tables(spec) ? kLookupRows : kTileRows);
}

// int16 pairs of columns: [codebook][group / 2][256][2]; int8: [codebook][code][group].
constexpr int64_t codebook_bytes(const FormatSpec& spec) noexcept {
  const int64_t width = has_tables(spec) ? 2 : 1;
  return (int64_t{spec.codebooks} << spec.code_bits) * spec.group * width;
}

// Tables: 64 bytes with the largest weight come first.
constexpr int64_t codebooks_at(const FormatSpec& spec) noexcept {
  return has_tables(spec) ? 64 : 0;
}

constexpr int64_t row_factors_at(const FormatSpec& spec) noexcept {
  return codebooks_at(spec) + codebook_bytes(spec);
}

constexpr int64_t codes_at(const FormatSpec& spec, int64_t rows) noexcept {
  return row_factors_at(spec) + padded_rows(spec, rows) * 4;
}

// Bytes of a span of all rows (tables), and of a tile of 16 rows (others).
constexpr int64_t span_bytes(const FormatSpec& spec, int64_t rows) noexcept {
  return padded_rows(spec, rows) * lookups(spec);
}
constexpr int64_t code_tile_bytes(const FormatSpec& spec, int64_t cols) noexcept {
  return round_up(cols, kSpan) / kSpan * lookups(spec) * kTileRows * 2;
}

constexpr int64_t codebook_nbytes(const FormatSpec& spec, int64_t rows, int64_t cols) noexcept {
  const int64_t codes = has_tables(spec)
                            ? round_up(cols, kSpan) / kSpan * span_bytes(spec, rows)
                            : padded_rows(spec, rows) / kTileRows * code_tile_bytes(spec, cols);
  return codes_at(spec, rows) + codes;
}

static_assert(codebook_nbytes(spec_of(FormatId::aqlm_2x8_g8), 65, 33) ==
              64 + 8192 + 128 * 4 + 2 * 128 * 8);
static_assert(codebook_nbytes(spec_of(FormatId::aqlm_1x16_g8), 17, 33) ==
              65536 * 8 + 32 * 4 + 2 * 2 * 4 * 32);

// Where the 64 rows of a block of table codes are: byte 16a + 4b + c belongs to row 16b + 4a + c,
// so that four such blocks interleave to blocks of 16 rows in order.
constexpr int64_t byte_of_row(int64_t row) noexcept {
  return row / 4 % 4 * 16 + row / 16 % 4 * 4 + row % 4;
}

// Where the codes of lookup 0, span `span`, of the 64 rows from `row` on lie; the next lookup is
// `stride` further. Rows go by in passes of up to 256, lookup by lookup.
struct LookupPlace {
  int64_t at;
  int64_t stride;
};
constexpr LookupPlace lookup_place(const FormatSpec& spec, int64_t rows, int64_t span,
                                   int64_t row) noexcept {
  const int64_t unit = row_unit(spec);
  const int64_t pass = row / unit * unit;
  const int64_t left = padded_rows(spec, rows) - pass;
  return {span * span_bytes(spec, rows) + pass * lookups(spec) + (row - pass) / kLookupRows * 64,
          left < unit ? left : unit};
}

// What the sums of the spans of one chunk are multiplied by: integers in -kSpanWeight..kSpanWeight,
// and factor, all of them together. A scale that is not finite makes factor NaN.
struct ChunkScales {
  int32_t weights[kChunkSpans];
  float factor;
};

QH_ALWAYS_INLINE ChunkScales chunk_scales(const FormatSpec& spec, const float* scales,
                                          int64_t n) noexcept {
  ChunkScales chunk{};
  float largest = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = bits_from_float(scales[i]) & 0x7fffffffu;
    finite = finite && magnitude < 0x7f800000u;
    const float size = float_from_bits(magnitude);
    largest = size > largest ? size : largest;
  }
  if (!finite) {
    chunk.factor = float_from_bits(0x7fc00000u);
    return chunk;
  }
  if (!(largest > 0.0f)) return chunk;
  constexpr float kWeight = static_cast<float>(kSpanWeight);
  for (int64_t i = 0; i < n; ++i) {
    // Positive, so that the conversion rounds down: the nearest integer.
    const float shifted = scales[i] / largest * kWeight + (kWeight + 0.5f);
    chunk.weights[i] = static_cast<int32_t>(shifted) - kSpanWeight;
  }
  chunk.factor = largest * (static_cast<float>(1 << spec.table_shift) / kWeight);
  return chunk;
}

// How the integers of a table format become 8 bits: (q * multiplier + 2^14) >> 15, and what a
// product of those is multiplied by on top of the row's factor.
struct Narrowing {
  int32_t multiplier;
  float step;
};

QH_ALWAYS_INLINE Narrowing narrowing(const uint8_t* matrix) noexcept {
  int32_t largest;
  __builtin_memcpy(&largest, matrix, sizeof largest);
  largest = largest < 127 ? 127 : largest;  // never widens
  const int32_t multiplier = 127 * 32768 / largest;
  return {multiplier, 32768.0f / static_cast<float>(multiplier > 0 ? multiplier : 1)};
}

QH_ALWAYS_INLINE int32_t clamp(int32_t value, int32_t limit) noexcept {
  return value > limit ? limit : value < -limit ? -limit : value;
}

QH_ALWAYS_INLINE int32_t narrowed(int32_t entry, int32_t multiplier) noexcept {
  return clamp((entry * multiplier + 0x4000) >> 15, 127);
}

QH_ALWAYS_INLINE int16_t load_i16(const uint8_t* p) noexcept {
  return static_cast<int16_t>(load_u16(p));
}

// Entry j of the vector that a code stands for.
QH_ALWAYS_INLINE int32_t codebook_entry(const FormatSpec& spec, const uint8_t* matrix,
                                        int64_t codebook, int64_t code, int64_t j) noexcept {
  const uint8_t* books = matrix + codebooks_at(spec);
  if (has_tables(spec)) {
    return load_i16(books + ((codebook * (spec.group / 2) + j / 2) * 256 + code) * 4 + j % 2 * 2);
  }
  return static_cast<int8_t>(books[((codebook << spec.code_bits) + code) * spec.group + j]);
}

// The code of a row, in its group of columns `group`. Codes beyond the codebook are cut off.
QH_ALWAYS_INLINE int64_t code_of(const FormatSpec& spec, const MatrixView& w, int64_t row,
                                 int64_t group, int64_t codebook) noexcept {
  const uint8_t* codes = w.data + codes_at(spec, w.rows);
  const int64_t per_span = kSpan / spec.group;
  if (has_tables(spec)) {
    const LookupPlace place = lookup_place(spec, w.rows, group / per_span, row);
    const int64_t lookup = group % per_span * spec.codebooks + codebook;
    return codes[place.at + lookup * place.stride + byte_of_row(row % kLookupRows)];
  }
  const uint8_t* tile = codes + row / kTileRows * code_tile_bytes(spec, w.cols);
  const int64_t at = (group * spec.codebooks + codebook) * kTileRows + row % kTileRows;
  return load_u16(tile + 2 * at) & ((int64_t{1} << spec.code_bits) - 1);
}

// The integer that row factor times integer is the weight.
QH_ALWAYS_INLINE int32_t codebook_weight(const FormatSpec& spec, const MatrixView& w, int64_t row,
                                         int64_t k) noexcept {
  int32_t sum = 0;
  for (int64_t m = 0; m < spec.codebooks; ++m) {
    const int64_t code = code_of(spec, w, row, k / spec.group, m);
    sum += codebook_entry(spec, w.data, m, code, k % spec.group);
  }
  return sum;
}

QH_ALWAYS_INLINE float row_factor(const FormatSpec& spec, const MatrixView& w,
                                  int64_t row) noexcept {
  return load_f32(w.data + row_factors_at(spec) + 4 * row);
}

}  // namespace
}  // namespace qh
