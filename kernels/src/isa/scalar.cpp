// scalar.cpp: the plain instance of every kernel. No instruction-set flags; defines scalar_table().
#include "dispatch.h"
#include "scalar/attention.h"
#include "scalar/codebook.h"
#include "scalar/linear.h"
#include "scalar/ops.h"

namespace qh {
namespace {

// Fills formats[0..kCount) from kFormats, so that a new format line needs no change here.
template <int kCount>
constexpr void fill_formats(FormatKernels* formats) noexcept {
  if constexpr (kCount > 0) {
    fill_formats<kCount - 1>(formats);
    constexpr FormatId kFormat = kFormats[kCount - 1].id;
    if constexpr (spec_of(kFormat).family == Family::codebook) {
      formats[kCount - 1] = ScalarCodebook<kFormat>::kernels();
    } else {
      formats[kCount - 1] = ScalarLinear<kFormat>::kernels();
    }
  }
}

constexpr KernelTable make_table() noexcept {
  KernelTable table{};
  table.isa = Isa::scalar;
  table.name = "scalar";
  fill_formats<kFormatCount>(table.formats);
  table.rms_norm = &scalar_rms_norm;
  table.add = &scalar_add;
  table.gated = &scalar_gated;
  table.rope = &scalar_rope;
  table.quantize_token = &scalar_quantize_token;
  table.quantize_groups = &scalar_quantize_groups;
  table.store_kv = &scalar_store_kv;
  table.attention = &scalar_attention;
  table.attention_merge = &scalar_attention_merge;
  table.attention_finish = &scalar_attention_finish;
  return table;
}

}  // namespace
}  // namespace qh

const qh::KernelTable& qh::scalar_table() noexcept {
  static constexpr KernelTable table = make_table();
  return table;
}
