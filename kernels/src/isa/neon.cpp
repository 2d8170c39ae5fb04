// neon.cpp: the neon instance of every kernel. Defines neon_table() and nothing else.
#include "simd/neon.h"

#include "dispatch.h"
#include "isa/make_table.h"

const qh::KernelTable& qh::neon_table() noexcept {
  static constexpr KernelTable table = make_table<Simd>(Isa::neon, "neon");
  return table;
}
