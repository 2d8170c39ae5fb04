// tile_permission.cpp: the tile registers of AMX are asked for, once, for every thread of a
// process.
#include "dispatch.h"

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>

bool qh::permit_tiles() noexcept {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool qh::permit_tiles() noexcept { return false; }
#endif
