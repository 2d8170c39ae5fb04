// store_kv.h: keys and values into the KV cache; the same bits as src/scalar/attention.h.
//
// 16 values at a time are converted, then written one by one to where their position has its place.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/half.h"
#include "core/kv_layout.h"
#include "kernel_table.h"
#include "ops/elementwise.h"
#include "ops/quantize.h"

namespace qh {
namespace {

template <typename V>
struct StoreKv {
  // The codes of 16 inputs at a time, given to write(k, codes, n). Returns the scale.
  template <typename Write>
  static QH_ALWAYS_INLINE float codes(const float* x, int64_t n, Write write) noexcept {
    const uint32_t bits = largest_bits<V>(x, n);
    const float scale = float_from_bits(bits) / 127.0f;
    const bool zeros = bits >= kInfinityBits || !(scale > 0.0f);
    // A subnormal scale is coarse, so quotients up to 254 occur; they are clamped.
    const typename V::F32 divisor = V::set(zeros ? 1.0f : scale);
    const typename V::I32 low = V::set_i32(zeros ? 0 : -127);
    const typename V::I32 high = V::set_i32(zeros ? 0 : 127);
    for_lanes(n, [&](int64_t k, int lanes) {
      int8_t group[16];
      const auto rounded = V::round_i32(V::div(load_lanes<V>(x + k, lanes), divisor));
      V::store_codes(group, V::max(low, V::min(high, rounded)));
      write(k, group, lanes);
    });
    return bits >= kInfinityBits ? float_from_bits(kNanBits) : scale;
  }

  static void int8(const KvBlock& block, int64_t n, int64_t p, const float* key,
                   const float* value) noexcept {
    // Four values of a key lie together, and so do those of four positions of a value.
    uint8_t* keys = block.keys + key_at(KvType::int8, n, p, 0);
    block.key_scales[p] = codes(key, n, [=](int64_t k, const int8_t* group, int lanes) {
      for (int i = 0; i < lanes; i += 4) {
        const size_t bytes = lanes - i < 4 ? static_cast<size_t>(lanes - i) : 4;
        __builtin_memcpy(keys + (k + i) * kKvBlock, group + i, bytes);
      }
    });
    block.value_scales[p] = codes(value, n, [=](int64_t k, const int8_t* group, int lanes) {
      uint8_t* values = block.values + value_at(KvType::int8, n, p, k);
      for (int i = 0; i < lanes; ++i) values[4 * i] = static_cast<uint8_t>(group[i]);
    });
  }

  static void f16(const KvBlock& block, int64_t n, int64_t p, const float* key,
                  const float* value) noexcept {
    uint16_t* keys = reinterpret_cast<uint16_t*>(block.keys) + key_at(KvType::f16, n, p, 0);
    for_lanes(n, [=](int64_t k, int lanes) {
      uint16_t group[16];
      V::store_half(group, load_lanes<V>(key + k, lanes));
      for (int i = 0; i < lanes; ++i) keys[(k + i) * kKvBlock] = group[i];
    });
    for_lanes(n, [=](int64_t k, int lanes) {
      uint16_t* values = reinterpret_cast<uint16_t*>(block.values) + value_at(KvType::f16, n, p, k);
      if (lanes == 16) {
        V::store_half(values, V::load(value + k));
      } else {
        V::store_half_partial(values, V::load_partial(value + k, lanes), lanes);
      }
    });
  }

  static void f32(const KvBlock& block, int64_t n, int64_t p, const float* key,
                  const float* value) noexcept {
    float* keys = reinterpret_cast<float*>(block.keys) + key_at(KvType::f32, n, p, 0);
    for (int64_t k = 0; k < n; ++k) keys[k * kKvBlock] = key[k];
    float* values = reinterpret_cast<float*>(block.values);
    for (int64_t k = 0; k < n; ++k) values[value_at(KvType::f32, n, p, k)] = value[k];
  }
};

template <typename V>
void store_kv(const KvHead& cache, int64_t position, const float* key,
              const float* value) noexcept {
  const KvBlock block = kv_block(cache, position);
  const int64_t p = position % kKvBlock;
  switch (cache.type) {
    case KvType::int8:
      StoreKv<V>::int8(block, cache.head_dim, p, key, value);
      break;
    case KvType::f16:
      StoreKv<V>::f16(block, cache.head_dim, p, key, value);
      break;
    case KvType::f32:
      StoreKv<V>::f32(block, cache.head_dim, p, key, value);
      break;
  }
}

}  // namespace
}  // namespace qh
