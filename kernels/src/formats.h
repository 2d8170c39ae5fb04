// formats.h: the list of weight formats, one line each. A format of a known family is this line
// plus runtime/qh_runtime/formats/<name>.py, which draws the layout and is the specification.
#pragma once

#include <cstdint>

#include "kernel_table.h"

namespace qh {

// dense: row-major elements, float32 activations only.
// int8, ternary, lut4: 16-row tiles, see runtime/qh_runtime/formats/base.py.
// codebook: sums of vectors from codebooks, see runtime/qh_runtime/formats/families/codebook.py.
enum class Family : int32_t { dense, int8, ternary, lut4, codebook };

// What a lut4 group's scale is held in. e8m0: the exponent byte of a power of two. e4m3: an 8-bit
// float without sign; moved into a float16 it is 2^-8 of its value, which the step makes up for.
enum class ScaleType : int32_t { none, f16, e8m0, e4m3 };

// What the 16 codes of a lut4 format stand for: a weight is its group's scale times its value.
// Products with int8 inputs have step * integer in place of the value.
struct Lut4Table {
  float step;
  int8_t integers[16];
  float values[16];
};

inline constexpr Lut4Table kInt4 = {
    1.0f,
    {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7},
    {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7},
};

inline constexpr Lut4Table kE2m1 = {
    0.5f,
    {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},
    {0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6},
};

// kE2m1 for group scales that are read as 2^-8 of their values.
inline constexpr Lut4Table kE2m1OfE4m3 = {
    128.0f,
    {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},
    {0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6},
};

// Dettmers et al. 2023, QLoRA, appendix E; the integers are explained in formats/nf4.py.
inline constexpr Lut4Table kNf4 = {
    static_cast<float>(1.0 / 112.0),
    {-112, -78, -59, -44, -32, -21, -10, 0, 9, 18, 28, 38, 49, 63, 81, 112},
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
     -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
     0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
     0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
};

struct FormatSpec {
  FormatId id;
  const char* name;  // equals the Python format name
  Family family;
  int32_t element_bytes;  // dense: bytes per element; 0 for packed formats
  int32_t column_unit;    // packed: columns are padded to a multiple of this
  int32_t block_columns;  // packed: columns in one 64-byte block of 16 rows
  bool row_scales;        // packed: a tile has 16 float32 scales of its rows
  int32_t group;          // lut4: columns that share one scale, 16 or a multiple of 32;
                          // codebook: columns of one code, 8, 16 or 32
  ScaleType scale;        // lut4: how that scale is held
  const Lut4Table* table;
  int32_t codebooks = 0;    // codebook: vectors that are added up
  int32_t code_bits = 0;    // codebook: 8, or 9..16; the latter are held in 16
  int32_t table_shift = 0;  // codebook of 8 bits: what a dot product is shifted by in a table
};

inline constexpr FormatSpec kFormats[kFormatCount] = {
    {FormatId::f32, "f32", Family::dense, 4, 1, 0, false, 0, ScaleType::none, nullptr},
    {FormatId::f16, "f16", Family::dense, 2, 1, 0, false, 0, ScaleType::none, nullptr},
    {FormatId::bf16, "bf16", Family::dense, 2, 1, 0, false, 0, ScaleType::none, nullptr},
    {FormatId::int8, "int8", Family::int8, 0, 32, 4, true, 0, ScaleType::none, nullptr},
    {FormatId::ternary, "ternary", Family::ternary, 0, 16, 16, true, 0, ScaleType::none, nullptr},
    {FormatId::ternary5, "ternary5", Family::ternary, 0, 20, 20, true, 0, ScaleType::none, nullptr},
    {FormatId::int4_g32, "int4_g32", Family::lut4, 0, 32, 8, false, 32, ScaleType::f16, &kInt4},
    {FormatId::int4_g128, "int4_g128", Family::lut4, 0, 128, 8, false, 128, ScaleType::f16, &kInt4},
    {FormatId::nf4, "nf4", Family::lut4, 0, 64, 8, false, 64, ScaleType::f16, &kNf4},
    {FormatId::mxfp4, "mxfp4", Family::lut4, 0, 32, 8, false, 32, ScaleType::e8m0, &kE2m1},
    {FormatId::nvfp4, "nvfp4", Family::lut4, 0, 32, 8, true, 16, ScaleType::e4m3, &kE2m1OfE4m3},
    {FormatId::aqlm_2x8_g8, "aqlm_2x8_g8", Family::codebook, 0, 32, 0, true, 8, ScaleType::none,
     nullptr, 2, 8, 11},
    {FormatId::aqlm_1x16_g8, "aqlm_1x16_g8", Family::codebook, 0, 32, 0, true, 8, ScaleType::none,
     nullptr, 1, 16},
    {FormatId::aqlm_1x8_g8, "aqlm_1x8_g8", Family::codebook, 0, 32, 0, true, 8, ScaleType::none,
     nullptr, 1, 8, 10},
    {FormatId::aqlm_1x16_g16, "aqlm_1x16_g16", Family::codebook, 0, 32, 0, true, 16,
     ScaleType::none, nullptr, 1, 16},
    {FormatId::aqlm_8x8_g32, "aqlm_8x8_g32", Family::codebook, 0, 32, 0, true, 32, ScaleType::none,
     nullptr, 8, 8, 13},
    {FormatId::aqlm_2x16_g8, "aqlm_2x16_g8", Family::codebook, 0, 32, 0, true, 8, ScaleType::none,
     nullptr, 2, 16},
};

// In an anonymous namespace: files with instruction-set flags include this header.
namespace {

constexpr const FormatSpec& spec_of(FormatId format) noexcept {
  return kFormats[static_cast<int32_t>(format)];
}

constexpr int64_t round_up(int64_t value, int64_t unit) noexcept {
  return (value + unit - 1) / unit * unit;
}

// Five ternary codes to a byte, not four.
constexpr bool is_dense_ternary(const FormatSpec& spec) noexcept {
  return spec.family == Family::ternary && spec.block_columns == 20;
}

// Codebooks of 256 vectors are multiplied by tables of their products with the inputs.
constexpr bool has_tables(const FormatSpec& spec) noexcept {
  return spec.family == Family::codebook && spec.code_bits == 8;
}

// Ranges of rows begin at multiples of this.
constexpr int64_t row_unit(const FormatSpec& spec) noexcept {
  return spec.family == Family::dense ? 1 : has_tables(spec) ? 256 : kTileRows;
}

// Bytes of one group scale of a lut4 format.
constexpr int64_t scale_width(const FormatSpec& spec) noexcept {
  return spec.scale == ScaleType::f16 ? 2 : 1;
}

// Bytes of the scales that the 16 rows of a tile have for one weight group of a lut4 format.
constexpr int64_t group_scale_bytes(const FormatSpec& spec) noexcept {
  return kTileRows * scale_width(spec);
}

// Weight groups whose scales share one 64-byte line in front of their blocks, and their columns.
constexpr int64_t span_groups(const FormatSpec& spec) noexcept {
  return 64 / group_scale_bytes(spec);
}
constexpr int64_t span_columns(const FormatSpec& spec) noexcept {
  return span_groups(spec) * spec.group;
}

// Bytes of a whole span of a lut4 tile: its line of scales and its blocks.
constexpr int64_t span_bytes(const FormatSpec& spec) noexcept {
  return 64 + span_columns(spec) / spec.block_columns * 64;
}

// Where the 16 scales of a weight group are in a lut4 tile.
constexpr int64_t group_scales_at(const FormatSpec& spec, int64_t group) noexcept {
  const int64_t span = group / span_groups(spec);
  return span * span_bytes(spec) + group % span_groups(spec) * group_scale_bytes(spec);
}

// Where a block is in its tile.
constexpr int64_t block_at(const FormatSpec& spec, int64_t block) noexcept {
  if (spec.family != Family::lut4) return block * 64;
  return (block + block * spec.block_columns / span_columns(spec) + 1) * 64;
}

// Bytes of the 16 float32 row scales that end a tile.
constexpr int64_t row_scale_bytes(const FormatSpec& spec) noexcept {
  return spec.row_scales ? kTileRows * 4 : 0;
}

// Where the row scales of a tile begin.
constexpr int64_t row_scales_at(const FormatSpec& spec, int64_t padded_cols) noexcept {
  const int64_t blocks = padded_cols / spec.block_columns;
  if (spec.family != Family::lut4) return blocks * 64;
  return (blocks + (padded_cols + span_columns(spec) - 1) / span_columns(spec)) * 64;
}

// Bytes of one 16-row tile of a packed format; a multiple of 64.
constexpr int64_t tile_bytes(const FormatSpec& spec, int64_t cols) noexcept {
  return row_scales_at(spec, round_up(cols, spec.column_unit)) + row_scale_bytes(spec);
}

}  // namespace

static_assert(tile_bytes(kFormats[3], 33) == 64 * 16 + 64);
static_assert(tile_bytes(kFormats[4], 17) == 2 * 64 + 64);
static_assert(tile_bytes(kFormats[6], 33) == 128 - 64 + 8 * 64);
static_assert(tile_bytes(kFormats[7], 129) == 64 + 32 * 64);
static_assert(tile_bytes(kFormats[8], 65) == 64 + 16 * 64);
static_assert(tile_bytes(kFormats[9], 33) == 64 + 8 * 64);
static_assert(tile_bytes(kFormats[10], 33) == 64 + 64 + 8 * 64);

}  // namespace qh
