#include "decoder/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace qh {
namespace {

// Tokens of a prefill that read a segment of one head one after the other.
constexpr int64_t kTokens = 8;
// Chunks that a step is cut into for each thread, so that a thread which lost its CPU for a while
// leaves little behind; more of them where they would be larger than kChunkBytes.
constexpr int64_t kMinChunksPerThread = 4;
constexpr int64_t kChunkBytes = 4 * 1024 * 1024;
// Below this many multiply-adds one thread is faster; as in decoder.cpp.
constexpr int64_t kHandOverWork = 32 * 1024;

class Attend {
 public:
  explicit Attend(const AttentionStep& step) noexcept
      : s_(step),
        group_(step.shape.num_attention_heads / step.shape.num_key_value_heads),
        scale_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(step.shape.head_dim)))) {}

  void run(ThreadPool& pool) noexcept {
    const int64_t work = 2 * s_.n_tokens * (s_.begin + s_.n_tokens) * s_.shape.q_size();
    const bool alone = pool.threads() == 1 || work < kHandOverWork;
    const auto run = [&](int64_t n_chunks, auto&& body) {
      if (alone) {
        for (int64_t chunk = 0; chunk < n_chunks; ++chunk) body(chunk, 0);
      } else {
        pool.run(n_chunks, body);
      }
    };
    const int64_t wanted = pool.threads() * kMinChunksPerThread;
    if (s_.n_tokens == 1) {
      one_token(run, alone ? 1 : wanted);
    } else {
      tokens(run, alone ? 1 : wanted);
    }
  }

 private:
  int64_t first_position(int64_t position) const noexcept {
    return s_.sliding_window > 0 ? std::max<int64_t>(0, position - s_.sliding_window + 1) : 0;
  }
  AttentionPart whole(int64_t token, int64_t head) const noexcept {
    return {s_.out + token * s_.q_stride + head * s_.shape.head_dim,
            s_.scratch.states + 2 * (token * s_.shape.num_attention_heads + head)};
  }
  AttentionPart part(int64_t unit) const noexcept {
    float* base = s_.scratch.parts + unit * s_.scratch.part_stride;
    return {base, base + group_ * s_.shape.head_dim};
  }
  // Over what the token at `position` sees of one segment.
  AttentionArgs args(int64_t token, int64_t head, int64_t n_heads, int64_t segment,
                     int worker) const noexcept {
    const int64_t start = segment * kKvSegment;
    const int64_t position = s_.begin + token;
    AttentionArgs a{};
    a.cache = s_.cache.head(s_.layer, head / group_, segment);
    a.first = std::max(first_position(position) - start, int64_t{0});
    a.last = std::min(position - start, kKvSegment - 1);
    a.q = s_.q + token * s_.q_stride + head * s_.shape.head_dim;
    a.n_heads = n_heads;
    a.scale = scale_;
    a.codes = s_.scratch.codes + worker * s_.scratch.code_stride;
    return a;
  }

  // A chunk is some segments of some heads that follow each other in memory. Every part is kept,
  // and merged when all are there.
  template <class Run>
  void one_token(Run&& run, int64_t wanted) noexcept {
    const int64_t kv_heads = s_.shape.num_key_value_heads;
    const int64_t first_segment = first_position(s_.begin) / kKvSegment;
    const int64_t segments = s_.begin / kKvSegment + 1 - first_segment;
    const int64_t units = kv_heads * segments;
    const int64_t bytes =
        units * kKvSegment * 2 * s_.shape.head_dim * kv_value_bytes(s_.cache.type());
    const int64_t n_chunks = std::min(units, std::max(wanted, bytes / kChunkBytes));
    run(n_chunks, [&](int64_t chunk, int worker) {
      const int64_t end = units * (chunk + 1) / n_chunks;
      for (int64_t unit = units * chunk / n_chunks; unit < end; ++unit) {
        const int64_t segment = first_segment + unit / kv_heads;
        const int64_t head = unit % kv_heads * group_;
        AttentionArgs a = args(0, head, group_, segment, worker);
        if (unit + 1 < end) {
          a.next =
              s_.cache.head(s_.layer, (unit + 1) % kv_heads, first_segment + (unit + 1) / kv_heads)
                  .data;
        }
        a.part = segments == 1 ? whole(0, head) : part(unit);
        s_.table.attention(a);
      }
    });
    run(kv_heads, [&](int64_t kv_head, int) {
      const AttentionPart result = whole(0, kv_head * group_);
      if (segments > 1) {
        copy(part(kv_head), result);
        for (int64_t i = 1; i < segments; ++i) {
          s_.table.attention_merge(result, part(i * kv_heads + kv_head), group_, s_.shape.head_dim);
        }
      }
      s_.table.attention_finish(result, group_, s_.shape.head_dim);
    });
  }

  void copy(const AttentionPart& from, const AttentionPart& to) const noexcept {
    std::memcpy(to.out, from.out, static_cast<size_t>(group_ * s_.shape.head_dim) * sizeof(float));
    std::memcpy(to.state, from.state, static_cast<size_t>(2 * group_) * sizeof(float));
  }

  // Chunks of some heads that share a key head, for some tokens. Chunks of one key head follow each
  // other, and the tokens of a chunk take turns at each segment, so that it stays in the cache.
  template <class Run>
  void tokens(Run&& run, int64_t wanted) noexcept {
    const int64_t block = std::min(s_.n_tokens, kTokens);
    const int64_t blocks = (s_.n_tokens + block - 1) / block;
    const int64_t heads = blocks * s_.shape.num_key_value_heads >= wanted ? group_ : 1;
    run(s_.shape.num_attention_heads / heads * blocks, [&](int64_t chunk, int worker) {
      const int64_t head = chunk / blocks * heads;
      const int64_t from = chunk % blocks * block;
      const int64_t to = std::min(from + block, s_.n_tokens);
      const int64_t last_segment = (s_.begin + to - 1) / kKvSegment;
      const int64_t first_segment = first_position(s_.begin + from) / kKvSegment;
      for (int64_t segment = first_segment; segment <= last_segment; ++segment) {
        for (int64_t token = from; token < to; ++token) {
          one_segment(token, head, heads, segment, worker);
        }
      }
      for (int64_t token = from; token < to; ++token) {
        s_.table.attention_finish(whole(token, head), heads, s_.shape.head_dim);
      }
    });
  }

  void one_segment(int64_t token, int64_t head, int64_t n_heads, int64_t segment,
                   int worker) const noexcept {
    AttentionArgs a = args(token, head, n_heads, segment, worker);
    if (a.first > a.last || a.last < 0) return;  // before its window, or after the token
    const bool is_first = segment == first_position(s_.begin + token) / kKvSegment;
    a.part = is_first ? whole(token, head) : part(worker);
    s_.table.attention(a);
    if (!is_first) {
      s_.table.attention_merge(whole(token, head), a.part, n_heads, s_.shape.head_dim);
    }
  }

  const AttentionStep& s_;
  int64_t group_;
  float scale_;
};

}  // namespace

void attend(ThreadPool& pool, const AttentionStep& step) noexcept { Attend(step).run(pool); }

}  // namespace qh
