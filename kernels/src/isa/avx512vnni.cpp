// avx512vnni.cpp: the avx512vnni instance of every kernel. Defines avx512vnni_table() and nothing
// else.
#include "simd/avx512vnni.h"

#include "dispatch.h"
#include "isa/make_table.h"

const qh::KernelTable& qh::avx512vnni_table() noexcept {
  static constexpr KernelTable table = make_table<Simd>(Isa::avx512vnni, "avx512vnni");
  return table;
}
