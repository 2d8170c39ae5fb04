// amx.cpp: products with many tokens on AMX tiles, everything else as on AVX-512 VBMI. Defines
// amx_table() and nothing else.
#include "dispatch.h"
#include "simd/avx512vbmi.h"
#include "tiles/amx_tiles.h"
#include "tiles/tile_linear.h"

const qh::KernelTable& qh::amx_table() noexcept {
  static const KernelTable table = make_tile_table<SimdVbmi, AmxTiles>();
  return table;
}
