// avxvnni.cpp: the avxvnni instance of every kernel. Defines avxvnni_table() and nothing else.
#include "simd/avxvnni.h"

#include "dispatch.h"
#include "isa/make_table.h"

const qh::KernelTable& qh::avxvnni_table() noexcept {
  static constexpr KernelTable table = make_table<Simd>(Isa::avxvnni, "avxvnni");
  return table;
}
