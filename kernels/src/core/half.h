// half.h: float16 and bfloat16 <-> float32 without special instructions; exact, round to nearest
// even.
//
// In an anonymous namespace because files with instruction-set flags include it: a weak symbol
// compiled for a newer CPU must never be the one the linker keeps.
#pragma once

#include <cstdint>

#include "core/compiler.h"

namespace qh {
namespace {

QH_ALWAYS_INLINE float float_from_bits(uint32_t bits) noexcept {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

QH_ALWAYS_INLINE uint32_t bits_from_float(float value) noexcept {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

QH_ALWAYS_INLINE float float_from_bf16(uint16_t half) noexcept {
  return float_from_bits(static_cast<uint32_t>(half) << 16);
}

// NaN stays NaN and becomes quiet, as the conversion instructions of x86 and Arm do.
QH_ALWAYS_INLINE float float_from_half(uint16_t half) noexcept {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1f) {
    const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
    return float_from_bits(sign | 0x7f800000u | quiet | (mantissa << 13));
  }
  if (exponent == 0) {
    // Zero or subnormal: mantissa * 2^-24 is exact in float32.
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return float_from_bits(sign | bits_from_float(magnitude));
  }
  return float_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Round to nearest even; beyond 65504 + half a step gives infinity, NaN stays NaN.
QH_ALWAYS_INLINE uint16_t half_from_float(float value) noexcept {
  const uint32_t bits = bits_from_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  }
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Subnormal result: adding 0.5 lines the float's last bit up with 2^-24, so the addition
    // itself rounds to nearest even.
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_from_float(shifted) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + odd;
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

}  // namespace
}  // namespace qh
