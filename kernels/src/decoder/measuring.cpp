// measuring.cpp: what benchmarks ask of a decoder; no answer of a model runs through here.
#include <algorithm>
#include <atomic>
#include <chrono>

#include "bench/bench_threads.h"
#include "decoder/decoder.h"
#include "format_info.h"
#include "formats.h"

namespace qh {

Decoder::LinearRate Decoder::linear_rate(int64_t n_tokens, double seconds) {
  Scratch& s = scratch_;
  make_up_input(n_tokens);
  const int threads = pool_.threads();
  std::atomic<int64_t> bytes = 0;
  std::atomic<int64_t> work = 0;
  const double elapsed = run_together(threads, seconds, [&](int thread, auto deadline) {
    int64_t bytes_done = 0;
    int64_t work_done = 0;
    // Rows [begin, end) of every matrix are this thread's; false once the time is over.
    const auto multiply_part = [&](const Linear& linear, float* y, int64_t y_stride) {
      const MatrixView& w = linear.w;
      const int64_t tiles = (w.rows + kTileRows - 1) / kTileRows;
      const int64_t first = tiles * thread / threads;
      const int64_t last = tiles * (thread + 1) / threads;
      const int64_t end = std::min(last * kTileRows, w.rows);
      if (first < last) {
        multiply_rows(linear, y, y_stride, 0, n_tokens, first * kTileRows, end);
        bytes_done += format_nbytes(w.format, w.rows, w.cols).value_or(0) / tiles * (last - first);
        work_done += (end - first * kTileRows) * w.cols * n_tokens;
      }
      return std::chrono::steady_clock::now() < deadline;
    };
    for (bool more = true; more;) {
      for (const LayerView& layer : model_.layers) {
        more = multiply_part(layer.q, s.q, s.q_stride) &&
               multiply_part(layer.k, s.k, s.kv_stride) &&
               multiply_part(layer.v, s.v, s.kv_stride) &&
               multiply_part(layer.o, s.branch, s.hidden_stride) &&
               multiply_part(layer.gate, s.gate, s.intermediate_stride) &&
               multiply_part(layer.up, s.up, s.intermediate_stride) &&
               multiply_part(layer.down, s.branch, s.hidden_stride);
        if (!more) break;
      }
    }
    bytes += bytes_done;
    work += work_done;
  });
  return {bytes.load(), work.load(), elapsed};
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
