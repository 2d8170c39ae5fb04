// dispatch.h: what the per-architecture dispatch files share. One of dispatch_x86.cpp,
// dispatch_aarch64.cpp and dispatch_portable.cpp is compiled, chosen by CMake; none of them gets
// instruction-set flags or LTO, because they run before anything is known about the CPU.
#pragma once

#include "kernel_table.h"

namespace qh {

// The table of each file in src/isa/; only those compiled into this build are defined.
const KernelTable& scalar_table() noexcept;
const KernelTable& avx2_table() noexcept;
const KernelTable& avxvnni_table() noexcept;
const KernelTable& avx512vnni_table() noexcept;
const KernelTable& avx512vbmi_table() noexcept;
const KernelTable& amx_table() noexcept;
const KernelTable& neon_table() noexcept;
const KernelTable& neon_dotprod_table() noexcept;
const KernelTable& neon_i8mm_table() noexcept;

// x86: whether the OS lets every thread of this process use tile registers from now on. Linux
// refuses where a thread has a signal stack too small for them.
bool permit_tiles() noexcept;

}  // namespace qh
