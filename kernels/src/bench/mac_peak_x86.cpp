// mac_peak_x86.cpp: multiply-add sequences of x86-64. Twelve sums, so that none waits for the one
// before it (latency 4 or 5, two a clock at most); registers beyond the sixteenth are not used,
// because compilers without AVX-512 flags cannot be told of them.
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "bench/mac_peak.h"
#include "kernel_table.h"

namespace qh {
namespace {

bool has_avx2() noexcept { return kernel_table(Isa::avx2) != nullptr; }
bool has_avx512vnni() noexcept { return kernel_table(Isa::avx512vnni) != nullptr; }

// The VNNI of processors without AVX-512.
bool has_only_avx_vnni() noexcept {
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  if (!has_avx2() || has_avx512vnni()) return false;
  constexpr uint32_t kAvxVnni = 1u << 4;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnni) != 0;
}

// Linux gives a process the tile registers when it asks for them, and only where it saves them.
// Source: Linux, Documentation/arch/x86/xstate.rst.
bool has_amx(uint32_t bit) noexcept {
#if defined(__linux__)
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  constexpr uint32_t kAmxTile = 1u << 24;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & (kAmxTile | bit)) != (kAmxTile | bit)) return false;
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  static_cast<void>(bit);
  return false;
#endif
}
bool has_amx_int8() noexcept { return has_amx(1u << 25); }
bool has_amx_bf16() noexcept { return has_amx(1u << 22); }

// Bytes that are small in every type: as int8, as int16 and, as 0x3f803f80, as bf16 or float32.
alignas(64) constexpr uint32_t kOnes[16] = {
    0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80,
    0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};

void fma_ymm(int64_t passes) noexcept {
  __asm__ volatile(
      "vmovups %1, %%ymm12\n"
      "vmovaps %%ymm12, %%ymm13\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      "vxorps %%xmm\\r, %%xmm\\r, %%xmm\\r\n"
      ".endr\n"
      "1:\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      "vfmadd231ps %%ymm12, %%ymm13, %%ymm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(passes)
      : "m"(kOnes)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13");
}

void fma_zmm(int64_t passes) noexcept {
  __asm__ volatile(
      "vmovups %1, %%zmm12\n"
      "vmovaps %%zmm12, %%zmm13\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      "vxorps %%xmm\\r, %%xmm\\r, %%xmm\\r\n"
      ".endr\n"
      "1:\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      "vfmadd231ps %%zmm12, %%zmm13, %%zmm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(passes)
      : "m"(kOnes)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13");
}

// The three instructions that stand in for a dot product where there is none: 32 multiply-adds.
void maddubs_ymm(int64_t passes) noexcept {
  __asm__ volatile(
      "vmovups %1, %%ymm12\n"
      "vmovaps %%ymm12, %%ymm13\n"
      "1:\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n"
      "vpmaddwd %%ymm12, %%ymm14, %%ymm14\n"
      "vpaddd %%ymm14, %%ymm\\r, %%ymm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(passes)
      : "m"(kOnes)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14");
}

void vpdpbusd_ymm(int64_t passes) noexcept {
  __asm__ volatile(
      "vmovups %1, %%ymm12\n"
      "vmovaps %%ymm12, %%ymm13\n"
      "1:\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      "vpdpbusd %%ymm12, %%ymm13, %%ymm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(passes)
      : "m"(kOnes)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13");
}

// The encoding without AVX-512, as numbers: assemblers of 2020 do not know it.
void vpdpbusd_vex_ymm(int64_t passes) noexcept {
  __asm__ volatile(
      "vmovups %1, %%ymm12\n"
      "vmovaps %%ymm12, %%ymm13\n"
      "1:\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7\n"
      ".byte 0xc4, 0xc2, 0x15, 0x50, 0xc4 + 8 * \\r\n"
      ".endr\n"
      ".irp r, 0, 1, 2, 3\n"
      ".byte 0xc4, 0x42, 0x15, 0x50, 0xc4 + 8 * \\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(passes)
      : "m"(kOnes)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13");
}

void vpdpbusd_zmm(int64_t passes) noexcept {
  __asm__ volatile(
      "vmovups %1, %%zmm12\n"
      "vmovaps %%zmm12, %%zmm13\n"
      "1:\n"
      ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n"
      "vpdpbusd %%zmm12, %%zmm13, %%zmm\\r\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      "vzeroupper\n"
      : "+r"(passes)
      : "m"(kOnes)
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13");
}

// Eight tiles of 16 rows of 64 bytes: four sums from two tiles and two.
struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);
alignas(64) constexpr TileConfig kTiles;

void tdpbssd(int64_t passes) noexcept {
  // Every row of a tile is the same 64 bytes: a stride of none.
  __asm__ volatile(
      "ldtilecfg %1\n"
      ".irp r, 4, 5, 6, 7\n"
      "tileloadd (%2, %3, 1), %%tmm\\r\n"
      ".endr\n"
      "1:\n"
      "tdpbssd %%tmm6, %%tmm4, %%tmm0\n"
      "tdpbssd %%tmm7, %%tmm4, %%tmm1\n"
      "tdpbssd %%tmm6, %%tmm5, %%tmm2\n"
      "tdpbssd %%tmm7, %%tmm5, %%tmm3\n"
      "dec %0\n"
      "jnz 1b\n"
      "tilerelease\n"
      : "+r"(passes)
      : "m"(kTiles), "r"(kOnes), "r"(int64_t{0})
      : "cc", "memory");
}

void tdpbf16ps(int64_t passes) noexcept {
  __asm__ volatile(
      "ldtilecfg %1\n"
      ".irp r, 4, 5, 6, 7\n"
      "tileloadd (%2, %3, 1), %%tmm\\r\n"
      ".endr\n"
      "1:\n"
      "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n"
      "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
      "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
      "tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n"
      "dec %0\n"
      "jnz 1b\n"
      "tilerelease\n"
      : "+r"(passes)
      : "m"(kTiles), "r"(kOnes), "r"(int64_t{0})
      : "cc", "memory");
}

constexpr MacPeak kPeaks[] = {
    {"fma_ymm", has_avx2, fma_ymm, 12 * 8},
    {"fma_zmm", has_avx512vnni, fma_zmm, 12 * 16},
    {"maddubs_ymm", has_avx2, maddubs_ymm, 12 * 32},
    {"vpdpbusd_ymm", has_only_avx_vnni, vpdpbusd_vex_ymm, 12 * 32},
    {"vpdpbusd_ymm", has_avx512vnni, vpdpbusd_ymm, 12 * 32},
    {"vpdpbusd_zmm", has_avx512vnni, vpdpbusd_zmm, 12 * 64},
    {"tdpbssd", has_amx_int8, tdpbssd, 4 * 16 * 16 * 64},
    {"tdpbf16ps", has_amx_bf16, tdpbf16ps, 4 * 16 * 16 * 32},
};

}  // namespace

MacPeaks mac_peaks() noexcept { return {kPeaks, sizeof kPeaks / sizeof kPeaks[0]}; }

}  // namespace qh
