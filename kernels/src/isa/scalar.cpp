// scalar.cpp: the plain instance of every kernel. No instruction-set flags; defines scalar_table().
#include "dispatch.h"
#include "scalar/linear.h"
#include "scalar/ops.h"

const qh::KernelTable& qh::scalar_table() noexcept {
  static constexpr KernelTable table = {
      Isa::scalar,
      "scalar",
      {ScalarLinear<FormatId::f32>::kernels(), ScalarLinear<FormatId::f16>::kernels(),
       ScalarLinear<FormatId::bf16>::kernels(), ScalarLinear<FormatId::int8>::kernels(),
       ScalarLinear<FormatId::ternary>::kernels(), ScalarLinear<FormatId::int4_g32>::kernels(),
       ScalarLinear<FormatId::int4_g128>::kernels()},
      &scalar_rms_norm,
      &scalar_add,
      &scalar_gated,
      &scalar_rope,
      &scalar_quantize_token,
      &scalar_quantize_groups,
      &scalar_store_kv,
      &scalar_attention,
  };
  return table;
}
