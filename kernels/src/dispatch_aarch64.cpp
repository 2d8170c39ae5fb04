// dispatch_aarch64.cpp: Advanced SIMD is part of AArch64; products of bytes are asked of the
// kernel, whose HWCAP bits already combine CPU and OS support.
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include <initializer_list>

#include "dispatch.h"

namespace qh {

const KernelTable* kernel_table(Isa isa) noexcept {
  const unsigned long capabilities = getauxval(AT_HWCAP);
  switch (isa) {
    case Isa::scalar:
      return &scalar_table();
    case Isa::neon:
      return (capabilities & HWCAP_ASIMD) != 0 ? &neon_table() : nullptr;
    case Isa::neon_dotprod:
      return (capabilities & HWCAP_ASIMDDP) != 0 ? &neon_dotprod_table() : nullptr;
    case Isa::neon_i8mm:
      return (capabilities & HWCAP_ASIMDDP) != 0 && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0
                 ? &neon_i8mm_table()
                 : nullptr;
    case Isa::avx2:
    case Isa::avxvnni:
    case Isa::avx512vnni:
    case Isa::avx512vbmi:
    case Isa::amx:
      break;
  }
  return nullptr;
}

const KernelTable& best_kernel_table() noexcept {
  for (const Isa isa : {Isa::neon_i8mm, Isa::neon_dotprod, Isa::neon}) {
    if (const KernelTable* table = kernel_table(isa)) return *table;
  }
  return scalar_table();
}

}  // namespace qh
