// attention.h: softmax(q . K * scale) . V of one token over one segment of the KV cache.
//
// Positions are taken in chunks (the blocks of the cache) with a running maximum and a running sum,
// so one pass over the cache is enough and scores stay on the stack; heads that share a key head
// are done together, so that each key and value is read and converted once. What is computed for a
// head does not depend on which heads are done with it. Source: Milakov and Gimelshein 2018, Online
// normalizer calculation for softmax, algorithm 3. How a type of cache is multiplied is in
// attention_floats.h and attention_int8.h.
#pragma once

#include <cstdint>

#include "kernel_table.h"
#include "ops/attention_floats.h"
#include "ops/attention_int8.h"
#include "ops/elementwise.h"

namespace qh {
namespace {

template <typename V, typename Cache>
struct Attention {
  using F32 = typename V::F32;
  static constexpr int kChunk = static_cast<int>(kKvBlock);

  // Scores of one head to exp(score - largest), with the running maximum and sum brought up to
  // date; 0 outside begin..end - 1. Returns what earlier results must be multiplied by.
  static QH_ALWAYS_INLINE float exponentiate(float* weights, Chunk& at, int64_t prefetched,
                                             float* largest, float* total) noexcept {
    const int begin = at.begin;
    const int end = at.end;
    // Lanes without a score become copies of one: no effect on the maximum, weight 0 below.
    for (int p = 0; p < begin; ++p) weights[p] = weights[begin];
    for (int p = end; p < kChunk; ++p) weights[p] = weights[begin];
    F32 top = V::set(*largest);
#pragma GCC unroll 4
    for (int p = 0; p < kChunk; p += 16) top = V::max(top, V::load(weights + p));
    const float now = V::reduce_max(top);
    const F32 shift = V::set(now);
#pragma GCC unroll 4
    for (int p = 0; p < kChunk; p += 16) {
      V::store(weights + p, exponential<V>(V::sub(V::load(weights + p), shift)));
      at.prefetch(prefetched);
    }
    for (int p = 0; p < begin; ++p) weights[p] = 0.0f;
    for (int p = end; p < kChunk; ++p) weights[p] = 0.0f;
    F32 sum = V::load(weights);
#pragma GCC unroll 4
    for (int p = 16; p < kChunk; p += 16) sum = V::add(sum, V::load(weights + p));
    const float correction = factor_of(*largest, now);
    *total = *total * correction + V::reduce_add(sum);
    *largest = now;
    return correction;
  }

  // exp(before - now); a maximum that did not move corrects nothing, exactly.
  static QH_ALWAYS_INLINE float factor_of(float before, float now) noexcept {
    if (before == now) return 1.0f;
    float lanes[16];
    V::store(lanes, exponential<V>(V::set(before - now)));
    return lanes[0];
  }

  // H heads, from `head` on.
  template <int H>
  static void heads(const AttentionArgs& a, int64_t head) noexcept {
    const int64_t dim = a.cache.head_dim;
    const int64_t block_bytes = kv_block_bytes(a.cache.type, dim);
    float* out = a.part.out + head * dim;
    // For each vector of weights, rounded up to cache lines.
    const int64_t between =
        Cache::kBetween == 0 ? 0 : (block_bytes / (Cache::kBetween * H * 4) + 63) / 64 * 64;
    float largest[H];
    float total[H];
    for (int h = 0; h < H; ++h) {
      largest[h] = -__builtin_inff();
      total[h] = 0.0f;
    }
    for (int64_t i = 0; i < H * dim; ++i) out[i] = 0.0f;
    const typename Cache::template Query<H> query(a, a.q + head * dim);
    for (int64_t chunk = a.first / kChunk * kChunk; chunk <= a.last; chunk += kChunk) {
      const int begin = a.first > chunk ? static_cast<int>(a.first - chunk) : 0;
      const int end = a.last - chunk < kChunk ? static_cast<int>(a.last - chunk) + 1 : kChunk;
      const KvBlock block = kv_block(a.cache, chunk);
      // Where nothing is read next, the chunk itself: to ask for what is there is cheap.
      const uint8_t* next = chunk + kChunk <= a.last ? block.keys + block_bytes
                            : a.next != nullptr      ? a.next
                                                     : block.keys;
      Chunk at{begin, end, reinterpret_cast<uintptr_t>(next)};
      float weights[H][kChunk];
      float corrections[H];
      Cache::template scores<H>(block, dim, query, at, weights);
      for (int h = 0; h < H; ++h) {
        corrections[h] = exponentiate(weights[h], at, between, &largest[h], &total[h]);
      }
      Cache::template mix<H>(block, dim, at, weights, corrections, out);
    }
    for (int h = 0; h < H; ++h) {
      a.part.state[2 * (head + h)] = largest[h];
      a.part.state[2 * (head + h) + 1] = total[h];
    }
  }

  static void run(const AttentionArgs& a) noexcept {
    int64_t head = 0;
    if constexpr (Cache::kHeads >= 4) {
      for (; head + 4 <= a.n_heads; head += 4) heads<4>(a, head);
    }
    for (; head + 2 <= a.n_heads; head += 2) heads<2>(a, head);
    if (head < a.n_heads) heads<1>(a, head);
  }
};

template <typename V>
void attention(const AttentionArgs& args) noexcept {
  switch (args.cache.type) {
    case KvType::f16:
      Attention<V, FloatCache<V, KvType::f16>>::run(args);
      break;
    case KvType::f32:
      Attention<V, FloatCache<V, KvType::f32>>::run(args);
      break;
    case KvType::int8:
      Attention<V, Int8Cache<V>>::run(args);
      break;
  }
}

template <typename V>
void attention_merge(const AttentionPart& part, const AttentionPart& later, int64_t n_heads,
                     int64_t head_dim) noexcept {
  for (int64_t head = 0; head < n_heads; ++head) {
    float* state = part.state + 2 * head;
    const float* other = later.state + 2 * head;
    const float largest = other[0] > state[0] ? other[0] : state[0];
    const float mine = Attention<V, Int8Cache<V>>::factor_of(state[0], largest);
    const float others = Attention<V, Int8Cache<V>>::factor_of(other[0], largest);
    float* out = part.out + head * head_dim;
    const float* added = later.out + head * head_dim;
    for_lanes(head_dim, [=](int64_t k, int lanes) {
      const auto kept = V::mul(load_lanes<V>(out + k, lanes), V::set(mine));
      store_lanes<V>(out + k, V::fma(load_lanes<V>(added + k, lanes), V::set(others), kept), lanes);
    });
    state[0] = largest;
    state[1] = state[1] * mine + other[1] * others;
  }
}

template <typename V>
void attention_finish(const AttentionPart& part, int64_t n_heads, int64_t head_dim) noexcept {
  for (int64_t head = 0; head < n_heads; ++head) {
    const auto inverse = V::set(1.0f / part.state[2 * head + 1]);
    float* out = part.out + head * head_dim;
    for_lanes(head_dim, [=](int64_t k, int lanes) {
      store_lanes<V>(out + k, V::mul(load_lanes<V>(out + k, lanes), inverse), lanes);
    });
  }
}

}  // namespace
}  // namespace qh
