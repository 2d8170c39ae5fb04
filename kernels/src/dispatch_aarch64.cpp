// dispatch_aarch64.cpp: Advanced SIMD is part of AArch64; dot products are asked of the kernel,
// whose HWCAP bits already combine CPU and OS support.
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
    case Isa::avx2:
    case Isa::avx512vnni:
    case Isa::avx512vbmi:
      break;
  }
  return nullptr;
}

const KernelTable& best_kernel_table() noexcept {
  for (const Isa isa : {Isa::neon_dotprod, Isa::neon}) {
    if (const KernelTable* table = kernel_table(isa)) return *table;
  }
  return scalar_table();
}

}  // namespace qh
