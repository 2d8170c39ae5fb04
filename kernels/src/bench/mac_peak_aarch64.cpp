// mac_peak_aarch64.cpp: multiply-add sequences of 64-bit Arm. Twelve or eight sums, so that none
// waits for the one before it; dot products as numbers, since older assemblers need flags for their
// names.
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "bench/mac_peak.h"

namespace qh {
namespace {

bool has_simd() noexcept { return (getauxval(AT_HWCAP) & HWCAP_ASIMD) != 0; }
bool has_dotprod() noexcept { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
bool has_i8mm() noexcept {
  constexpr unsigned long kI8mm = 1ul << 13;  // HWCAP2_I8MM, which older headers lack
  return (getauxval(AT_HWCAP2) & kI8mm) != 0;
}

// fmla v<r>.4s, v16.4s, v17.4s
void fmla(int64_t passes) noexcept {
  __asm__ volatile(
      "fmov v16.4s, #1.0\n"
      "fmov v17.4s, #1.0\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      "movi v\\r\\().4s, #0\n"
      ".endr\n"
      "1:\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      "fmla v\\r\\().4s, v16.4s, v17.4s\n"
      ".endr\n"
      "subs %0, %0, #1\n"
      "b.ne 1b\n"
      : "+r"(passes)
      :
      : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v16",
        "v17");
}

// Into int16 sums, as the kernels without dot products do; widening those is left out.
void smlal(int64_t passes) noexcept {
  __asm__ volatile(
      "movi v16.16b, #3\n"
      "movi v17.16b, #5\n"
      "1:\n"
      ".irp r, 0, 1, 2, 3\n"
      "smlal v\\r\\().8h, v16.8b, v17.8b\n"
      ".endr\n"
      ".irp r, 4, 5, 6, 7\n"
      "smlal2 v\\r\\().8h, v16.16b, v17.16b\n"
      ".endr\n"
      "subs %0, %0, #1\n"
      "b.ne 1b\n"
      : "+r"(passes)
      :
      : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17");
}

// sdot v<r>.4s, v16.16b, v17.16b
void sdot(int64_t passes) noexcept {
  __asm__ volatile(
      "movi v16.16b, #3\n"
      "movi v17.16b, #5\n"
      "1:\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      ".inst 0x4e919600 + \\r\n"
      ".endr\n"
      "subs %0, %0, #1\n"
      "b.ne 1b\n"
      : "+r"(passes)
      :
      : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v16",
        "v17");
}

// smmla v<r>.4s, v16.16b, v17.16b
void smmla(int64_t passes) noexcept {
  __asm__ volatile(
      "movi v16.16b, #3\n"
      "movi v17.16b, #5\n"
      "1:\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      ".inst 0x4e91a600 + \\r\n"
      ".endr\n"
      "subs %0, %0, #1\n"
      "b.ne 1b\n"
      : "+r"(passes)
      :
      : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v16",
        "v17");
}

constexpr MacPeak kPeaks[] = {
    {"fmla", has_simd, fmla, 12 * 4},
    {"smlal", has_simd, smlal, 8 * 8},
    {"sdot", has_dotprod, sdot, 12 * 16},
    {"smmla", has_i8mm, smmla, 12 * 32},
};

}  // namespace

MacPeaks mac_peaks() noexcept { return {kPeaks, sizeof kPeaks / sizeof kPeaks[0]}; }

}  // namespace qh
