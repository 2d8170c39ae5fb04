// packed_scale.h: the scale of one weight of a packed format, read from its tile.
#pragma once

#include <cstdint>

#include "core/compiler.h"
#include "core/half.h"
#include "formats.h"

namespace qh {
namespace {

QH_ALWAYS_INLINE float load_f32(const uint8_t* bytes) noexcept {
  float value;
  __builtin_memcpy(&value, bytes, sizeof value);
  return value;
}

QH_ALWAYS_INLINE uint16_t load_u16(const uint8_t* bytes) noexcept {
  uint16_t value;
  __builtin_memcpy(&value, bytes, sizeof value);
  return value;
}

// The scale of row r and weight group `group` as products read it: for e4m3, 2^-8 of its value.
QH_ALWAYS_INLINE float lut4_group_scale(const FormatSpec& spec, const uint8_t* tile, int64_t group,
                                        int64_t r) noexcept {
  const uint8_t* at = tile + group_scales_at(spec, group) + r * scale_width(spec);
  switch (spec.scale) {
    case ScaleType::e8m0: {
      // Byte 0 is 2^-127, a subnormal number with the bits below.
      const uint32_t bits = static_cast<uint32_t>(*at) << 23;
      return float_from_bits(bits > 0x00400000u ? bits : 0x00400000u);
    }
    case ScaleType::e4m3:
      return float_from_half(static_cast<uint16_t>(*at << 7));
    case ScaleType::none:
    case ScaleType::f16:
      break;
  }
  return float_from_half(load_u16(at));
}

// The 16 row scales of a tile.
QH_ALWAYS_INLINE const uint8_t* row_scales_of(const FormatSpec& spec, const uint8_t* tile,
                                              int64_t padded_cols) noexcept {
  return tile + row_scales_at(spec, padded_cols);
}

// What the value of row r, column k is multiplied by; one rounding where there are two scales.
QH_ALWAYS_INLINE float packed_scale(const FormatSpec& spec, const uint8_t* tile,
                                    int64_t padded_cols, int64_t r, int64_t k) noexcept {
  const uint8_t* row_scale = row_scales_of(spec, tile, padded_cols) + 4 * r;
  if (spec.family != Family::lut4) return load_f32(row_scale);
  float scale = lut4_group_scale(spec, tile, k / spec.group, r);
  if (spec.scale == ScaleType::e4m3) scale *= 256.0f;
  return spec.row_scales ? scale * load_f32(row_scale) : scale;
}

}  // namespace
}  // namespace qh
