// kv_cache.h: keys and values of every layer and position, rope already applied to the keys.
//
// Layout: layer by layer, first all keys of the layer, then all its values; each of them
// (num_key_value_heads, context_length, head_dim) in KvType, so that the attention of a head reads
// one unbroken stretch (with the heads of a position side by side it took 1.3 times as long at 500
// positions and 1.8 times at 2,000; AVX-512, 5 heads of 128, November 2026). Positions are written
// in order, so dropping the last ones (a new turn that shares a prefix) is only a smaller position.
#pragma once

#include <cstdint>

#include "decoder/arena.h"
#include "decoder/model_view.h"

namespace qh {

class KvCache {
 public:
  KvCache(const ModelShape& shape, int64_t context_length, KvType type)
      : row_bytes_(shape.head_dim * value_bytes(type)),
        head_bytes_(context_length * row_bytes_),
        plane_bytes_(plane_bytes(shape, context_length, type)),
        block_(bytes(shape, context_length, type)) {}

  static int64_t bytes(const ModelShape& shape, int64_t context_length, KvType type) noexcept {
    return 2 * shape.num_hidden_layers * plane_bytes(shape, context_length, type);
  }

  // (context_length, head_dim) of one layer and key-value head.
  uint8_t* keys(int64_t layer, int64_t head) const noexcept {
    return block_.data() + 2 * layer * plane_bytes_ + head * head_bytes_;
  }
  uint8_t* values(int64_t layer, int64_t head) const noexcept {
    return keys(layer, head) + plane_bytes_;
  }
  int64_t row_bytes() const noexcept { return row_bytes_; }
  int64_t bytes() const noexcept { return block_.bytes(); }

 private:
  static int64_t value_bytes(KvType type) noexcept { return type == KvType::f16 ? 2 : 4; }
  static int64_t plane_bytes(const ModelShape& shape, int64_t context_length,
                             KvType type) noexcept {
    return round_up(context_length * shape.kv_size() * value_bytes(type), kAlignment);
  }

  int64_t row_bytes_;    // one position of one head
  int64_t head_bytes_;   // all positions of one head
  int64_t plane_bytes_;  // all heads
  AlignedBlock block_;
};

}  // namespace qh
