// ops.h: everything in a token step that is not a matrix product, in plain loops.
//
// Activation quantization is exact and the same on every instruction set; the other functions agree
// with the vector versions within rounding (sums here are float64).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/half.h"
#include "kernel_table.h"

namespace qh {
namespace {

// Where the sum of squares is beyond float32, the row becomes NaN, so that the decoder can report
// it: the vector versions could only divide by infinity, which gives a row of zeros.
inline void scalar_rms_norm(const float* x, const float* weight, float eps, int64_t n,
                            float* out) noexcept {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double mean = sum / static_cast<double>(n);
  const bool finite = static_cast<float>(sum) < float_from_bits(0x7f800000u);
  const float inverse = finite
                            ? static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(eps)))
                            : float_from_bits(0x7fc00000u);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

inline void scalar_add(float* x, const float* y, int64_t n) noexcept {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

inline void scalar_gated(Activation act, const float* gate, const float* up, int64_t n,
                         float* out) noexcept {
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i];
    if (act == Activation::silu) {
      out[i] = g / (1.0f + std::exp(-g)) * up[i];
    } else {
      const float positive = g < 0.0f ? 0.0f : g;  // NaN stays NaN
      out[i] = positive * positive * up[i];
    }
  }
}

inline void scalar_rope(float* x, int64_t n_heads, int64_t head_dim, const float* cos,
                        const float* sin) noexcept {
  const int64_t half = head_dim / 2;
  for (int64_t head = 0; head < n_heads; ++head) {
    float* lower = x + head * head_dim;
    float* upper = lower + half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = lower[i];
      const float b = upper[i];
      lower[i] = a * cos[i] - b * sin[i];
      upper[i] = b * cos[i] + a * sin[i];
    }
  }
}

// Largest |x| as a bit pattern; at or above 0x7f800000 where an input is infinite or NaN.
inline uint32_t largest_magnitude_bits(const float* x, int64_t n) noexcept {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = bits_from_float(x[i]) & 0x7fffffffu;
    if (magnitude > largest) largest = magnitude;
  }
  return largest;
}

// Non-finite input: codes 0, sum 0 and a NaN scale, so that every output of the layer is NaN and
// the decoder can report it.
inline void scalar_quantize_token(const float* x, int64_t n, int64_t padded, int8_t* codes,
                                  float* scale, int32_t* sum) noexcept {
  const uint32_t bits = largest_magnitude_bits(x, n);
  const bool finite = bits < 0x7f800000u;
  const float magnitude = float_from_bits(bits);
  const float a = 127.0f / (magnitude > 1e-5f ? magnitude : 1e-5f);
  int32_t total = 0;
  for (int64_t i = 0; i < padded; ++i) {
    float code = 0.0f;
    if (finite && i < n) code = std::nearbyintf(x[i] * a);
    if (code > 127.0f) code = 127.0f;
    if (code < -128.0f) code = -128.0f;
    codes[i] = static_cast<int8_t>(code);
    total += codes[i];
  }
  *scale = finite ? 1.0f / a : float_from_bits(0x7fc00000u);
  *sum = total;
}

// scale = max|x| / 127; where that is 0 the codes are 0. Codes are clamped to -127..127, which
// matters only for subnormal scales. Non-finite input: as in quantize_token, for its group.
inline void scalar_quantize_groups(const float* x, int64_t n, int64_t padded, int8_t* codes,
                                   float* scales, int32_t* sums) noexcept {
  for (int64_t g = 0; g < padded / kActivationGroup; ++g) {
    const int64_t begin = g * kActivationGroup;
    const int64_t left = n - begin;
    const int64_t count = left < 0 ? 0 : (left < kActivationGroup ? left : kActivationGroup);
    const uint32_t bits = largest_magnitude_bits(x + begin, count);
    const bool finite = bits < 0x7f800000u;
    const float scale = float_from_bits(bits) / 127.0f;
    int32_t total = 0;
    int32_t first_half = 0;
    for (int64_t i = 0; i < kActivationGroup; ++i) {
      float code = 0.0f;
      if (finite && i < count && scale > 0.0f) code = std::nearbyintf(x[begin + i] / scale);
      if (code > 127.0f) code = 127.0f;
      if (code < -127.0f) code = -127.0f;
      codes[begin + i] = static_cast<int8_t>(code);
      total += codes[begin + i];
      if (i < kActivationGroup / 2) first_half += codes[begin + i];
    }
    scales[g] = finite ? scale : float_from_bits(0x7fc00000u);
    sums[2 * g] = total;
    sums[2 * g + 1] = first_half;
  }
}

}  // namespace
}  // namespace qh
