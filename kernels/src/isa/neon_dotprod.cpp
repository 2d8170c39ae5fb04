// neon_dotprod.cpp: the neon_dotprod instance of every kernel. Defines neon_dotprod_table() and
// nothing else.
#include "simd/neon_dotprod.h"

#include "dispatch.h"
#include "isa/make_table.h"

const qh::KernelTable& qh::neon_dotprod_table() noexcept {
  static constexpr KernelTable table = make_table<Simd>(Isa::neon_dotprod, "neon_dotprod");
  return table;
}
