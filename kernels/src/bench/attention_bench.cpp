#include "bench/attention_bench.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "decoder/attention.h"

namespace qh {
namespace {

// Pseudo-random numbers between -1 and 1.
class Numbers {
 public:
  float next() noexcept {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 32)) * 0x1p-31f;
  }

 private:
  uint64_t state_ = 0x9e3779b97f4a7c15u;
};

}  // namespace

AttentionBenchResult run(const AttentionBench& bench) {
  ModelShape shape{};
  shape.num_attention_heads = bench.n_heads;
  shape.num_key_value_heads = bench.n_kv_heads;
  shape.head_dim = bench.head_dim;
  shape.num_hidden_layers = 1;
  const int64_t layer_bytes = KvCache::bytes(shape, bench.positions, bench.type);
  shape.num_hidden_layers = std::max<int64_t>(1, bench.working_set_bytes / layer_bytes);
  const KvCache cache(shape, bench.positions, bench.type);

  Numbers numbers;
  std::vector<float> x(static_cast<size_t>(bench.head_dim) * 64);
  for (float& value : x) value = numbers.next();
  for (int64_t layer = 0; layer < shape.num_hidden_layers; ++layer) {
    for (int64_t head = 0; head < bench.n_kv_heads; ++head) {
      for (int64_t position = 0; position < bench.positions; ++position) {
        const int64_t row = (position + head) % 63 * bench.head_dim;
        bench.table->store_kv(cache.head(layer, head, position / kKvSegment), position % kKvSegment,
                              x.data() + row, x.data() + row + bench.head_dim);
      }
    }
  }

  AttentionScratch scratch{};
  Arena sizes(nullptr);
  scratch.lay_out(shape, bench.positions, bench.threads, 1, sizes);
  const AlignedBlock block(sizes.used());
  Arena arena(block.data());
  scratch.lay_out(shape, bench.positions, bench.threads, 1, arena);
  std::vector<float> q(static_cast<size_t>(shape.q_size()));
  for (float& value : q) value = numbers.next();
  std::vector<float> out(q.size());

  ThreadPool pool(bench.threads);
  using Clock = std::chrono::steady_clock;
  AttentionBenchResult result;
  result.bytes_per_call = layer_bytes;
  const Clock::time_point begin = Clock::now();
  do {
    attend(pool, {*bench.table, shape, cache, scratch, result.calls % shape.num_hidden_layers,
                  bench.positions - 1, 1, 0, q.data(), out.data(), shape.q_size()});
    ++result.calls;
    result.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  } while (result.seconds < bench.seconds);
  return result;
}

}  // namespace qh
