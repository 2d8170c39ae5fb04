// elementwise.h: norm, activation, addition and rotation over rows of float32.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "ops/exponential.h"

namespace qh {
namespace {

// Calls body(index, lanes) for 16 lanes at a time and once for what is left.
template <typename Body>
QH_ALWAYS_INLINE void for_lanes(int64_t n, Body body) noexcept {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) body(i, 16);
  if (i < n) body(i, static_cast<int>(n - i));
}

template <typename V>
QH_ALWAYS_INLINE typename V::F32 load_lanes(const float* p, int lanes) noexcept {
  return lanes == 16 ? V::load(p) : V::load_partial(p, lanes);
}

template <typename V>
QH_ALWAYS_INLINE void store_lanes(float* p, typename V::F32 a, int lanes) noexcept {
  if (lanes == 16) {
    V::store(p, a);
  } else {
    V::store_partial(p, a, lanes);
  }
}

// The sum of squares has 32 partial sums: its relative error stays below (n / 32 + 6) * 2^-24.
// Beyond float32 the row becomes NaN, as in scalar_rms_norm.
template <typename V>
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) noexcept {
  using F32 = typename V::F32;
  F32 even = V::zero();
  F32 odd = V::zero();
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const F32 a = V::load(x + i);
    const F32 b = V::load(x + i + 16);
    even = V::fma(a, a, even);
    odd = V::fma(b, b, odd);
  }
  for (; i < n; i += 16) {
    const F32 a = load_lanes<V>(x + i, n - i < 16 ? static_cast<int>(n - i) : 16);
    even = V::fma(a, a, even);
  }
  const float sum = V::reduce_add(V::add(even, odd));
  const float mean = sum / static_cast<float>(n);
  const bool finite = sum < __builtin_inff();
  const F32 inverse = V::set(finite ? 1.0f / __builtin_sqrtf(mean + eps) : __builtin_nanf(""));
  for_lanes(n, [=](int64_t k, int lanes) {
    const F32 scaled = V::mul(load_lanes<V>(x + k, lanes), inverse);
    store_lanes<V>(out + k, V::mul(scaled, load_lanes<V>(weight + k, lanes)), lanes);
  });
}

template <typename V>
void add_rows(float* x, const float* y, int64_t n) noexcept {
  for_lanes(n, [=](int64_t k, int lanes) {
    store_lanes<V>(x + k, V::add(load_lanes<V>(x + k, lanes), load_lanes<V>(y + k, lanes)), lanes);
  });
}

template <typename V>
void gated(Activation act, const float* gate, const float* up, int64_t n, float* out) noexcept {
  using F32 = typename V::F32;
  if (act == Activation::silu) {
    for_lanes(n, [=](int64_t k, int lanes) {
      const F32 g = load_lanes<V>(gate + k, lanes);
      const F32 e = exponential<V>(V::sub(V::zero(), g));
      const F32 silu = V::div(g, V::add(V::set(1.0f), e));
      store_lanes<V>(out + k, V::mul(silu, load_lanes<V>(up + k, lanes)), lanes);
    });
  } else {
    for_lanes(n, [=](int64_t k, int lanes) {
      const F32 positive = V::max(V::zero(), load_lanes<V>(gate + k, lanes));
      const F32 squared = V::mul(positive, positive);
      store_lanes<V>(out + k, V::mul(squared, load_lanes<V>(up + k, lanes)), lanes);
    });
  }
}

template <typename V>
void rope(float* x, int64_t n_heads, int64_t head_dim, const float* cos,
          const float* sin) noexcept {
  using F32 = typename V::F32;
  const int64_t half = head_dim / 2;
  for (int64_t head = 0; head < n_heads; ++head) {
    float* lower = x + head * head_dim;
    float* upper = lower + half;
    for_lanes(half, [=](int64_t k, int lanes) {
      const F32 a = load_lanes<V>(lower + k, lanes);
      const F32 b = load_lanes<V>(upper + k, lanes);
      const F32 c = load_lanes<V>(cos + k, lanes);
      const F32 s = load_lanes<V>(sin + k, lanes);
      store_lanes<V>(lower + k, V::sub(V::mul(a, c), V::mul(b, s)), lanes);
      store_lanes<V>(upper + k, V::add(V::mul(b, c), V::mul(a, s)), lanes);
    });
  }
}

}  // namespace
}  // namespace qh
