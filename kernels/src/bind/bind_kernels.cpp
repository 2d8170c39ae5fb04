// bind_kernels.cpp: single kernels for tests, benchmarks and the self-test. The decoder does not
// come through here. Everything is checked; the kernels themselves check nothing.
#include "bind/bind_kernels.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "bind/bind_bench.h"
#include "core/kv_layout.h"
#include "format_info.h"
#include "formats.h"

namespace nb = nanobind;

namespace qh {
namespace {

constexpr int64_t kAny = -1;
// Clang's version text begins with its name, GCC's is the number alone.
#if defined(__clang__)
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif
constexpr Isa kAllIsas[] = {
    Isa::scalar, Isa::avx2, Isa::avxvnni,      Isa::avx512vnni, Isa::avx512vbmi,
    Isa::amx,    Isa::neon, Isa::neon_dotprod, Isa::neon_i8mm,
};

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa isa : kAllIsas) {
    if (kernel_table(isa) != nullptr) names.emplace_back(isa_name(isa));
  }
  return names;
}

void require(bool holds, const std::string& object, const std::string& expected,
             const std::string& found) {
  if (!holds) raise_mismatch(object, expected, found, "pass consistent sizes");
}

void require_range(const char* name, int64_t value, int64_t low, int64_t high) {
  require(value >= low && value <= high, name,
          "a value in " + std::to_string(low) + ".." + std::to_string(high), std::to_string(value));
}

Activation activation_named(const std::string& name) {
  if (name == "silu") return Activation::silu;
  if (name == "relu2") return Activation::relu2;
  raise_mismatch("activation", "silu or relu2", name, "pass one of them");
}

MatrixView checked_matrix(const std::string& format, const InputArray& data, int64_t rows,
                          int64_t cols) {
  const FormatId id = require_format(format);
  const uint8_t* bytes = input<uint8_t>(data, "weights", {kAny});
  const int64_t expected = require_nbytes(id, rows, cols);
  require(static_cast<int64_t>(data.shape(0)) == expected, "weights",
          std::to_string(expected) + " bytes for " + format + " (" + std::to_string(rows) + ", " +
              std::to_string(cols) + ")",
          std::to_string(data.shape(0)) + " bytes");
  const FormatSpec& spec = spec_of(id);
  require(spec.family != Family::dense ||
              reinterpret_cast<uintptr_t>(bytes) % static_cast<uintptr_t>(spec.element_bytes) == 0,
          "weights", "data aligned to its elements", "an unaligned address");
  return {bytes, rows, cols, id};
}

void check_row_range(const MatrixView& w, int64_t row_begin, int64_t row_end) {
  require_range("row_begin", row_begin, 0, w.rows);
  require_range("row_end", row_end, row_begin, w.rows);
  const int64_t unit = row_unit(spec_of(w.format));
  const std::string multiple = "a multiple of " + std::to_string(unit);
  require(row_begin % unit == 0, "row_begin", multiple, std::to_string(row_begin));
  require(row_end % unit == 0 || row_end == w.rows, "row_end", multiple + " or the number of rows",
          std::to_string(row_end));
}

// What the kernels rely on: zeros after the last column, sums that are sums and, where the scale is
// max|x| / 127, no -128.
void check_codes(const QuantizedActivations& x, int64_t cols, bool grouped) {
  const int64_t width = x.code_stride / x.group_stride;
  for (int64_t t = 0; t < x.n_tokens; ++t) {
    const int8_t* row = x.codes + t * x.code_stride;
    const int32_t* given = x.sums + t * x.sum_stride;
    for (int64_t g = 0; g < x.group_stride; ++g) {
      int32_t sum = 0;
      int32_t first_half = 0;
      for (int64_t k = g * width; k < (g + 1) * width; ++k) {
        sum += row[k];
        if (k - g * width < width / 2) first_half += row[k];
        require(k < cols || row[k] == 0, "codes", "zeros after the last column",
                std::to_string(row[k]));
        require(!grouped || row[k] != -128, "codes", "codes in -127..127", "-128");
      }
      const int32_t at = grouped ? given[2 * g] : given[g];
      require(at == sum, "sums", std::to_string(sum), std::to_string(at));
      require(!grouped || given[2 * g + 1] == first_half, "sums", std::to_string(first_half),
              std::to_string(grouped ? given[2 * g + 1] : 0));
    }
  }
}

void linear_quantized(const std::string& isa, const std::string& format, const InputArray& data,
                      int64_t rows, int64_t cols, const InputArray& codes, const InputArray& scales,
                      const InputArray& sums, const OutputArray& out, int64_t row_begin,
                      int64_t row_end) {
  const KernelTable& table = require_table(isa);
  const MatrixView w = checked_matrix(format, data, rows, cols);
  const LinearQuantized kernel = table.formats[static_cast<int32_t>(w.format)].linear_quantized;
  if (kernel == nullptr) {
    raise_mismatch("format", "a packed format", format, "use linear_f32 for dense formats");
  }
  check_row_range(w, row_begin, row_end);
  const int8_t* code_data = input<int8_t>(codes, "codes", {kAny, kAny});
  const int64_t n_tokens = static_cast<int64_t>(codes.shape(0));
  const int64_t code_stride = static_cast<int64_t>(codes.shape(1));
  require(code_stride == round_up(cols, kActivationPad), "codes",
          std::to_string(round_up(cols, kActivationPad)) + " codes per token",
          std::to_string(code_stride));
  const bool grouped = spec_of(w.format).family != Family::ternary;
  const int64_t group_stride = grouped ? code_stride / kActivationGroup : 1;
  const int64_t sum_stride = grouped ? 2 * group_stride : 1;
  QuantizedActivations x{code_data,
                         input<float>(scales, "scales", {n_tokens, group_stride}),
                         input<int32_t>(sums, "sums", {n_tokens, sum_stride}),
                         code_stride,
                         group_stride,
                         sum_stride,
                         n_tokens};
  check_codes(x, cols, grouped);
  float* y = output<float>(out, "out", {n_tokens, rows});
  const nb::gil_scoped_release unlocked;
  kernel(w, x, y, rows, row_begin, row_end);
}

void linear_f32(const std::string& isa, const std::string& format, const InputArray& data,
                int64_t rows, int64_t cols, const InputArray& x, const OutputArray& out,
                int64_t row_begin, int64_t row_end) {
  const KernelTable& table = require_table(isa);
  const MatrixView w = checked_matrix(format, data, rows, cols);
  check_row_range(w, row_begin, row_end);
  const float* x_data = input<float>(x, "x", {kAny, kAny});
  const int64_t n_tokens = static_cast<int64_t>(x.shape(0));
  const int64_t x_stride = static_cast<int64_t>(x.shape(1));
  const bool dense = spec_of(w.format).family == Family::dense;
  const int64_t expected = dense ? cols : round_up(cols, kActivationPad);
  require(x_stride == expected, "x", std::to_string(expected) + " values per token",
          std::to_string(x_stride));
  for (int64_t t = 0; t < n_tokens; ++t) {
    for (int64_t k = cols; k < x_stride; ++k) {
      require(x_data[t * x_stride + k] == 0.0f, "x", "zeros after the last column", "a number");
    }
  }
  float* y = output<float>(out, "out", {n_tokens, rows});
  const nb::gil_scoped_release unlocked;
  table.formats[static_cast<int32_t>(w.format)].linear_f32(w, x_data, x_stride, n_tokens, y, rows,
                                                           row_begin, row_end);
}

void unpack_row(const std::string& isa, const std::string& format, const InputArray& data,
                int64_t rows, int64_t cols, int64_t row, const OutputArray& out) {
  const KernelTable& table = require_table(isa);
  const MatrixView w = checked_matrix(format, data, rows, cols);
  require_range("row", row, 0, rows - 1);
  float* values = output<float>(out, "out", {cols});
  table.formats[static_cast<int32_t>(w.format)].unpack_row(w, row, values);
}

void rms_norm(const std::string& isa, const InputArray& x, const InputArray& weight, float eps,
              const OutputArray& out) {
  const KernelTable& table = require_table(isa);
  const float* x_data = input<float>(x, "x", {kAny});
  const int64_t n = static_cast<int64_t>(x.shape(0));
  require_range("x size", n, 1, kMaxCols);
  table.rms_norm(x_data, input<float>(weight, "weight", {n}), eps, n,
                 output<float>(out, "out", {n}));
}

void add(const std::string& isa, const OutputArray& x, const InputArray& y) {
  const KernelTable& table = require_table(isa);
  float* x_data = output<float>(x, "x", {kAny});
  const int64_t n = static_cast<int64_t>(x.shape(0));
  table.add(x_data, input<float>(y, "y", {n}), n);
}

void gated(const std::string& isa, const std::string& activation, const InputArray& gate,
           const InputArray& up, const OutputArray& out) {
  const KernelTable& table = require_table(isa);
  const Activation act = activation_named(activation);
  const float* gate_data = input<float>(gate, "gate", {kAny});
  const int64_t n = static_cast<int64_t>(gate.shape(0));
  table.gated(act, gate_data, input<float>(up, "up", {n}), n, output<float>(out, "out", {n}));
}

void rope(const std::string& isa, const OutputArray& x, const InputArray& cos,
          const InputArray& sin) {
  const KernelTable& table = require_table(isa);
  float* x_data = output<float>(x, "x", {kAny, kAny});
  const int64_t head_dim = static_cast<int64_t>(x.shape(1));
  require(head_dim % 2 == 0, "x", "an even head_dim", std::to_string(head_dim));
  table.rope(x_data, static_cast<int64_t>(x.shape(0)), head_dim,
             input<float>(cos, "cos", {head_dim / 2}), input<float>(sin, "sin", {head_dim / 2}));
}

void quantize_token(const std::string& isa, const InputArray& x, const OutputArray& codes,
                    const OutputArray& scales, const OutputArray& sums) {
  const KernelTable& table = require_table(isa);
  const float* x_data = input<float>(x, "x", {kAny});
  const int64_t n = static_cast<int64_t>(x.shape(0));
  const int64_t padded = round_up(n, kActivationPad);
  int8_t* code_data = output<int8_t>(codes, "codes", {padded});
  float* scale = output<float>(scales, "scales", {1});
  table.quantize_token(x_data, n, padded, code_data, scale, output<int32_t>(sums, "sums", {1}));
}

void quantize_groups(const std::string& isa, const InputArray& x, const OutputArray& codes,
                     const OutputArray& scales, const OutputArray& sums) {
  const KernelTable& table = require_table(isa);
  const float* x_data = input<float>(x, "x", {kAny});
  const int64_t n = static_cast<int64_t>(x.shape(0));
  const int64_t padded = round_up(n, kActivationPad);
  const int64_t groups = padded / kActivationGroup;
  int8_t* code_data = output<int8_t>(codes, "codes", {padded});
  float* scale = output<float>(scales, "scales", {groups});
  table.quantize_groups(x_data, n, padded, code_data, scale,
                        output<int32_t>(sums, "sums", {2 * groups}));
}

// One head of a cache; its segments lie side by side. Only store_kv writes into it.
template <typename Array>
KvHead checked_kv_head(const std::string& kv_type, int64_t head_dim, const Array& data,
                       int64_t* positions) {
  const KvType type = require_kv_type(kv_type);
  require(head_dim > 0 && head_dim % 2 == 0, "key", "an even head_dim", std::to_string(head_dim));
  detail::check<uint8_t>(data, "cache", {kAny});
  const int64_t block = kv_block_bytes(type, head_dim);
  const int64_t bytes = static_cast<int64_t>(data.shape(0));
  require(bytes > 0 && bytes % block == 0, "cache", "blocks of " + std::to_string(block) + " bytes",
          std::to_string(bytes) + " bytes");
  require(reinterpret_cast<uintptr_t>(data.data()) % sizeof(float) == 0, "cache",
          "4-byte alignment", "another");
  *positions = bytes / block * kKvBlock;
  return {type, head_dim,
          static_cast<uint8_t*>(const_cast<void*>(static_cast<const void*>(data.data())))};
}

KvHead segment_of(const KvHead& all, int64_t segment) {
  const int64_t blocks = segment * kKvSegment / kKvBlock;
  return {all.type, all.head_dim, all.data + blocks * kv_block_bytes(all.type, all.head_dim)};
}

void store_kv(const std::string& isa, const std::string& kv_type, int64_t position,
              const InputArray& key, const InputArray& value, const OutputArray& data) {
  const KernelTable& table = require_table(isa);
  const float* key_data = input<float>(key, "key", {kAny});
  const int64_t head_dim = static_cast<int64_t>(key.shape(0));
  const float* value_data = input<float>(value, "value", {head_dim});
  int64_t positions = 0;
  const KvHead cache = checked_kv_head(kv_type, head_dim, data, &positions);
  require_range("position", position, 0, positions - 1);
  table.store_kv(segment_of(cache, position / kKvSegment), position % kKvSegment, key_data,
                 value_data);
}

void attention(const std::string& isa, const std::string& kv_type, const InputArray& q,
               const InputArray& data, int64_t first, int64_t last, float scale,
               const OutputArray& out) {
  const KernelTable& table = require_table(isa);
  AttentionArgs args{};
  args.q = input<float>(q, "q", {kAny, kAny});
  args.n_heads = static_cast<int64_t>(q.shape(0));
  const int64_t head_dim = static_cast<int64_t>(q.shape(1));
  int64_t positions = 0;
  const KvHead cache = checked_kv_head(kv_type, head_dim, data, &positions);
  require_range("last", last, 0, positions - 1);
  require_range("first", first, 0, last);
  args.scale = scale;
  std::vector<int8_t> codes(static_cast<size_t>(attention_codes(head_dim)));
  args.codes = codes.data();
  std::vector<float> states(static_cast<size_t>(4 * args.n_heads));
  std::vector<float> later(static_cast<size_t>(args.n_heads * head_dim));
  const AttentionPart whole{output<float>(out, "out", {args.n_heads, head_dim}), states.data()};
  const AttentionPart part{later.data(), states.data() + 2 * args.n_heads};
  for (int64_t segment = first / kKvSegment; segment <= last / kKvSegment; ++segment) {
    args.cache = segment_of(cache, segment);
    args.first = std::max<int64_t>(0, first - segment * kKvSegment);
    args.last = std::min(last - segment * kKvSegment, kKvSegment - 1);
    const bool is_first = segment == first / kKvSegment;
    args.part = is_first ? whole : part;
    table.attention(args);
    if (!is_first) table.attention_merge(whole, part, args.n_heads, head_dim);
  }
  table.attention_finish(whole, args.n_heads, head_dim);
}

}  // namespace

const KernelTable& require_table(const std::string& isa) {
  const std::optional<Isa> id = isa_from_name(isa);
  const KernelTable* table = id ? kernel_table(*id) : nullptr;
  if (table != nullptr) return *table;
  std::string available;
  for (const std::string& name : available_isas()) {
    available += (available.empty() ? "" : ", ") + name;
  }
  nb::dict facts;
  facts["isa"] = isa;
  facts["available"] = available_isas();
  raise_kernel_error("instruction set " + isa + ": " +
                         (id ? "this build or machine does not have it" : "no such name"),
                     "available here: " + available, facts);
}

FormatId require_format(const std::string& name) {
  const std::optional<FormatId> id = format_from_name(name);
  if (id) return *id;
  std::string known;
  for (const FormatSpec& spec : kFormats)
    known += (known.empty() ? "" : ", ") + std::string(spec.name);
  raise_mismatch("format", "one of " + known, name, "use one of these formats");
}

KvType require_kv_type(const std::string& name) {
  if (name == "f16") return KvType::f16;
  if (name == "f32") return KvType::f32;
  if (name == "int8") return KvType::int8;
  raise_mismatch("kv_type", "f16, f32 or int8", name, "use one of these");
}

int64_t require_nbytes(FormatId format, int64_t rows, int64_t cols) {
  const std::optional<int64_t> bytes = format_nbytes(format, rows, cols);
  if (bytes) return *bytes;
  raise_mismatch(
      "matrix shape",
      "1.." + std::to_string(kMaxRows) + " rows and 1.." + std::to_string(kMaxCols) + " columns",
      "(" + std::to_string(rows) + ", " + std::to_string(cols) + ")",
      "the model is too large or its header is wrong");
}

void bind_kernels(nb::module_& m) {
  m.def("available_isas", &available_isas);
  m.def("best_isa", [] { return std::string(best_kernel_table().name); });
  m.def("table_name", [](const std::string& isa) { return std::string(require_table(isa).name); });
  m.def("format_names", [] {
    std::vector<std::string> names;
    for (const FormatSpec& spec : kFormats) names.emplace_back(spec.name);
    return names;
  });
  m.def("format_nbytes", [](const std::string& format, int64_t rows, int64_t cols) {
    return require_nbytes(require_format(format), rows, cols);
  });
  m.def("build_info", [] {
    nb::dict info;
    info["compiler"] = std::string(kCompiler);
    info["build_type"] = std::string(QH_BUILD_TYPE);
    info["flags"] = std::string(QH_BUILD_FLAGS);
    info["sanitizer"] = std::string(QH_BUILD_SANITIZE);
    info["isas"] = std::string(QH_BUILD_ISAS);
    return info;
  });
  m.def("linear_quantized", &linear_quantized);
  m.def("linear_f32", &linear_f32);
  m.def("unpack_row", &unpack_row);
  m.def("rms_norm", &rms_norm);
  m.def("add", &add);
  m.def("gated", &gated);
  m.def("rope", &rope);
  m.def("quantize_token", &quantize_token);
  m.def("quantize_groups", &quantize_groups);
  m.def("store_kv", &store_kv);
  m.def("attention", &attention);
  bind_bench(m);
}

}  // namespace qh
