// kv_layout.h: where an element of a KV cache is, and how large its parts are. Drawn in
// qh_kernels/kv_cache.py.
#pragma once

#include <cstdint>

#include "kernel_table.h"

namespace qh {
namespace {

constexpr int64_t kv_value_bytes(KvType type) noexcept {
  return type == KvType::int8 ? 1 : (type == KvType::f16 ? 2 : 4);
}

// Values that the key of one position takes: int8 keys are read 4 values at a time.
constexpr int64_t key_values(KvType type, int64_t head_dim) noexcept {
  return type == KvType::int8 ? (head_dim + 3) / 4 * 4 : head_dim;
}

// Where the values of a block begin, and its scales: first those of the keys.
constexpr int64_t values_at(KvType type, int64_t head_dim) noexcept {
  return kKvBlock * key_values(type, head_dim) * kv_value_bytes(type);
}
constexpr int64_t scales_at(KvType type, int64_t head_dim) noexcept {
  return values_at(type, head_dim) + kKvBlock * head_dim * kv_value_bytes(type);
}
constexpr int64_t kv_block_bytes(KvType type, int64_t head_dim) noexcept {
  return scales_at(type, head_dim) + (type == KvType::int8 ? 2 * 4 * kKvBlock : 0);
}

// Values of a position that lie together where kKvBlock positions of them follow each other.
constexpr int64_t kValueSlab = 64;
constexpr int64_t slab_width(int64_t head_dim, int64_t k) noexcept {
  const int64_t left = head_dim - k / kValueSlab * kValueSlab;
  return left < kValueSlab ? left : kValueSlab;
}

// In elements from the start of the keys, and of the values, of a block.
constexpr int64_t key_at(KvType type, int64_t, int64_t position, int64_t k) noexcept {
  if (type == KvType::int8) return (k / 4 * kKvBlock + position) * 4 + k % 4;
  return k * kKvBlock + position;
}
constexpr int64_t value_at(KvType type, int64_t head_dim, int64_t position, int64_t k) noexcept {
  const int64_t slab = k / kValueSlab * kValueSlab * kKvBlock;
  const int64_t width = slab_width(head_dim, k);
  const int64_t in_slab = k % kValueSlab;
  if (type == KvType::int8) return slab + (position / 4 * width + in_slab) * 4 + position % 4;
  return slab + position * width + in_slab;
}

// The parts of the block that holds a position.
struct KvBlock {
  uint8_t* keys;
  uint8_t* values;
  float* key_scales;
  float* value_scales;
};
inline KvBlock kv_block(const KvHead& head, int64_t position) noexcept {
  uint8_t* block = head.data + position / kKvBlock * kv_block_bytes(head.type, head.head_dim);
  float* scales = reinterpret_cast<float*>(block + scales_at(head.type, head.head_dim));
  return {block, block + values_at(head.type, head.head_dim), scales, scales + kKvBlock};
}

}  // namespace
}  // namespace qh
