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

enum class Isa : int32_t {
  scalar,
  avx2,
  avxvnni,
  avx512vnni,
  avx512vbmi,
  amx,
  neon,
  neon_dotprod,
  neon_i8mm
};

// Order is the order of kFormats in formats.h; names there equal the Python format names.
enum class FormatId : int32_t {
  f32,
  f16,
  bf16,
  int8,
  ternary,
  ternary5,
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
inline constexpr int kFormatCount = 17;

enum class Activation : int32_t { silu, relu2 };
// How keys and values are kept; names are those of qh_kernels.kv_cache, which draws the layout.
enum class KvType : int32_t { f16, f32, int8 };

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

// Positions whose keys lie side by side, and then their values; caches hold a multiple of it.
inline constexpr int64_t kKvBlock = 64;
// Positions of a segment of the cache. Attention is computed for each segment, and their results
// are merged in order: threads share a long cache by segments, and who computed which changes
// nothing.
inline constexpr int64_t kKvSegment = 256;

// Keys and values of one head in one segment, block after block as drawn in qh_kernels/kv_cache.py.
// Positions count from the start of the segment.
struct KvHead {
  KvType type;
  int64_t head_dim;
  uint8_t* data;
};

// A part of the attention of one token: out is the sum of exp(score - largest) * value, and state
// holds largest and the sum of exp(score - largest) of each head.
struct AttentionPart {
  float* out;    // (n_heads, head_dim)
  float* state;  // (n_heads, 2)
};

struct AttentionArgs {
  KvHead cache;
  const float* q;  // (n_heads, head_dim) of one token, rope applied; all read this key head
  int64_t n_heads;
  int64_t first, last;  // attends to these positions of the segment and those between them
  const uint8_t* next;  // the block that the caller has read next, to be prefetched, or nullptr
  float scale;          // 1 / sqrt(head_dim)
  int8_t* codes;        // scratch, attention_codes(head_dim) bytes
  AttentionPart part;   // written
};

// int8 codes of the queries of up to 4 heads.
constexpr int64_t attention_codes(int64_t head_dim) noexcept {
  return 4 * ((head_dim + 3) / 4 * 4);
}

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
  // Stores the key and the value (head_dim) of one position of a segment. float16 is rounded half
  // to even; int8: scale = max|x| / 127, code = round_half_even(x / scale) in -127..127, 0 where
  // scale is 0; codes 0 and scale NaN where an input is not finite.
  void (*store_kv)(const KvHead& cache, int64_t position, const float* key,
                   const float* value) noexcept;
  // Attention over positions of one segment. softmax(q . K * scale) . V is all of them merged
  // and finished. What is computed for a head does not depend on the others of the call.
  void (*attention)(const AttentionArgs& args) noexcept;
  // Adds the positions of `later` to `part`.
  void (*attention_merge)(const AttentionPart& part, const AttentionPart& later, int64_t n_heads,
                          int64_t head_dim) noexcept;
  // out = out / sum of weights.
  void (*attention_finish)(const AttentionPart& part, int64_t n_heads, int64_t head_dim) noexcept;
};

// nullptr where this build or this machine (CPU or OS) does not have the instruction set.
const KernelTable* kernel_table(Isa isa) noexcept;
// The best one that runs here. QH_FORCE_ISA is read by the Python layer, never here.
const KernelTable& best_kernel_table() noexcept;

}  // namespace qh
