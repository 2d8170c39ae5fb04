// linear.h: every weight format in plain loops. The readable reference of the vector families:
// quantized results of every instruction set equal these bit for bit.
//
// One definition for all (float32, each operation rounded, no fused multiply-add, in this order):
//   ternary   y = ((float)acc * x_scale) * row_scale          acc over the whole row
//   int8      s = 0; for each group g of 32 inputs: s = s + x_scale[g] * (float)acc[g]
//             y = s * row_scale
//   lut4      y = 0; for each weight group G of 32 inputs or more:
//               s = 0; for each input group g in G: s = s + x_scale[g] * (float)acc[g]
//               y = y + w_scale[G] * s
//             or, with weight groups of 16, for each input group g:
//               s = 0; for each weight group G in g: s = s + w_scale[G] * (float)acc[G]
//               y = y + x_scale[g] * s
//             then y = y * step, or y * (row_scale * step)
// acc are exact int32 sums of weight code (lut4: the integer of the code) times activation code.
#pragma once

#include <cstdint>

#include "core/packed_scale.h"
#include "core/ternary5.h"
#include "formats.h"

namespace qh {
namespace {

constexpr int kRows = static_cast<int>(kTileRows);

template <FormatId kFormat>
float dense_element(const uint8_t* data, int64_t index) noexcept {
  if constexpr (kFormat == FormatId::f32) return load_f32(data + index * 4);
  if constexpr (kFormat == FormatId::f16) return float_from_half(load_u16(data + index * 2));
  if constexpr (kFormat == FormatId::bf16) return float_from_bf16(load_u16(data + index * 2));
}

// The integer that one byte holds for the sub-columns 4 * field .. 4 * field + 3 of its block.
template <FormatId kFormat>
int32_t code_in(uint8_t byte, int64_t field) noexcept {
  constexpr const FormatSpec& spec = spec_of(kFormat);
  if constexpr (spec.family == Family::int8) return static_cast<int8_t>(byte);
  if constexpr (is_dense_ternary(spec)) return ternary5_digit(byte, static_cast<int>(field)) - 1;
  if constexpr (spec.family == Family::ternary) return ((byte >> (2 * field)) & 3) - 1;
  if constexpr (spec.family == Family::lut4)
    return spec.table->integers[(byte >> (4 * field)) & 15];
}

// The 4 bytes of a packed tile that hold row r, columns k..k+3 (k a multiple of 4).
template <FormatId kFormat>
const uint8_t* bytes_at(const uint8_t* tile, int r, int64_t k) noexcept {
  constexpr const FormatSpec& spec = spec_of(kFormat);
  return tile + block_at(spec, k / spec.block_columns) + 4 * r;
}

// The weight of row r, column k of a packed tile.
template <FormatId kFormat>
float weight_at(const uint8_t* tile, int64_t padded_cols, int r, int64_t k) noexcept {
  constexpr const FormatSpec& spec = spec_of(kFormat);
  const int64_t field = k % spec.block_columns / 4;
  const uint8_t byte = bytes_at<kFormat>(tile, r, k)[k % 4];
  const float scale = packed_scale(spec, tile, padded_cols, r, k);
  if constexpr (spec.family == Family::lut4) {
    return scale * spec.table->values[(byte >> (4 * field)) & 15];
  } else {
    return scale * static_cast<float>(code_in<kFormat>(byte, field));
  }
}

template <FormatId kFormat>
struct ScalarLinear {
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);

  static const uint8_t* tile_of(const MatrixView& w, int64_t row) noexcept {
    return w.data + row / kTileRows * tile_bytes(kSpec, w.cols);
  }

  static int32_t dot(const uint8_t* tile, int r, const int8_t* x, int64_t begin,
                     int64_t end) noexcept {
    int32_t acc = 0;
    for (int64_t k = begin; k < end; k += 4) {
      const uint8_t* bytes = bytes_at<kFormat>(tile, r, k);
      const int64_t field = k % kSpec.block_columns / 4;
      for (int t = 0; t < 4; ++t) acc += code_in<kFormat>(bytes[t], field) * x[k + t];
    }
    return acc;
  }

  static float quantized_row(const uint8_t* tile, int64_t cols, int64_t padded, int r,
                             const int8_t* codes, const float* x_scales) noexcept {
    if constexpr (kSpec.family == Family::ternary) {
      // Inputs are zero from `cols` on; of the padding of 20 columns not all are there.
      const int32_t acc = dot(tile, r, codes, 0, round_up(cols, 4));
      return static_cast<float>(acc) * x_scales[0] * packed_scale(kSpec, tile, padded, r, 0);
    } else if constexpr (kSpec.family == Family::int8) {
      const float s = input_groups(tile, r, codes, x_scales, 0, padded);
      return s * packed_scale(kSpec, tile, padded, r, 0);
    } else {
      const float y = lut4_row(tile, padded, r, codes, x_scales);
      if constexpr (!kSpec.row_scales) return y * kSpec.table->step;
      const float row_scale = load_f32(row_scales_of(kSpec, tile, padded) + 4 * r);
      return y * (row_scale * kSpec.table->step);
    }
  }

  // The sum over the input groups of columns [begin, end).
  static float input_groups(const uint8_t* tile, int r, const int8_t* codes, const float* x_scales,
                            int64_t begin, int64_t end) noexcept {
    float s = 0.0f;
    for (int64_t k = begin; k < end; k += kActivationGroup) {
      const int32_t acc = dot(tile, r, codes, k, k + kActivationGroup);
      s = s + x_scales[k / kActivationGroup] * static_cast<float>(acc);
    }
    return s;
  }

  // A row of a lut4 format before step and row scale.
  static float lut4_row(const uint8_t* tile, int64_t padded, int r, const int8_t* codes,
                        const float* x_scales) noexcept {
    constexpr int64_t kGroup = kSpec.group;
    float y = 0.0f;
    if constexpr (kGroup >= kActivationGroup) {
      for (int64_t begin = 0; begin < padded; begin += kGroup) {
        const float s = input_groups(tile, r, codes, x_scales, begin, begin + kGroup);
        y = y + lut4_group_scale(kSpec, tile, begin / kGroup, r) * s;
      }
    } else {
      for (int64_t begin = 0; begin < padded; begin += kActivationGroup) {
        float s = 0.0f;
        for (int64_t k = begin; k < begin + kActivationGroup; k += kGroup) {
          const int32_t acc = dot(tile, r, codes, k, k + kGroup);
          s = s + lut4_group_scale(kSpec, tile, k / kGroup, r) * static_cast<float>(acc);
        }
        y = y + x_scales[begin / kActivationGroup] * s;
      }
    }
    return y;
  }

  static void linear_quantized(const MatrixView& w, const QuantizedActivations& x, float* y,
                               int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    const int64_t padded = round_up(w.cols, kSpec.column_unit);
    for (int64_t row = row_begin; row < row_end; ++row) {
      const uint8_t* tile = tile_of(w, row);
      const int r = static_cast<int>(row % kTileRows);
      for (int64_t t = 0; t < x.n_tokens; ++t) {
        y[t * y_stride + row] = quantized_row(tile, w.cols, padded, r, x.codes + t * x.code_stride,
                                              x.scales + t * x.group_stride);
      }
    }
  }

  static void unpack_row(const MatrixView& w, int64_t row, float* out) noexcept {
    if constexpr (kSpec.family == Family::dense) {
      for (int64_t k = 0; k < w.cols; ++k) {
        out[k] = dense_element<kFormat>(w.data, row * w.cols + k);
      }
    } else {
      const int64_t padded = round_up(w.cols, kSpec.column_unit);
      const uint8_t* tile = tile_of(w, row);
      const int r = static_cast<int>(row % kTileRows);
      for (int64_t k = 0; k < w.cols; ++k) {
        out[k] = weight_at<kFormat>(tile, padded, r, k);
      }
    }
  }

  // Products and sums in float64: what the float32 vector paths are measured against.
  static void linear_f32(const MatrixView& w, const float* x, int64_t x_stride, int64_t n_tokens,
                         float* y, int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    const int64_t padded = kSpec.family == Family::dense ? 0 : round_up(w.cols, kSpec.column_unit);
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (int64_t t = 0; t < n_tokens; ++t) {
        const float* x_row = x + t * x_stride;
        double sum = 0.0;
        for (int64_t k = 0; k < w.cols; ++k) {
          float weight;
          if constexpr (kSpec.family == Family::dense) {
            weight = dense_element<kFormat>(w.data, row * w.cols + k);
          } else {
            const uint8_t* tile = tile_of(w, row);
            const int r = static_cast<int>(row % kTileRows);
            weight = weight_at<kFormat>(tile, padded, r, k);
          }
          sum += static_cast<double>(weight) * static_cast<double>(x_row[k]);
        }
        y[t * y_stride + row] = static_cast<float>(sum);
      }
    }
  }

  static constexpr FormatKernels kernels() noexcept {
    if constexpr (kSpec.family == Family::dense) {
      return {nullptr, &linear_f32, &unpack_row};
    } else {
      return {&linear_quantized, &linear_f32, &unpack_row};
    }
  }
};

}  // namespace
}  // namespace qh
