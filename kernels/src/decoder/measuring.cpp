// measuring.cpp: what benchmarks ask of a decoder; no answer of a model runs through here.
#include <algorithm>
#include <chrono>

#include "decoder/decoder.h"

namespace qh {

Decoder::LinearRate Decoder::linear_rate(int64_t n_tokens, double seconds) {
  using Clock = std::chrono::steady_clock;
  make_up_input(n_tokens);
  LinearRate rate{0, 0};
  const Clock::time_point begin = Clock::now();
  do {
    const size_t n_layers = model_.layers.size();
    multiply_layer(model_.layers[static_cast<size_t>(rate.layers) % n_layers], n_tokens);
    ++rate.layers;
    rate.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  } while (rate.seconds < seconds);
  return rate;
}

void Decoder::fill_cache(int64_t end) noexcept {
  const ModelShape& shape = model_.shape;
  Scratch& s = scratch_;
  extend_rope_tables(end);
  for (int64_t begin = 0; begin < end; begin += options_.batch_tokens) {
    const int64_t n = std::min(options_.batch_tokens, end - begin);
    const auto values = [&](float* rows, int64_t stride, int64_t size) {
      for (int64_t t = 0; t < n; ++t) {
        for (int64_t i = 0; i < size; ++i) {
          rows[t * stride + i] = static_cast<float>((begin + t + i) % 23 - 11) * 0.125f;
        }
      }
    };
    for (int64_t layer = 0; layer < shape.num_hidden_layers; ++layer) {
      // Anew for every layer, because norm and rotation change them in place.
      values(s.q, s.q_stride, shape.q_size());
      values(s.k, s.kv_stride, shape.kv_size());
      values(s.v, s.kv_stride, shape.kv_size());
      store_positions(layer, begin, n);
    }
  }
  truncate(end);
}

}  // namespace qh
