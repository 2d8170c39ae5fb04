// kv_cache.h: keys and values of every layer and position, rope already applied to the keys.
//
// Layout: layer by layer, first all keys of the layer, then all its values; each of them
// (context_length, num_key_value_heads, head_dim) in KvType. Positions are written in order, so
// dropping the last ones (a new turn that shares a prefix) is only a smaller position.
#pragma once

#include <cstdint>

#include "decoder/arena.h"
#include "decoder/model_view.h"

namespace qh {

class KvCache {
 public:
  KvCache(const ModelShape& shape, int64_t context_length, KvType type)
      : row_bytes_(shape.kv_size() * value_bytes(type)),
        plane_bytes_(plane_bytes(shape, context_length, type)),
        block_(bytes(shape, context_length, type)) {}

  static int64_t bytes(const ModelShape& shape, int64_t context_length, KvType type) noexcept {
    return 2 * shape.num_hidden_layers * plane_bytes(shape, context_length, type);
  }

  uint8_t* keys(int64_t layer) const noexcept { return block_.data() + 2 * layer * plane_bytes_; }
  uint8_t* values(int64_t layer) const noexcept { return keys(layer) + plane_bytes_; }
  uint8_t* key_row(int64_t layer, int64_t position) const noexcept {
    return keys(layer) + position * row_bytes_;
  }
  uint8_t* value_row(int64_t layer, int64_t position) const noexcept {
    return values(layer) + position * row_bytes_;
  }
  int64_t bytes() const noexcept { return block_.bytes(); }

 private:
  static int64_t value_bytes(KvType type) noexcept { return type == KvType::f16 ? 2 : 4; }
  static int64_t plane_bytes(const ModelShape& shape, int64_t context_length,
                             KvType type) noexcept {
    return round_up(context_length * shape.kv_size() * value_bytes(type), kAlignment);
  }

  int64_t row_bytes_;
  int64_t plane_bytes_;
  AlignedBlock block_;
};

}  // namespace qh
