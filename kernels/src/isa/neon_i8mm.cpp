// neon_i8mm.cpp: the neon_i8mm instance of every kernel. Defines neon_i8mm_table() and nothing
// else.
#include "simd/neon_i8mm.h"

#include "dispatch.h"
#include "isa/make_table.h"

const qh::KernelTable& qh::neon_i8mm_table() noexcept {
  static constexpr KernelTable table = make_table<Simd>(Isa::neon_i8mm, "neon_i8mm");
  return table;
}
