// tile_config.h: the shapes of the tile registers, as ldtilecfg reads them.
#pragma once

#include <cstdint>

namespace qh {
namespace {

inline constexpr int kTileRegisters = 8;

struct alignas(64) TileConfig {
  uint8_t palette;  // 1: eight registers of 16 rows of 64 bytes
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Registers [begin, end) of one shape.
constexpr void set_tiles(TileConfig& config, int begin, int end, int rows, int row_bytes) noexcept {
  for (int i = begin; i < end; ++i) {
    config.rows[i] = static_cast<uint8_t>(rows);
    config.row_bytes[i] = static_cast<uint16_t>(row_bytes);
  }
}

}  // namespace
}  // namespace qh
