// kv_cache.h: keys and values of every layer and position, rope already applied to the keys.
//
// By segments of kKvSegment positions; within a segment layer by layer, and within a layer head by
// head, block after block. The attention of a layer reads unbroken stretches front to back, and
// memory is first used as positions are reached. Positions are written in order, so dropping the
// last ones (a new turn that shares a prefix) is only a smaller position.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/kv_layout.h"
#include "decoder/arena.h"
#include "decoder/model_view.h"

namespace qh {

class KvCache {
 public:
  KvCache(const ModelShape& shape, int64_t context_length, KvType type)
      : type_(type),
        head_dim_(shape.head_dim),
        heads_(shape.num_key_value_heads),
        layers_(shape.num_hidden_layers),
        positions_(round_up(context_length, kKvBlock)),
        block_(bytes(shape, context_length, type), Pages::large) {}

  static int64_t bytes(const ModelShape& shape, int64_t context_length, KvType type) noexcept {
    return shape.num_hidden_layers * shape.num_key_value_heads *
           (round_up(context_length, kKvBlock) / kKvBlock) * kv_block_bytes(type, shape.head_dim);
  }

  KvHead head(int64_t layer, int64_t head, int64_t segment) const noexcept {
    const int64_t positions = std::min(kKvSegment, positions_ - segment * kKvSegment);
    const int64_t before =
        segment * kKvSegment * layers_ * heads_ + (layer * heads_ + head) * positions;
    return {type_, head_dim_, block_.data() + before / kKvBlock * kv_block_bytes(type_, head_dim_)};
  }
  int64_t bytes() const noexcept { return block_.bytes(); }
  KvType type() const noexcept { return type_; }

 private:
  KvType type_;
  int64_t head_dim_;
  int64_t heads_;
  int64_t layers_;
  int64_t positions_;  // a multiple of kKvBlock
  AlignedBlock block_;
};

}  // namespace qh
