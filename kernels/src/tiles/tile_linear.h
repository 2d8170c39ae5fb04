// tile_linear.h: products of packed weights with many tokens on matrix tiles.
//
// A backend beside the vector vocabularies: a tile of 16 rows becomes int8 once, 64 bytes for every
// 4 columns, which is how tile registers want it, and is multiplied by 16 tokens at a time. Sums
// are exact and scaled in the order of src/scalar/linear.h, so that the bits are those of any other
// instruction set. Tokens that do not fill 16 go to the vector kernels.
#pragma once

#include "core/compiler.h"
#include "dispatch.h"
#include "families/int8.h"
#include "families/lut4.h"
#include "families/ternary.h"
#include "families/ternary5.h"
#include "kernel_table.h"
#include "tiles/tile_config.h"

namespace qh {
namespace {

inline constexpr int kTileTokens = 16;
// Tokens that share one unpacking; bounds what is on the stack and lets it stay in the L1 cache.
inline constexpr int64_t kPassTokens = 128;

template <int kValue>
struct Index {
  static constexpr int value = kValue;
};
// f(Index<0>), f(Index<1>), ...: registers are named by constants.
template <int kCount, typename Function>
QH_ALWAYS_INLINE void for_indices(const Function& f) noexcept {
  if constexpr (kCount > 0) {
    for_indices<kCount - 1>(f);
    f(Index<kCount - 1>{});
  }
}

// The int8 codes of columns [begin, begin + n) of a tile, zeros up to a multiple of `unit` columns.
template <typename Rows>
QH_ALWAYS_INLINE void unpack_columns(const uint8_t* tile, int64_t begin, int64_t n, int64_t unit,
                                     uint8_t* out) noexcept {
  constexpr int64_t kColumns = Rows::kSpec.block_columns;
  for (int64_t k = 0; k < n; k += kColumns) {
    const uint8_t* from = tile + block_at(Rows::kSpec, (begin + k) / kColumns);
    prefetch<kTileTokens>(from);
    Rows::unpack_block(from, out + k * kTileRows);
  }
  const int64_t rest = round_up(n, unit) - n;
  __builtin_memset(out + n * kTileRows, 0, static_cast<size_t>(rest * kTileRows));
}

// What a pass works on: tokens [token, token + n_tokens) and the rows from `row` on.
struct TilePass {
  const MatrixView& w;
  const QuantizedActivations& x;
  int64_t row, row_end;
  int64_t token, n_tokens;
  float* y;
  int64_t y_stride;

  template <typename V>
  QH_ALWAYS_INLINE void store(typename V::F32 result, int64_t t, int64_t at_row) const noexcept {
    float* out = y + (token + t) * y_stride + at_row;
    if (row_end - at_row >= kTileRows) {
      V::store(out, result);
    } else {
      V::store_partial(out, result, static_cast<int>(row_end - at_row));
    }
  }
};

template <typename V, FormatId kFormat, bool kDense>
struct TernaryRows {
  using Type = Ternary<V, kFormat>;
};
template <typename V, FormatId kFormat>
struct TernaryRows<V, kFormat, true> {
  using Type = Ternary5<V, kFormat>;
};

// Formats without groups: int32 sums over the whole row. Two row tiles by 32 tokens at a time, so
// that every register that is loaded is used twice.
template <typename V, typename Tiles, FormatId kFormat>
struct WholeRowTiles {
  using Rows = typename TernaryRows<V, kFormat, is_dense_ternary(spec_of(kFormat))>::Type;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);
  static constexpr int kRowTiles = 2;
  static constexpr int64_t kStep = 64;  // columns of one product
  // Columns that are unpacked before tokens pass over them: whole blocks and whole products.
  static constexpr int64_t kPanel = kSpec.block_columns == 20 ? 640 : 512;

  // Registers: sums 0..3 (row tile, token block), inputs 4..5, weights 6..7.
  static constexpr TileConfig config() noexcept {
    TileConfig shapes{};
    shapes.palette = 1;
    set_tiles(shapes, 0, kTileRegisters, 16, 64);
    return shapes;
  }

  struct alignas(64) Scratch {
    uint8_t weights[kRowTiles][kPanel * kTileRows];
    int32_t sums[kRowTiles][kPassTokens][kTileRows];
  };

  static void pass(Tiles& tiles, const TilePass& in) noexcept {
    if (in.row_end - in.row > kTileRows) {
      row_tiles<2>(tiles, in);
    } else {
      row_tiles<1>(tiles, in);
    }
  }

  template <int R>
  static void row_tiles(Tiles& tiles, const TilePass& in) noexcept {
    const int64_t padded = round_up(in.w.cols, kSpec.column_unit);
    const int64_t stride = tile_bytes(kSpec, in.w.cols);
    const uint8_t* data = in.w.data + in.row / kTileRows * stride;
    Scratch scratch;
    for (int64_t k = 0; k < padded; k += kPanel) {
      const int64_t n = padded - k < kPanel ? padded - k : kPanel;
      for (int r = 0; r < R; ++r) {
        unpack_columns<Rows>(data + r * stride, k, n, kStep, scratch.weights[r]);
      }
      int64_t t = 0;
      for (; t + 2 * kTileTokens <= in.n_tokens; t += 2 * kTileTokens) {
        multiply<R, 2>(tiles, in, scratch, t, k, n);
      }
      if (t < in.n_tokens) multiply<R, 1>(tiles, in, scratch, t, k, n);
    }
    for (int r = 0; r < R; ++r) {
      const uint8_t* row_scales = row_scales_of(kSpec, data + r * stride, padded);
      const typename V::F32 scales = V::load(reinterpret_cast<const float*>(row_scales));
      for (int64_t t = 0; t < in.n_tokens; ++t) {
        const typename V::F32 x_scale = V::set(in.x.scales[(in.token + t) * in.x.group_stride]);
        const typename V::F32 sums = V::to_f32(V::load_i32(scratch.sums[r][t]));
        in.template store<V>(V::mul(V::mul(sums, x_scale), scales), t, in.row + r * kTileRows);
      }
    }
  }

  // Adds the products of columns [k, k + n) for T blocks of tokens from t on.
  template <int R, int T>
  static void multiply(Tiles& tiles, const TilePass& in, Scratch& scratch, int64_t t, int64_t k,
                       int64_t n) noexcept {
    const int64_t stride = in.x.code_stride;
    const int8_t* codes = in.x.codes + (in.token + t) * stride + k;
    for_indices<R * T>([&](auto i) {
      constexpr int r = decltype(i)::value / T;
      constexpr int b = decltype(i)::value % T;
      if (k == 0) {
        tiles.template zero<2 * r + b>();
      } else {
        tiles.template load<2 * r + b>(scratch.sums[r][t + b * kTileTokens], 64);
      }
    });
    // Rows of inputs end with a whole product, but maybe before the padding of the weights.
    const int64_t end = n < stride - k ? n : stride - k;
    for (int64_t c = 0; c < end; c += kStep) {
      for_indices<T>([&](auto b) {
        constexpr int kBlock = decltype(b)::value;
        tiles.template load<4 + kBlock>(codes + kBlock * kTileTokens * stride + c, stride);
      });
      for_indices<R>([&](auto r) {
        constexpr int kRow = decltype(r)::value;
        tiles.template load<6 + kRow>(scratch.weights[kRow] + c * kTileRows, 64);
      });
      for_indices<R * T>([&](auto i) {
        constexpr int r = decltype(i)::value / T;
        constexpr int b = decltype(i)::value % T;
        tiles.template dot<2 * r + b, 4 + b, 6 + r>();
      });
    }
    for_indices<R * T>([&](auto i) {
      constexpr int r = decltype(i)::value / T;
      constexpr int b = decltype(i)::value % T;
      tiles.template store<2 * r + b>(scratch.sums[r][t + b * kTileTokens], 64);
    });
  }
};

// How a family with groups scales its sums. A span: columns that share both scales, one product.
// A step: spans that are added up before they are added to the result.
template <typename V, FormatId kFormat, Family kFamily>
struct GroupScaling;

template <typename V, FormatId kFormat>
struct GroupScaling<V, kFormat, Family::int8> {
  using F32 = typename V::F32;
  static constexpr int64_t kSpan = kActivationGroup;
  static constexpr int kStepSpans = 1;
  static constexpr int kStepGroups = 1;  // input groups of a step
  struct Scales {};

  static QH_ALWAYS_INLINE Scales scales(const uint8_t*, int64_t) noexcept { return {}; }
  static QH_ALWAYS_INLINE F32 add(F32 result, const F32 (&sums)[kStepSpans], const Scales&,
                                  const float* x_scales) noexcept {
    return V::add(result, V::mul(V::set(x_scales[0]), sums[0]));
  }
  static QH_ALWAYS_INLINE F32 finish(F32 result, const uint8_t* tile, int64_t padded) noexcept {
    const uint8_t* row_scales = row_scales_of(spec_of(kFormat), tile, padded);
    return V::mul(result, V::load(reinterpret_cast<const float*>(row_scales)));
  }
};

template <typename V, FormatId kFormat>
struct GroupScaling<V, kFormat, Family::lut4> {
  using F32 = typename V::F32;
  using Rows = Lut4<V, kFormat>;
  static constexpr int64_t kSpan = Rows::kPiece;
  static constexpr int kStepSpans = static_cast<int>(Rows::kStep / kSpan);
  static constexpr int kStepGroups = static_cast<int>(Rows::kStep / kActivationGroup);
  static constexpr bool kNarrow = kSpan < kActivationGroup;
  static constexpr int kWeightGroups = kNarrow ? kStepSpans : 1;
  struct Scales {
    F32 of[kWeightGroups];
  };

  static QH_ALWAYS_INLINE Scales scales(const uint8_t* tile, int64_t step) noexcept {
    Scales found;
    for (int i = 0; i < kWeightGroups; ++i) {
      const int64_t group = step * kWeightGroups + i;
      found.of[i] = Rows::group_scales(tile + group_scales_at(Rows::kSpec, group));
    }
    return found;
  }
  static QH_ALWAYS_INLINE F32 add(F32 result, const F32 (&sums)[kStepSpans], const Scales& scales,
                                  const float* x_scales) noexcept {
    F32 total = V::zero();
    for (int i = 0; i < kStepSpans; ++i) {
      const F32 scale = kNarrow ? scales.of[kNarrow ? i : 0] : V::set(x_scales[kNarrow ? 0 : i]);
      total = V::add(total, V::mul(scale, sums[i]));
    }
    return V::add(result, V::mul(kNarrow ? V::set(x_scales[0]) : scales.of[0], total));
  }
  static QH_ALWAYS_INLINE F32 finish(F32 result, const uint8_t* tile, int64_t padded) noexcept {
    F32 results[1] = {result};
    const uint8_t* row_scales = row_scales_of(Rows::kSpec, tile, padded);
    Rows::template finish<1>(row_scales, Rows::kTable.step, results);
    return results[0];
  }
};

// Formats with groups: sums of one span at a time leave the registers to be scaled.
template <typename V, typename Tiles, FormatId kFormat>
struct GroupTiles {
  using F32 = typename V::F32;
  static constexpr const FormatSpec& kSpec = spec_of(kFormat);
  using Scaling = GroupScaling<V, kFormat, kSpec.family>;
  static constexpr int kRowTiles = 1;
  static constexpr int kSpans = 4;  // that stay in registers while tokens pass over them
  static constexpr int kSteps = kSpans / Scaling::kStepSpans;
  static_assert(kSteps * Scaling::kStepSpans == kSpans);
  static constexpr int64_t kSpan = Scaling::kSpan;
  static constexpr int64_t kPanel = kSpans * kSpan;
  static constexpr bool kInPlace = kSpec.family == Family::int8;

  // Registers: sums 0..1, inputs 2..3, weights 4..7.
  static constexpr TileConfig config() noexcept {
    TileConfig shapes{};
    shapes.palette = 1;
    set_tiles(shapes, 0, 2, kTileTokens, 64);
    set_tiles(shapes, 2, 4, kTileTokens, static_cast<int>(kSpan));
    set_tiles(shapes, 4, 8, static_cast<int>(kSpan) / 4, 64);
    return shapes;
  }

  struct alignas(64) Scratch {
    uint8_t weights[kInPlace ? 64 : kPanel * kTileRows];
    int32_t sums[kSpans][kTileTokens][kTileRows];
    float results[kPassTokens][kTileRows];
  };

  static void pass(Tiles& tiles, const TilePass& in) noexcept {
    const int64_t padded = round_up(in.w.cols, kSpec.column_unit);
    const uint8_t* tile = in.w.data + in.row / kTileRows * tile_bytes(kSpec, in.w.cols);
    Scratch scratch;
    for (int64_t t = 0; t < in.n_tokens; ++t) V::store(scratch.results[t], V::zero());
    for (int64_t k = 0; k < padded; k += kPanel) {
      const int64_t n = padded - k < kPanel ? padded - k : kPanel;
      load_weights(tiles, tile, k, n, scratch);
      for (int64_t t = 0; t < in.n_tokens; t += kTileTokens) {
        multiply(tiles, in, scratch, t, k, n);
        if (n == kPanel) {
          add_steps<kSteps>(in, tile, scratch, t, k, 0);
        } else {
          for (int i = 0; i * Scaling::kStepSpans * kSpan < n; ++i) {
            add_steps<1>(in, tile, scratch, t, k, i);
          }
        }
      }
    }
    for (int64_t t = 0; t < in.n_tokens; ++t) {
      const F32 result = Scaling::finish(V::load(scratch.results[t]), tile, padded);
      in.template store<V>(result, t, in.row);
    }
  }

  // Columns [k, k + n) into registers. Bytes of int8 weights lie as registers want them.
  static QH_ALWAYS_INLINE void load_weights(Tiles& tiles, const uint8_t* tile, int64_t k, int64_t n,
                                            Scratch& scratch) noexcept {
    const uint8_t* weights = scratch.weights;
    if constexpr (kInPlace) {
      weights = tile + k * kTileRows;
      for (int64_t i = 0; i < n * kTileRows; i += 64) prefetch<kTileTokens>(weights + i);
    } else {
      unpack_columns<typename Scaling::Rows>(tile, k, n, kSpan, scratch.weights);
    }
    for_indices<kSpans>([&](auto i) {
      constexpr int s = decltype(i)::value;
      if (s * kSpan < n) tiles.template load<4 + s>(weights + s * kSpan * kTileRows, 64);
    });
  }

  // The sums of 16 tokens from t on with each span of columns [k, k + n).
  static QH_ALWAYS_INLINE void multiply(Tiles& tiles, const TilePass& in, Scratch& scratch,
                                        int64_t t, int64_t k, int64_t n) noexcept {
    const int64_t stride = in.x.code_stride;
    const int8_t* codes = in.x.codes + (in.token + t) * stride + k;
    for_indices<kSpans>([&](auto i) {
      constexpr int s = decltype(i)::value;
      if (s * kSpan >= n) return;
      tiles.template zero<s % 2>();
      tiles.template load<2 + s % 2>(codes + s * kSpan, stride);
      tiles.template dot<s % 2, 2 + s % 2, 4 + s>();
      tiles.template store<s % 2>(scratch.sums[s], 64);
    });
  }

  // Scales N steps from `first` on of the panel at column k, for 16 tokens from t on.
  template <int N>
  static QH_ALWAYS_INLINE void add_steps(const TilePass& in, const uint8_t* tile, Scratch& scratch,
                                         int64_t t, int64_t k, int first) noexcept {
    constexpr int kStepSpans = Scaling::kStepSpans;
    const int64_t step = k / (kStepSpans * kSpan) + first;
    typename Scaling::Scales scales[N];
    for (int i = 0; i < N; ++i) scales[i] = Scaling::scales(tile, step + i);
    for (int64_t row = t; row < t + kTileTokens; ++row) {
      const float* x_scales =
          in.x.scales + (in.token + row) * in.x.group_stride + step * Scaling::kStepGroups;
      F32 result = V::load(scratch.results[row]);
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) {
        F32 sums[kStepSpans];
#pragma GCC unroll 4
        for (int s = 0; s < kStepSpans; ++s) {
          sums[s] = V::to_f32(V::load_i32(scratch.sums[(first + i) * kStepSpans + s][row - t]));
        }
        result = Scaling::add(result, sums, scales[i], x_scales + i * Scaling::kStepGroups);
      }
      V::store(scratch.results[row], result);
    }
  }
};

template <typename Product, typename Tiles, FormatId kFormat>
struct TileLinear {
  static void linear_quantized(const MatrixView& w, const QuantizedActivations& x, float* y,
                               int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept {
    const LinearQuantized few =
        avx512vbmi_table().formats[static_cast<int32_t>(kFormat)].linear_quantized;
    const int64_t whole = x.n_tokens / kTileTokens * kTileTokens;
    if (whole == 0) {
      few(w, x, y, y_stride, row_begin, row_end);
      return;
    }
    QuantizedActivations rest = x;
    rest.codes += whole * x.code_stride;
    rest.scales += whole * x.group_stride;
    rest.sums += whole * x.sum_stride;
    rest.n_tokens -= whole;
    constexpr int64_t kRows = Product::kRowTiles * kTileRows;
    constexpr TileConfig kConfig = Product::config();
    Tiles tiles(kConfig);
    for (int64_t row = row_begin; row < row_end; row += kRows) {
      const int64_t end = row + kRows < row_end ? row + kRows : row_end;
      for (int64_t t = 0; t < whole; t += kPassTokens) {
        const int64_t n = whole - t < kPassTokens ? whole - t : kPassTokens;
        Product::pass(tiles, {w, x, row, end, t, n, y, y_stride});
      }
      if (rest.n_tokens > 0) few(w, rest, y + whole * y_stride, y_stride, row, end);
    }
  }
};

// Replaces the products of the families that tiles know in formats[0..kCount).
template <typename V, typename Tiles, int kCount>
void fill_tile_kernels(FormatKernels* formats) noexcept {
  if constexpr (kCount > 0) {
    fill_tile_kernels<V, Tiles, kCount - 1>(formats);
    constexpr FormatId kFormat = kFormats[kCount - 1].id;
    constexpr Family kFamily = kFormats[kCount - 1].family;
    LinearQuantized& kernel = formats[kCount - 1].linear_quantized;
    if constexpr (kFamily == Family::ternary) {
      kernel = &TileLinear<WholeRowTiles<V, Tiles, kFormat>, Tiles, kFormat>::linear_quantized;
    } else if constexpr (kFamily == Family::int8 || kFamily == Family::lut4) {
      kernel = &TileLinear<GroupTiles<V, Tiles, kFormat>, Tiles, kFormat>::linear_quantized;
    }
  }
}

// The kernels of AVX-512 VBMI but for products with quantized activations.
template <typename V, typename Tiles>
KernelTable make_tile_table() noexcept {
  KernelTable table = avx512vbmi_table();
  table.isa = Isa::amx;
  table.name = "amx";
  fill_tile_kernels<V, Tiles, kFormatCount>(table.formats);
  return table;
}

}  // namespace
}  // namespace qh
