// quantize.h: float32 activations to int8 codes; the same bits as src/scalar/ops.h, which defines
// them. Division and multiplication are IEEE operations and rounding is to nearest even, so vectors
// change nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/half.h"
#include "kernel_table.h"
#include "ops/elementwise.h"

namespace qh {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kNanBits = 0x7fc00000u;

template <typename V>
QH_ALWAYS_INLINE uint32_t largest_bits(const float* x, int64_t n) noexcept {
  typename V::I32 largest = V::zero_i32();
  for_lanes(n, [&](int64_t k, int lanes) {
    largest = V::max(largest, V::magnitude_bits(load_lanes<V>(x + k, lanes)));
  });
  return static_cast<uint32_t>(V::reduce_max(largest));
}

QH_ALWAYS_INLINE void clear_codes(int8_t* codes, int64_t n) noexcept {
  __builtin_memset(codes, 0, static_cast<size_t>(n));
}

template <typename V>
void quantize_token(const float* x, int64_t n, int64_t padded, int8_t* codes, float* scale,
                    int32_t* sum) noexcept {
  const uint32_t bits = largest_bits<V>(x, n);
  if (bits >= kInfinityBits) {
    clear_codes(codes, padded);
    *scale = float_from_bits(kNanBits);
    *sum = 0;
    return;
  }
  const float magnitude = float_from_bits(bits);
  const float a = 127.0f / (magnitude > 1e-5f ? magnitude : 1e-5f);
  const typename V::F32 factor = V::set(a);
  typename V::I32 total = V::zero_i32();
  for (int64_t k = 0; k < padded; k += 16) {
    // Lanes past n read as zero and give code 0.
    const int64_t left = n - k;
    const int lanes = left >= 16 ? 16 : (left > 0 ? static_cast<int>(left) : 0);
    // |x * a| <= 127 (1 + 2^-23): the rounded code is in range before the clamp already.
    typename V::I32 code = V::round_i32(V::mul(load_lanes<V>(x + k, lanes), factor));
    code = V::max(V::set_i32(-128), V::min(V::set_i32(127), code));
    total = V::add(total, code);
    V::store_codes(codes + k, code);
  }
  *scale = 1.0f / a;
  *sum = V::reduce_add(total);
}

template <typename V>
void quantize_groups(const float* x, int64_t n, int64_t padded, int8_t* codes, float* scales,
                     int32_t* sums) noexcept {
  for (int64_t begin = 0; begin < padded; begin += kActivationGroup) {
    const int64_t g = begin / kActivationGroup;
    const int64_t left = n - begin;
    const int first = left >= 16 ? 16 : (left > 0 ? static_cast<int>(left) : 0);
    const int second = left >= 32 ? 16 : (left > 16 ? static_cast<int>(left - 16) : 0);
    const typename V::F32 a = first > 0 ? load_lanes<V>(x + begin, first) : V::zero();
    const typename V::F32 b = second > 0 ? load_lanes<V>(x + begin + 16, second) : V::zero();
    const uint32_t bits =
        static_cast<uint32_t>(V::reduce_max(V::max(V::magnitude_bits(a), V::magnitude_bits(b))));
    const float scale = float_from_bits(bits) / 127.0f;
    if (bits >= kInfinityBits || !(scale > 0.0f)) {
      clear_codes(codes + begin, kActivationGroup);
      scales[g] = bits >= kInfinityBits ? float_from_bits(kNanBits) : 0.0f;
      sums[2 * g] = 0;
      sums[2 * g + 1] = 0;
      continue;
    }
    // A subnormal scale is coarse, so quotients up to 254 occur; they are clamped.
    const typename V::F32 divisor = V::set(scale);
    const typename V::I32 low = V::set_i32(-127);
    const typename V::I32 high = V::set_i32(127);
    const auto code_a = V::max(low, V::min(high, V::round_i32(V::div(a, divisor))));
    const auto code_b = V::max(low, V::min(high, V::round_i32(V::div(b, divisor))));
    V::store_codes(codes + begin, code_a);
    V::store_codes(codes + begin + 16, code_b);
    scales[g] = scale;
    sums[2 * g] = V::reduce_add(V::add(code_a, code_b));
    sums[2 * g + 1] = V::reduce_add(code_a);
  }
}

}  // namespace
}  // namespace qh
