// codebook.h: products with codebook matrices in plain loops, the definition that every instruction
// set equals bit for bit (float32, each operation rounded, in this order). entry are the integers
// of a codebook, x the activation codes, row the row's factor.
//
// Codebooks of 256, tables; fewer than kBlockTokens tokens:
//   table[l][c] = saturate16((sum_j entry[m][c][j] * x[j] + 2^(shift - 1)) >> shift)
//                 for each lookup l = (group of columns, codebook m) of a span of 32 inputs
//   sum[span]   = sum_l table[l][code], 16 bits; files that are not hostile stay within them
//   part = 0; for each chunk of 8 spans (chunk_scales in codebook_layout.h):
//       part = part + factor * (float)(sum_span weight[span] * sum[span])
//   y = 0; for each block of 32 spans: y = y + part;  then y = y * row
// The same formats, kBlockTokens tokens or more: with weights w8 = saturate(sum_m narrowed entry),
//   s = 0; for each span: s = s + x_scale * (float)sum(w8 * x);  y = s * (row * step)
// Larger codebooks: acc = sum((sum_m entry) * x);
//   s = 0; for each span: s = s + x_scale * (float)acc[span];  y = s * row
#pragma once

#include <cstdint>

#include "codebook_layout.h"

namespace qh {
namespace {

template <FormatId kFormat>
struct ScalarCodebook {
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);

  static float by_tables(const MatrixView& w, int64_t row, const int8_t* x,
                         const float* x_scales) noexcept {
    const int64_t spans = round_up(w.cols, kSpan) / kSpan;
    float y = 0.0f;
    float part = 0.0f;
    for (int64_t span = 0; span < spans; span += kChunkSpans) {
      const int64_t n = spans - span < kChunkSpans ? spans - span : kChunkSpans;
      const ChunkScales scales = chunk_scales(kSpec, x_scales + span, n);
      int32_t acc = 0;
      for (int64_t i = 0; i < n; ++i) {
        acc += scales.weights[i] * span_sum(w, row, span + i, x + (span + i) * kSpan);
      }
      if (span % kBlockSpans == 0) part = 0.0f;
      part = part + scales.factor * static_cast<float>(acc);
      const bool last = span + kChunkSpans >= spans;
      if (last || (span + kChunkSpans) % kBlockSpans == 0) y = y + part;
    }
    return y * row_factor(kSpec, w, row);
  }

  static int32_t span_sum(const MatrixView& w, int64_t row, int64_t span,
                          const int8_t* x) noexcept {
    uint32_t sum = 0;
    for (int64_t group = 0; group < kSpan / kSpec.group; ++group) {
      for (int64_t m = 0; m < kSpec.codebooks; ++m) {
        const int64_t code = code_of(kSpec, w, row, span * (kSpan / kSpec.group) + group, m);
        int32_t dot = (1 << kSpec.table_shift) >> 1;
        for (int64_t j = 0; j < kSpec.group; ++j) {
          dot += codebook_entry(kSpec, w.data, m, code, j) * x[group * kSpec.group + j];
        }
        const int32_t entry = dot >> kSpec.table_shift;
        sum += static_cast<uint32_t>(entry > 32767 ? 32767 : entry < -32768 ? -32768 : entry);
      }
    }
    return static_cast<int16_t>(sum);
  }

  // The 8-bit weight of a table format.
  static int32_t narrow_weight(const MatrixView& w, int64_t row, int64_t k,
                               int32_t multiplier) noexcept {
    int32_t sum = 0;
    for (int64_t m = 0; m < kSpec.codebooks; ++m) {
      const int64_t code = code_of(kSpec, w, row, k / kSpec.group, m);
      const int32_t entry = codebook_entry(kSpec, w.data, m, code, k % kSpec.group);
      sum = sum + narrowed(entry, multiplier);
      sum = sum > 127 ? 127 : sum < -128 ? -128 : sum;
    }
    return sum;
  }

  static float by_narrow_weights(const MatrixView& w, int64_t row, const int8_t* x,
                                 const float* x_scales) noexcept {
    const Narrowing narrow = narrowing(w.data);
    float s = 0.0f;
    for (int64_t begin = 0; begin < w.cols; begin += kSpan) {
      int32_t acc = 0;
      for (int64_t k = begin; k < begin + kSpan && k < w.cols; ++k) {
        acc += narrow_weight(w, row, k, narrow.multiplier) * x[k];
      }
      s = s + x_scales[begin / kSpan] * static_cast<float>(acc);
    }
    return s * (row_factor(kSpec, w, row) * narrow.step);
  }

  static float by_sums(const MatrixView& w, int64_t row, const int8_t* x,
                       const float* x_scales) noexcept {
    float s = 0.0f;
    for (int64_t begin = 0; begin < w.cols; begin += kSpan) {
      int32_t acc = 0;
      for (int64_t k = begin; k < begin + kSpan && k < w.cols; ++k) {
        acc += codebook_weight(kSpec, w, row, k) * x[k];
      }
      s = s + x_scales[begin / kSpan] * static_cast<float>(acc);
    }
    return s * row_factor(kSpec, w, row);
  }

  static void linear_quantized(const MatrixView& w, const QuantizedActivations& x, float* y,
                               int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    for (int64_t t = 0; t < x.n_tokens; ++t) {
      const int8_t* codes = x.codes + t * x.code_stride;
      const float* scales = x.scales + t * x.group_stride;
      for (int64_t row = row_begin; row < row_end; ++row) {
        float* out = y + t * y_stride + row;
        if constexpr (!has_tables(kSpec)) {
          *out = by_sums(w, row, codes, scales);
        } else if (x.n_tokens < kBlockTokens) {
          *out = by_tables(w, row, codes, scales);
        } else {
          *out = by_narrow_weights(w, row, codes, scales);
        }
      }
    }
  }

  static void linear_f32(const MatrixView& w, const float* x, int64_t x_stride, int64_t n_tokens,
                         float* y, int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    for (int64_t row = row_begin; row < row_end; ++row) {
      const double factor = static_cast<double>(row_factor(kSpec, w, row));
      for (int64_t t = 0; t < n_tokens; ++t) {
        double sum = 0.0;
        for (int64_t k = 0; k < w.cols; ++k) {
          sum += static_cast<double>(codebook_weight(kSpec, w, row, k)) *
                 static_cast<double>(x[t * x_stride + k]);
        }
        y[t * y_stride + row] = static_cast<float>(sum * factor);
      }
    }
  }

  static void unpack_row(const MatrixView& w, int64_t row, float* out) noexcept {
    const float factor = row_factor(kSpec, w, row);
    for (int64_t k = 0; k < w.cols; ++k) {
      out[k] = factor * static_cast<float>(codebook_weight(kSpec, w, row, k));
    }
  }

  static constexpr FormatKernels kernels() noexcept {
    return {&linear_quantized, &linear_f32, &unpack_row};
  }
};

}  // namespace
}  // namespace qh
