// dense.h: row-major float32, float16 or bfloat16 weights, straight from a mapped file: rows are
// aligned to their elements only, and nothing outside a row is read.
//
// Each (row, token) has one 16-lane sum over the columns in order and one final tree: the same for
// any number of rows and tokens at a time.
#pragma once

#include <cstdint>

#include "core/compiler.h"
#include "formats.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat>
struct Dense {
  using F32 = typename V::F32;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);

  static QH_ALWAYS_INLINE F32 load(const uint8_t* p) noexcept {
    if constexpr (kFormat == FormatId::f32) return V::load(reinterpret_cast<const float*>(p));
    if constexpr (kFormat == FormatId::f16) {
      return V::load_half(reinterpret_cast<const uint16_t*>(p));
    }
    if constexpr (kFormat == FormatId::bf16) {
      return V::load_bf16(reinterpret_cast<const uint16_t*>(p));
    }
  }
  static QH_ALWAYS_INLINE F32 load_partial(const uint8_t* p, int n) noexcept {
    if constexpr (kFormat == FormatId::f32) {
      return V::load_partial(reinterpret_cast<const float*>(p), n);
    }
    if constexpr (kFormat == FormatId::f16) {
      return V::load_half_partial(reinterpret_cast<const uint16_t*>(p), n);
    }
    if constexpr (kFormat == FormatId::bf16) {
      return V::load_bf16_partial(reinterpret_cast<const uint16_t*>(p), n);
    }
  }

  // The same place in the next R rows: several rows are read side by side, so that is what comes
  // next. Integer arithmetic keeps the hint defined past the end of the weights.
  static QH_ALWAYS_INLINE void prefetch_next(const uint8_t* p, int64_t block_bytes) noexcept {
    const uintptr_t next = reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(block_bytes);
    __builtin_prefetch(reinterpret_cast<const void*>(next), 0, 2);
  }

  // R rows times T tokens.
  template <int R, int T>
  static void block(const MatrixView& w, int64_t row, const float* x, int64_t x_stride, float* y,
                    int64_t y_stride) noexcept {
    const int64_t row_bytes = w.cols * kSpec.element_bytes;
    const uint8_t* weights = w.data + row * row_bytes;
    F32 sums[R][T];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sums[r][t] = V::zero();
    }
    int64_t k = 0;
    for (; k + 16 <= w.cols; k += 16) {
      F32 inputs[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) inputs[t] = V::load(x + t * x_stride + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const uint8_t* p = weights + r * row_bytes + k * kSpec.element_bytes;
        if constexpr (T == 1) prefetch_next(p, R * row_bytes);
        const F32 row_weights = load(p);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sums[r][t] = V::fma(row_weights, inputs[t], sums[r][t]);
      }
    }
    if (k < w.cols) {
      const int n = static_cast<int>(w.cols - k);
      for (int t = 0; t < T; ++t) {
        const F32 inputs = V::load_partial(x + t * x_stride + k, n);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const F32 row_weights =
              load_partial(weights + r * row_bytes + k * kSpec.element_bytes, n);
          sums[r][t] = V::fma(row_weights, inputs, sums[r][t]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) y[t * y_stride + row + r] = V::reduce_add(sums[r][t]);
    }
  }

  template <int T>
  static void rows(const MatrixView& w, const float* x, int64_t x_stride, float* y,
                   int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    constexpr int kRows = T == 1 ? V::kDenseRows : V::kDenseBlock;
    int64_t row = row_begin;
    for (; row + kRows <= row_end; row += kRows) {
      block<kRows, T>(w, row, x, x_stride, y, y_stride);
    }
    for (; row < row_end; ++row) block<1, T>(w, row, x, x_stride, y, y_stride);
  }

  // Rows in panels that stay in the L2 cache while all tokens pass over them.
  static void linear_f32(const MatrixView& w, const float* x, int64_t x_stride, int64_t n_tokens,
                         float* y, int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    constexpr int64_t kPanelBytes = 256 * 1024;
    const int64_t fitting = kPanelBytes / (w.cols * kSpec.element_bytes);
    const int64_t panel = round_up(fitting > 0 ? fitting : 1, V::kDenseRows);
    for (int64_t begin = row_begin; begin < row_end; begin += panel) {
      const int64_t end = begin + panel < row_end ? begin + panel : row_end;
      int64_t t = 0;
      for (; t + V::kDenseBlock <= n_tokens; t += V::kDenseBlock) {
        rows<V::kDenseBlock>(w, x + t * x_stride, x_stride, y + t * y_stride, y_stride, begin, end);
      }
      for (; t < n_tokens; ++t) {
        rows<1>(w, x + t * x_stride, x_stride, y + t * y_stride, y_stride, begin, end);
      }
    }
  }

  static void unpack_row(const MatrixView& w, int64_t row, float* out) noexcept {
    const uint8_t* weights = w.data + row * w.cols * kSpec.element_bytes;
    int64_t k = 0;
    for (; k + 16 <= w.cols; k += 16) V::store(out + k, load(weights + k * kSpec.element_bytes));
    if (k < w.cols) {
      const int n = static_cast<int>(w.cols - k);
      V::store_partial(out + k, load_partial(weights + k * kSpec.element_bytes, n), n);
    }
  }

  static constexpr FormatKernels kernels() noexcept { return {nullptr, &linear_f32, &unpack_row}; }
};

}  // namespace
}  // namespace qh
