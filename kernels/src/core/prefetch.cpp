#include "core/prefetch.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif

namespace qh {
namespace {

// On AMD's cores (Zen 4, 2 cores of a server, November 2026) the hardware follows one stream per
// thread by itself, and asking for lines as well costs 10 to 20 % of the rate. On Intel's server
// cores it does not: there 8 KiB ahead raised a ternary product from 59 to 96 % of the bandwidth
// (Sapphire Rapids class, 2 threads).
uintptr_t distance_for_this_processor() noexcept {
  constexpr uintptr_t kFarAhead = 8192;
#if defined(__x86_64__) || defined(_M_X64)
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0) return kFarAhead;
  // "AuthenticAMD" and "HygonGenuine" in EBX, EDX, ECX; AMD APM volume 3, appendix E.3.1.
  const bool amd = ebx == 0x68747541u && edx == 0x69746e65u && ecx == 0x444d4163u;
  const bool hygon = ebx == 0x6f677948u && edx == 0x6e65476eu && ecx == 0x656e6975u;
  if (amd || hygon) return 0;
#endif
  return kFarAhead;
}

}  // namespace

uintptr_t prefetch_distance = distance_for_this_processor();

}  // namespace qh
