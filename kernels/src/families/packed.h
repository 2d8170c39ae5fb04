// packed.h: what the packed families share: the walk over tiles and tokens, prefetching, unpacking.
//
// A family F<V, format> has tile<T>(): T tokens times the 16 rows of one tile, and exact_tile<T>():
// the same with float32 inputs. Integer sums are exact and float32 work is done per token in one
// order, so the result for a token depends neither on T nor on how the rows are split.
#pragma once

#include <cstdint>

#include "core/compiler.h"
#include "core/packed_scale.h"
#include "core/prefetch.h"
#include "formats.h"

namespace qh {
namespace {

// T tokens starting at some token.
struct TokenBlock {
  const int8_t* codes;
  const float* scales;
  const int32_t* sums;
  int64_t code_stride;
  int64_t group_stride;
  int64_t sum_stride;
};

struct ExactBlock {
  const float* x;
  int64_t stride;
};

// sum += weights of 4 neighbouring columns times 4 inputs of each of T tokens. Even and odd columns
// have separate sums so that additions need not wait for each other.
template <typename V, int T>
QH_ALWAYS_INLINE void add_exact(typename V::F32 (&sums)[T][2], typename V::F32 w0,
                                typename V::F32 w1, typename V::F32 w2, typename V::F32 w3,
                                const ExactBlock& in, int64_t column) noexcept {
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    const float* x = in.x + t * in.stride + column;
    sums[t][0] = V::fma(w0, V::set(x[0]), sums[t][0]);
    sums[t][1] = V::fma(w1, V::set(x[1]), sums[t][1]);
    sums[t][0] = V::fma(w2, V::set(x[2]), sums[t][0]);
    sums[t][1] = V::fma(w3, V::set(x[3]), sums[t][1]);
  }
}

// The same with the weights of a block of 4 sub-columns.
template <typename V, int T>
QH_ALWAYS_INLINE void add_exact(typename V::F32 (&sums)[T][2], typename V::Block codes,
                                const ExactBlock& in, int64_t column) noexcept {
  add_exact<V, T>(sums, V::to_f32(V::template byte_of<0>(codes)),
                  V::to_f32(V::template byte_of<1>(codes)),
                  V::to_f32(V::template byte_of<2>(codes)),
                  V::to_f32(V::template byte_of<3>(codes)), in, column);
}

template <typename V, int T>
QH_ALWAYS_INLINE void clear(typename V::F32 (&sums)[T][2]) noexcept {
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    sums[t][0] = V::zero();
    sums[t][1] = V::zero();
  }
}

// results[t] = what the sums of both kinds of columns give with the 16 scales of rows at
// row_scales.
template <typename V, int T>
QH_ALWAYS_INLINE void scale_exact(const typename V::F32 (&sums)[T][2], const uint8_t* row_scales,
                                  typename V::F32 (&results)[T]) noexcept {
  prefetch<T>(row_scales);
  const typename V::F32 scales = V::load(reinterpret_cast<const float*>(row_scales));
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) results[t] = V::mul(V::add(sums[t][0], sums[t][1]), scales);
}

// results[t] = sums of codes + 1 times inputs, with the scale of the token and those of the rows.
template <typename V, int T>
QH_ALWAYS_INLINE void scale_ternary(const typename V::I32 (&sums)[T], const TokenBlock& in,
                                    const uint8_t* row_scales,
                                    typename V::F32 (&results)[T]) noexcept {
  prefetch<T>(row_scales);
  const typename V::F32 scales = V::load(reinterpret_cast<const float*>(row_scales));
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    const typename V::I32 acc = V::sub(sums[t], V::set_i32(in.sums[t * in.sum_stride]));
    const typename V::F32 x_scale = V::set(in.scales[t * in.group_stride]);
    results[t] = V::mul(V::mul(V::to_f32(acc), x_scale), scales);
  }
}

template <typename V, typename Rows>
struct Packed {
  using F32 = typename V::F32;
  static constexpr const FormatSpec& kSpec = Rows::kSpec;

  // Stores the valid rows of a tile for T tokens.
  template <int T>
  static QH_ALWAYS_INLINE void store(const F32 (&results)[T], float* y, int64_t y_stride,
                                     int64_t n_rows) noexcept {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      if (n_rows >= kTileRows) {
        V::store(y + t * y_stride, results[t]);
      } else {
        V::store_partial(y + t * y_stride, results[t], static_cast<int>(n_rows));
      }
    }
  }

  template <int T>
  static void tokens(const uint8_t* tile, int64_t padded, const QuantizedActivations& x,
                     int64_t token, float* y, int64_t y_stride, int64_t n_rows) noexcept {
    const TokenBlock in{x.codes + token * x.code_stride,
                        x.scales + token * x.group_stride,
                        x.sums + token * x.sum_stride,
                        x.code_stride,
                        x.group_stride,
                        x.sum_stride};
    F32 results[T];
    Rows::template tile<T>(tile, padded, in, results);
    store<T>(results, y + token * y_stride, y_stride, n_rows);
  }

  template <int T>
  static void exact_tokens(const uint8_t* tile, int64_t padded, const float* x, int64_t x_stride,
                           int64_t token, float* y, int64_t y_stride, int64_t n_rows) noexcept {
    const ExactBlock in{x + token * x_stride, x_stride};
    F32 results[T];
    Rows::template exact_tile<T>(tile, padded, in, results);
    store<T>(results, y + token * y_stride, y_stride, n_rows);
  }

  static void linear_quantized(const MatrixView& w, const QuantizedActivations& x, float* y,
                               int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    const int64_t padded = round_up(w.cols, kSpec.column_unit);
    const int64_t stride = tile_bytes(kSpec, w.cols);
    for (int64_t row = row_begin; row < row_end; row += kTileRows) {
      const uint8_t* tile = w.data + row / kTileRows * stride;
      const int64_t n = row_end - row;
      float* out = y + row;
      int64_t t = 0;
      for (; t + V::kTokens <= x.n_tokens; t += V::kTokens) {
        tokens<V::kTokens>(tile, padded, x, t, out, y_stride, n);
      }
      for (; t + 2 <= x.n_tokens; t += 2) tokens<2>(tile, padded, x, t, out, y_stride, n);
      for (; t < x.n_tokens; ++t) tokens<1>(tile, padded, x, t, out, y_stride, n);
    }
  }

  static void linear_f32(const MatrixView& w, const float* x, int64_t x_stride, int64_t n_tokens,
                         float* y, int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    const int64_t padded = round_up(w.cols, kSpec.column_unit);
    const int64_t stride = tile_bytes(kSpec, w.cols);
    for (int64_t row = row_begin; row < row_end; row += kTileRows) {
      const uint8_t* tile = w.data + row / kTileRows * stride;
      const int64_t n = row_end - row;
      float* out = y + row;
      int64_t t = 0;
      for (; t + V::kExactTokens <= n_tokens; t += V::kExactTokens) {
        exact_tokens<V::kExactTokens>(tile, padded, x, x_stride, t, out, y_stride, n);
      }
      for (; t < n_tokens; ++t) {
        exact_tokens<1>(tile, padded, x, x_stride, t, out, y_stride, n);
      }
    }
  }

  // One row is 4 bytes of every block; too little to gain from vectors.
  static void unpack_row(const MatrixView& w, int64_t row, float* out) noexcept {
    const uint8_t* tile = w.data + row / kTileRows * tile_bytes(kSpec, w.cols);
    const int64_t padded = round_up(w.cols, kSpec.column_unit);
    const int64_t r = row % kTileRows;
    for (int64_t k = 0; k < w.cols; ++k) {
      const int64_t within = k % kSpec.block_columns;
      const uint8_t byte = tile[block_at(kSpec, k / kSpec.block_columns) + 4 * r + within % 4];
      const float scale = packed_scale(kSpec, tile, padded, r, k);
      out[k] = scale * Rows::value(byte, static_cast<int>(within / 4));
    }
  }

  static constexpr FormatKernels kernels() noexcept {
    return {&linear_quantized, &linear_f32, &unpack_row};
  }
};

}  // namespace
}  // namespace qh
