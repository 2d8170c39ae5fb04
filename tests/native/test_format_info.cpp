// test_format_info.cpp: names and checked sizes of formats, half-precision conversion, dispatch.
#include <cstring>

#include "check.h"
#include "core/half.h"
#include "format_info.h"
#include "formats.h"

namespace {

using qh_test::Report;

void test_sizes(Report& report) {
  const auto bytes = [](qh::FormatId format, int64_t rows, int64_t cols) {
    return qh::format_nbytes(format, rows, cols).value_or(-1);
  };
  using qh::FormatId;
  report.same(4 * 3 * 5, bytes(FormatId::f32, 3, 5), "nbytes", "f32", 0);
  report.same(2 * 3 * 5, bytes(FormatId::bf16, 3, 5), "nbytes", "bf16", 0);
  report.same(2 * (8 * 64 + 64), bytes(FormatId::int8, 17, 1), "nbytes", "int8", 0);
  report.same(3 * (64 + 64), bytes(FormatId::ternary, 48, 16), "nbytes", "ternary", 0);
  report.same(64 + 4 * 64, bytes(FormatId::int4_g32, 1, 32), "nbytes", "int4_g32", 0);
  report.same(64 + 32 * 64, bytes(FormatId::int4_g128, 16, 129), "nbytes", "int4_g128", 0);
  report.same(64 + 16 * 64, bytes(FormatId::nf4, 16, 65), "nbytes", "nf4", 0);
  report.same(128 + 20 * 64, bytes(FormatId::mxfp4, 16, 129), "nbytes", "mxfp4", 0);
  report.same(192 + 64 + 20 * 64, bytes(FormatId::nvfp4, 16, 129), "nbytes", "nvfp4", 0);
  for (const qh::FormatSpec& spec : qh::kFormats) {
    report.same(-1, bytes(spec.id, 0, 1), "nbytes", "no rows", 0);
    report.same(-1, bytes(spec.id, 1, 0), "nbytes", "no columns", 0);
    report.same(-1, bytes(spec.id, -1, 1), "nbytes", "negative rows", 0);
    report.same(-1, bytes(spec.id, 1, INT64_MIN), "nbytes", "negative columns", 0);
    report.same(-1, bytes(spec.id, qh::kMaxRows + 1, 1), "nbytes", "rows", 0);
    report.same(-1, bytes(spec.id, 1, qh::kMaxCols + 1), "nbytes", "columns", 0);
    report.same(1, bytes(spec.id, qh::kMaxRows, qh::kMaxCols) > 0, "nbytes", "largest", 0);
    const auto found = qh::format_from_name(spec.name);
    report.same(static_cast<int64_t>(spec.id), found ? static_cast<int64_t>(*found) : -1, "name",
                spec.name, 0);
    report.same(0, std::strcmp(qh::format_name(spec.id), spec.name), "name", spec.name, 1);
  }
  report.same(0, qh::format_from_name("int5").has_value(), "name", "int5", 0);
  report.same(0, qh::format_from_name("").has_value(), "name", "empty", 0);
}

// Every float16 survives the way through float32, and ties round to even.
void test_halves(Report& report) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = qh::float_from_half(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      report.same(1, (bits & 0x7fff) > 0x7c00, "half", "NaN", bits);
      continue;
    }
    report.same(bits, qh::half_from_float(value), "half", "round trip", bits);
    const uint32_t next_bits = bits + 1;
    if ((next_bits & 0x7fff) >= 0x7c00) continue;
    const float next = qh::float_from_half(static_cast<uint16_t>(next_bits));
    const float middle = value + (next - value) * 0.5f;
    const uint32_t even = (bits & 1) == 0 ? bits : next_bits;
    report.same(even, qh::half_from_float(middle), "half", "tie", bits);
  }
  report.same(0x7c00, qh::half_from_float(65520.0f), "half", "overflow", 0);
  report.same(0x7bff, qh::half_from_float(65519.0f), "half", "largest", 0);
  report.same(0x8000, qh::half_from_float(-1e-30f), "half", "underflow", 0);
}

void test_dispatch(Report& report) {
  const qh::KernelTable& best = qh::best_kernel_table();
  report.same(1, qh::kernel_table(best.isa) == &best, "dispatch", "best", 0);
  report.same(1, qh::kernel_table(qh::Isa::scalar) != nullptr, "dispatch", "scalar", 0);
  for (const char* name : {"scalar", "avx2", "avxvnni", "avx512vnni", "avx512vbmi", "amx", "neon",
                           "neon_dotprod", "neon_i8mm"}) {
    const auto isa = qh::isa_from_name(name);
    report.same(1, isa.has_value(), "isa", name, 0);
    if (isa) report.same(0, std::strcmp(qh::isa_name(*isa), name), "isa", name, 1);
  }
  report.same(0, qh::isa_from_name("sse9").has_value(), "isa", "sse9", 0);
}

}  // namespace

int main() {
  Report report;
  test_sizes(report);
  test_halves(report);
  test_dispatch(report);
  return report.finish("format_info");
}
