// dispatch_x86.cpp: which x86 tables run here. A CPU bit alone is not enough: the OS must also save
// the wide registers on a context switch (XGETBV), else they are corrupted or fault.
// Source: Intel SDM volume 1, sections 14.3 and 15.2 (detection of AVX and AVX-512).
#include <cpuid.h>

#include <initializer_list>

#include "dispatch.h"

namespace qh {
namespace {

struct CpuFeatures {
  bool avx2 = false;        // AVX2, FMA, F16C and OS-saved YMM state
  bool avxvnni = false;     // AVX2 and AVX-VNNI
  bool avx512vnni = false;  // F, BW, VL, DQ, VNNI and OS-saved ZMM and mask state
  bool avx512vbmi = false;  // the same and VBMI
  bool amx = false;         // all that, AMX-TILE, AMX-INT8 and tiles that the OS lets us use
};

uint64_t read_xcr0() noexcept {
  uint32_t low = 0;
  uint32_t high = 0;
  // The mnemonic needs -mxsave, which this file must not have; these are its bytes.
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0u));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool has_bits(uint64_t value, uint64_t wanted) noexcept { return (value & wanted) == wanted; }

CpuFeatures detect() noexcept {
  CpuFeatures features;
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return features;
  constexpr uint32_t kFma = 1u << 12;
  constexpr uint32_t kOsxsave = 1u << 27;
  constexpr uint32_t kAvx = 1u << 28;
  constexpr uint32_t kF16c = 1u << 29;
  if (!has_bits(ecx, kFma | kOsxsave | kAvx | kF16c)) return features;

  constexpr uint64_t kSseAndAvxState = 0x06;
  constexpr uint64_t kAvx512State = 0xe6;  // adds masks, upper ZMM halves, ZMM16..31
  const uint64_t xcr0 = read_xcr0();
  if (!has_bits(xcr0, kSseAndAvxState)) return features;

  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return features;
  [[maybe_unused]] const uint32_t last_subleaf = eax;
  constexpr uint32_t kAvx2 = 1u << 5;
  features.avx2 = has_bits(ebx, kAvx2);
  constexpr uint32_t kF = 1u << 16;
  constexpr uint32_t kDq = 1u << 17;
  constexpr uint32_t kBw = 1u << 30;
  constexpr uint32_t kVl = 1u << 31;
  constexpr uint32_t kVnni = 1u << 11;  // in ECX
  features.avx512vnni = features.avx2 && has_bits(xcr0, kAvx512State) &&
                        has_bits(ebx, kF | kDq | kBw | kVl) && has_bits(ecx, kVnni);
  constexpr uint32_t kVbmi = 1u << 1;  // in ECX
  features.avx512vbmi = features.avx512vnni && has_bits(ecx, kVbmi);
#ifdef QH_TEST_TWINS
  // In this build AVX-512 is enough for these: see kernels/README.md.
  features.avxvnni = features.avx512vnni;
  features.amx = features.avx512vbmi && permit_tiles();
#else
  constexpr uint32_t kAmxTile = 1u << 24;  // in EDX
  constexpr uint32_t kAmxInt8 = 1u << 25;
  constexpr uint64_t kTileState = 0x60000;
  features.amx = features.avx512vbmi && has_bits(edx, kAmxTile | kAmxInt8) &&
                 has_bits(xcr0, kTileState) && permit_tiles();
  if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) {
    constexpr uint32_t kAvxVnni = 1u << 4;  // in EAX
    features.avxvnni = features.avx2 && has_bits(eax, kAvxVnni);
  }
#endif
  return features;
}

const CpuFeatures& cpu_features() noexcept {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace

const KernelTable* kernel_table(Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar:
      return &scalar_table();
    case Isa::avx2:
      return cpu_features().avx2 ? &avx2_table() : nullptr;
    case Isa::avxvnni:
      return cpu_features().avxvnni ? &avxvnni_table() : nullptr;
    case Isa::avx512vnni:
      return cpu_features().avx512vnni ? &avx512vnni_table() : nullptr;
    case Isa::avx512vbmi:
      return cpu_features().avx512vbmi ? &avx512vbmi_table() : nullptr;
    case Isa::amx:
      return cpu_features().amx ? &amx_table() : nullptr;
    case Isa::neon:
    case Isa::neon_dotprod:
    case Isa::neon_i8mm:
      break;
  }
  return nullptr;
}

const KernelTable& best_kernel_table() noexcept {
  for (const Isa isa : {Isa::amx, Isa::avx512vbmi, Isa::avx512vnni, Isa::avxvnni, Isa::avx2}) {
    if (const KernelTable* table = kernel_table(isa)) return *table;
  }
  return scalar_table();
}

}  // namespace qh
