// codebook_exact.h: float32 inputs times codebook matrices, and unpacking. What --exact and the
// embedding run, where speed matters least: weights become float32 in a buffer, block by block.
#pragma once

#include "codebook_layout.h"
#include "families/packed.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat>
struct CodebookExact {
  using F32 = typename V::F32;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);

  // The integers of columns [begin, end) of a row.
  static void integers(const MatrixView& w, int64_t row, int64_t begin, int64_t end,
                       float* out) noexcept {
    for (int64_t k = begin; k < end; k += kSpec.group) {
      int64_t codes[kSpec.codebooks];
      for (int m = 0; m < kSpec.codebooks; ++m) {
        codes[m] = code_of(kSpec, w, row, k / kSpec.group, m);
      }
      for (int64_t j = 0; j < kSpec.group && k + j < end; ++j) {
        int32_t sum = 0;
        for (int m = 0; m < kSpec.codebooks; ++m) {
          sum += codebook_entry(kSpec, w.data, m, codes[m], j);
        }
        out[k + j - begin] = static_cast<float>(sum);
      }
    }
  }

  template <int T>
  static void tokens(const MatrixView& w, int64_t row, const float* x, int64_t x_stride, float* y,
                     int64_t y_stride) noexcept {
    constexpr int64_t kColumns = 512;
    alignas(64) float weights[kColumns];
    F32 sums[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[t] = V::zero();
    for (int64_t begin = 0; begin < w.cols; begin += kColumns) {
      const int64_t n = w.cols - begin < kColumns ? w.cols - begin : kColumns;
      integers(w, row, begin, begin + n, weights);
      for (int64_t k = n; k % 16 != 0; ++k) weights[k] = 0.0f;
      for (int64_t k = 0; k < n; k += 16) {
        const F32 row_weights = V::load(weights + k);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          sums[t] = V::fma(row_weights, V::load(x + t * x_stride + begin + k), sums[t]);
        }
      }
    }
    const float factor = row_factor(kSpec, w, row);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) y[t * y_stride + row] = V::reduce_add(sums[t]) * factor;
  }

  static void linear_f32(const MatrixView& w, const float* x, int64_t x_stride, int64_t n_tokens,
                         float* y, int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    for (int64_t row = row_begin; row < row_end; ++row) {
      int64_t t = 0;
      for (; t + V::kTokens <= n_tokens; t += V::kTokens) {
        tokens<V::kTokens>(w, row, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
      }
      for (; t < n_tokens; ++t) {
        tokens<1>(w, row, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
      }
    }
  }

  static void unpack_row(const MatrixView& w, int64_t row, float* out) noexcept {
    integers(w, row, 0, w.cols, out);
    const float factor = row_factor(kSpec, w, row);
    for (int64_t k = 0; k < w.cols; ++k) out[k] = factor * out[k];
  }
};

}  // namespace
}  // namespace qh
