// dispatch_portable.cpp: processors without a vector instance of the kernels.
#include "dispatch.h"

namespace qh {

const KernelTable* kernel_table(Isa isa) noexcept {
  return isa == Isa::scalar ? &scalar_table() : nullptr;
}

const KernelTable& best_kernel_table() noexcept { return scalar_table(); }

}  // namespace qh
