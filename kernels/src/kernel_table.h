// kernel_table.h: what every instruction set must provide; one table of these per file in src/isa/.
//
// Plain data and plain function pointers: the decoder picks one table when it is made and calls
// through it for its whole life. Every pointer, length and dimension was checked at the boundary
// (src/bind/, Decoder); kernels check nothing, allocate nothing and are noexcept.
//
// Memory layouts of the weight formats are drawn once, in runtime/qh_runtime/formats/<name>.py.
#pragma once

#include <cstdint>

namespace qh {

enum class Isa : int32_t { scalar, avx2, avx512vnni, avx512vbmi, neon, neon_dotprod };

// Order is the order of kFormats in formats.h; names there equal the Python format names.
enum class FormatId : int32_t {
  f32,
  f16,
  bf16,
  int8,
  ternary,
  int4_g32,
  int4_g128,
  nf4,
  mxfp4,
  nvfp4,
  aqlm_2x8_g8,
  aqlm_1x16_g8,
  aqlm_1x8_g8,
  aqlm_1x16_g16,
  aqlm_8x8_g32,
  aqlm_2x16_g8,
};
inline constexpr int kFormatCount = 16;

enum class Activation : int32_t { silu, relu2 };
enum class KvType : int32_t { f16, f32 };

// Rows per tile of every packed format but codebooks with tables (row_unit in formats.h): one
// 512-bit register of int32 accumulators.
inline constexpr int64_t kTileRows = 16;
// Inputs that share one int8 activation scale (all packed families except ternary).
inline constexpr int64_t kActivationGroup = 32;
// Activation rows are zero-padded to a multiple of this many inputs.
inline constexpr int64_t kActivationPad = 128;

// One weight matrix, (out_features rows, in_features cols), in the packed layout of its format.
struct MatrixView {
  const uint8_t* data;
  int64_t rows;
  int64_t cols;
  FormatId format;
};

// int8 activations of n_tokens rows. Ternary: one scale and one sum per token (strides 1). Other
// packed formats: for every kActivationGroup inputs a scale, the sum of their codes and that of the
// first half of them (weight groups may be of 16). scale is what a code is multiplied by.
struct QuantizedActivations {
  const int8_t* codes;  // (n_tokens, code_stride), zero-padded to code_stride
  const float* scales;  // (n_tokens, group_stride)
  const int32_t* sums;  // (n_tokens, sum_stride): sums of the codes
  int64_t code_stride;  // multiple of kActivationPad
  int64_t group_stride;
  int64_t sum_stride;
  int64_t n_tokens;
};

// y[t * y_stride + r] = sum_k W[r, k] * x[t, k] for rows [row_begin, row_end).
// row_begin is a multiple of row_unit (formats.h); row_end is one too, or equals rows. Dense
// formats take any. The result for a token does not depend on n_tokens: prefill equals decode bit
// for bit. The exception are codebooks with tables: with kBlockTokens tokens or more
// (codebook_layout.h) they multiply rounded weights in place of rounded tables; scalar/codebook.h
// defines both.
using LinearQuantized = void (*)(const MatrixView& w, const QuantizedActivations& x, float* y,
                                 int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept;
// The same with float32 activations (n_tokens, x_stride); rows of x are zero-padded to x_stride.
using LinearF32 = void (*)(const MatrixView& w, const float* x, int64_t x_stride, int64_t n_tokens,
                           float* y, int64_t y_stride, int64_t row_begin, int64_t row_end) noexcept;
// out[0..cols) = float32 values of one row (embedding lookup).
using UnpackRow = void (*)(const MatrixView& w, int64_t row, float* out) noexcept;

// Products that are split by columns, where every split by rows would repeat work. One token:
// part[r] = what the columns of `block` add to y[r] for rows [row_begin, row_end), without the
// row's scale; part has room for all row_unit rows of the last tile.
using LinearPart = void (*)(const MatrixView& w, const QuantizedActivations& x, int64_t block,
                            float* part, int64_t row_begin, int64_t row_end) noexcept;
// y[r] = what linear_quantized gives, from the parts of all column blocks, part_stride apart.
using SumParts = void (*)(const MatrixView& w, const float* parts, int64_t part_stride, float* y,
                          int64_t row_begin, int64_t row_end) noexcept;

struct FormatKernels {
  LinearQuantized linear_quantized;  // nullptr: dense formats always take float32 activations
  LinearF32 linear_f32;              // ternary: exact product of {-1,0,1}*scale with float32 x
  UnpackRow unpack_row;
  LinearPart linear_part = nullptr;  // nullptr: split by rows
  SumParts sum_parts = nullptr;
};

struct AttentionArgs {
  const float* q;      // (n_heads, head_dim) of one token, rope applied
  const void* keys;    // (positions, n_kv_heads, head_dim) in KvType
  const void* values;  // same shape
  KvType kv_type;
  int64_t n_heads, n_kv_heads, head_dim;
  int64_t first, last;  // attends to positions first..last inclusive (sliding window: first > 0)
  int64_t head_begin, head_end;  // heads this call computes
  float scale;                   // 1 / sqrt(head_dim)
  float* scores;                 // scratch, last - first + 1 floats
  float* out;                    // (n_heads, head_dim)
};

struct KernelTable {
  Isa isa;
  const char* name;
  FormatKernels formats[kFormatCount];  // indexed by FormatId

  // out = x / sqrt(mean(x^2) + eps) * weight; n values; statistics in float32 or better.
  // out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out) noexcept;
  // x += y
  void (*add)(float* x, const float* y, int64_t n) noexcept;
  // out = act(gate) * up; silu(g) = g / (1 + exp(-g)); relu2(g) = max(g, 0)^2
  void (*gated)(Activation act, const float* gate, const float* up, int64_t n, float* out) noexcept;
  // Rotates the half-split pairs (i, i + head_dim/2) of n_heads heads in place.
  // cos, sin: (head_dim/2). Source: RoFormer (Su et al. 2021), Hugging Face storage order.
  void (*rope)(float* x, int64_t n_heads, int64_t head_dim, const float* cos,
               const float* sin) noexcept;
  // BitNet b1.58: a = 127 / max(max|x|, 1e-5), code = clamp(round_half_even(x * a), -128, 127),
  // scale = 1 / a; one group. codes[n..padded) are zeroed.
  void (*quantize_token)(const float* x, int64_t n, int64_t padded, int8_t* codes, float* scale,
                         int32_t* sum) noexcept;
  // One scale per kActivationGroup inputs: scale = max|x| / 127, code = round_half_even(x / scale);
  // sums: of each group, and of its first half.
  void (*quantize_groups)(const float* x, int64_t n, int64_t padded, int8_t* codes, float* scales,
                          int32_t* sums) noexcept;
  // Stores n floats into a KV cache row.
  void (*store_kv)(KvType type, const float* x, int64_t n, void* out) noexcept;
  // softmax(q . K * scale) . V for heads [head_begin, head_end).
  void (*attention)(const AttentionArgs& args) noexcept;
};

// nullptr where this build or this machine (CPU or OS) does not have the instruction set.
const KernelTable* kernel_table(Isa isa) noexcept;
// The best one that runs here. QH_FORCE_ISA is read by the Python layer, never here.
const KernelTable& best_kernel_table() noexcept;

}  // namespace qh
