// avx512vbmi.cpp: the avx512vbmi instance of every kernel. Defines avx512vbmi_table() and nothing
// else.
#include "simd/avx512vbmi.h"

#include "dispatch.h"
#include "isa/make_table.h"

const qh::KernelTable& qh::avx512vbmi_table() noexcept {
  static constexpr KernelTable table = make_table<SimdVbmi>(Isa::avx512vbmi, "avx512vbmi");
  return table;
}
