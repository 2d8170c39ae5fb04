// amx_tiles.h: the tile registers of AMX.
//
// The instructions are written out: the compilers' intrinsics leave out what memory they use (GCC
// 12 says that ldtilecfg reads 8 of its 64 bytes, and drops the stores to the others). Source:
// Intel, Architecture Instruction Set Extensions Programming Reference, chapter on AMX.
#pragma once

#include "core/compiler.h"
#include "tiles/tile_config.h"

namespace qh {
namespace {

// Tile registers of this thread, from construction to destruction.
class AmxTiles {
 public:
  explicit AmxTiles(const TileConfig& config) noexcept {
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  ~AmxTiles() noexcept { __asm__ volatile("tilerelease"); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

  template <int kTile>
  QH_ALWAYS_INLINE void zero() noexcept {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  // Rows that lie `stride` bytes apart.
  template <int kTile>
  QH_ALWAYS_INLINE void load(const void* from, int64_t stride) noexcept {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(from), "r"(stride), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  QH_ALWAYS_INLINE void store(void* to, int64_t stride) noexcept {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(to), "r"(stride), "i"(kTile)
                     : "memory");
  }
  // int32 (m, n) of kSums += int8 (m, 4 * rows of kB) of kA times int8 of kB, whose row k holds 4
  // rows of the matrix side by side: byte 4 * n + i is element (4 * k + i, n).
  template <int kSums, int kA, int kB>
  QH_ALWAYS_INLINE void dot() noexcept {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
  }
};

}  // namespace
}  // namespace qh
