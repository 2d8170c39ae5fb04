// avx2.cpp: the avx2 instance of every kernel. Defines avx2_table() and nothing else.
#include "simd/avx2.h"

#include "dispatch.h"
#include "isa/make_table.h"

const qh::KernelTable& qh::avx2_table() noexcept {
  static constexpr KernelTable table = make_table<Simd>(Isa::avx2, "avx2");
  return table;
}
