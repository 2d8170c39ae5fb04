// exponential.h: e^x on vectors.
//
// Method: x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts (Cody and Waite 1980), e^r by its
// Taylor polynomial of degree 7 (truncation below 2^-27 of the result), 2^n in two factors so that
// the ends of the range need no special case. Relative error below 2 ulp (2^-22) where e^x is a
// normal number; 0 below -104, infinity above 88.73, NaN for NaN.
#pragma once

#include "core/compiler.h"

namespace qh {
namespace {

template <typename V>
QH_ALWAYS_INLINE typename V::F32 exponential(typename V::F32 x) noexcept {
  using F32 = typename V::F32;
  // min and max keep a NaN of their second argument.
  const F32 clamped = V::max(V::set(-104.0f), V::min(V::set(89.0f), x));
  const auto n = V::round_i32(V::mul(clamped, V::set(1.44269504f)));
  const F32 whole = V::to_f32(n);
  F32 r = V::fma(whole, V::set(-0.693359375f), clamped);
  r = V::fma(whole, V::set(2.12194440e-4f), r);
  F32 p = V::set(1.0f / 5040.0f);
  p = V::fma(p, r, V::set(1.0f / 720.0f));
  p = V::fma(p, r, V::set(1.0f / 120.0f));
  p = V::fma(p, r, V::set(1.0f / 24.0f));
  p = V::fma(p, r, V::set(1.0f / 6.0f));
  p = V::fma(p, r, V::set(0.5f));
  p = V::fma(p, r, V::set(1.0f));
  p = V::fma(p, r, V::set(1.0f));
  const auto half = V::template shift_right_signed<1>(n);
  return V::mul(V::mul(p, V::power_of_two(half)), V::power_of_two(V::sub(n, half)));
}

}  // namespace
}  // namespace qh
