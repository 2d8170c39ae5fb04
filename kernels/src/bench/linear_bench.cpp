#include "bench/linear_bench.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>

#include "bench/bench_memory.h"
#include "bench/bench_threads.h"
#include "codebook_layout.h"
#include "core/half.h"
#include "formats.h"

namespace qh {
namespace {

// Codes are pseudo-random, scales are 1/128: finite everywhere.
void fill_matrix(const LinearBench& bench, uint8_t* data) {
  const FormatSpec& spec = spec_of(bench.format);
  uint64_t state = 0x9e3779b97f4a7c15u;
  for (int64_t i = 0; i < bench.nbytes; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    data[i] = static_cast<uint8_t>(state >> 56);
  }
  if (spec.family == Family::dense) {
    // A byte pattern that is a small finite number in every dense format.
    std::memset(data, 0x2c, static_cast<size_t>(bench.nbytes));
    return;
  }
  if (spec.family == Family::codebook) {
    if (has_tables(spec)) std::memset(data, 0x11, 4);  // the largest weight
    const float factor = 0x1p-20f;
    for (int64_t row = 0; row < padded_rows(spec, bench.rows); ++row) {
      std::memcpy(data + row_factors_at(spec) + 4 * row, &factor, 4);
    }
    return;
  }
  const int64_t tile = tile_bytes(spec, bench.cols);
  const int64_t padded = round_up(bench.cols, spec.column_unit);
  const int64_t groups = group_scale_bytes(spec, padded);
  const int64_t rows = row_scales_at(spec, padded);
  // 2^-7 as float16, and as two bytes of the other types.
  const uint16_t group_scale = spec.scale == ScaleType::e8m0   ? 0x7878
                               : spec.scale == ScaleType::e4m3 ? 0x0404
                                                               : half_from_float(0x1p-7f);
  const float scale = 0x1p-7f;
  for (uint8_t* t = data; t < data + bench.nbytes; t += tile) {
    for (int64_t i = 0; i < groups; i += 2) std::memcpy(t + i, &group_scale, 2);
    for (int64_t i = 0; i < row_scale_bytes(spec); i += 4) std::memcpy(t + rows + i, &scale, 4);
  }
}

}  // namespace

LinearBenchResult run(const LinearBench& bench) {
  const FormatKernels& kernels = bench.table->formats[static_cast<int32_t>(bench.format)];
  const int64_t copies = std::max<int64_t>(1, bench.working_set_bytes / bench.nbytes);
  const int64_t stride = round_up(bench.nbytes, 64);
  const BenchMemory weights(copies * stride);
  fill_matrix(bench, weights.data());
  for (int64_t i = 1; i < copies; ++i) {
    std::memcpy(weights.data() + i * stride, weights.data(), static_cast<size_t>(bench.nbytes));
  }

  const int64_t padded = round_up(bench.cols, kActivationPad);
  const int64_t groups = padded / kActivationGroup;
  std::vector<float> x(static_cast<size_t>(bench.n_tokens * padded));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) - 8.0f;
  std::vector<int8_t> codes(x.size());
  std::vector<float> scales(static_cast<size_t>(bench.n_tokens * groups));
  std::vector<int32_t> sums(static_cast<size_t>(bench.n_tokens * 2 * groups));
  const bool grouped = spec_of(bench.format).family != Family::ternary;
  const int64_t group_stride = grouped ? groups : 1;
  const int64_t sum_stride = grouped ? 2 * groups : 1;
  for (int64_t t = 0; t < bench.n_tokens; ++t) {
    (grouped ? bench.table->quantize_groups : bench.table->quantize_token)(
        x.data() + t * padded, bench.cols, padded, codes.data() + t * padded,
        scales.data() + t * group_stride, sums.data() + t * sum_stride);
  }
  const QuantizedActivations activations{codes.data(), scales.data(), sums.data(),   padded,
                                         group_stride, sum_stride,    bench.n_tokens};
  std::vector<float> y(static_cast<size_t>(bench.n_tokens * bench.rows));

  // Products by column blocks: a unit is a block times a range of rows. Every thread has parts of
  // its own to add up, of which it fills in its share.
  const bool by_parts = kernels.linear_part != nullptr && bench.n_tokens == 1;
  const int64_t unit_rows = row_unit(spec_of(bench.format));
  const int64_t part_stride = round_up(bench.rows, unit_rows);
  const int64_t blocks = round_up(bench.cols, kSpan * kBlockSpans) / (kSpan * kBlockSpans);
  const int64_t splits = bench.threads / std::gcd(blocks, int64_t{bench.threads});
  std::vector<std::vector<float>> parts(static_cast<size_t>(by_parts ? bench.threads : 0));
  for (auto& own : parts) own.resize(static_cast<size_t>(blocks * part_stride + 16));

  // Threads do not wait for each other between products: each counts what it finished.
  std::atomic<int64_t> calls = 0;
  const int64_t tiles = part_stride / unit_rows;
  const double elapsed = run_together(bench.threads, bench.seconds, [&](int thread, auto deadline) {
    const auto first_row = [&](int64_t share, int64_t shares) {
      return std::min(bench.rows, tiles * share / shares * unit_rows);
    };
    const int64_t begin = first_row(thread, bench.threads);
    const int64_t end = first_row(thread + 1, bench.threads);
    int64_t done = 0;
    do {
      const MatrixView w{weights.data() + done % copies * stride, bench.rows, bench.cols,
                         bench.format};
      if (by_parts) {
        float* own = parts[static_cast<size_t>(thread)].data();
        for (int64_t unit = blocks * splits * thread / bench.threads;
             unit < blocks * splits * (thread + 1) / bench.threads; ++unit) {
          kernels.linear_part(w, activations, unit / splits, own + unit / splits * part_stride,
                              first_row(unit % splits, splits),
                              first_row(unit % splits + 1, splits));
        }
        kernels.sum_parts(w, own, part_stride, y.data(), begin, end);
      } else if (kernels.linear_quantized != nullptr) {
        kernels.linear_quantized(w, activations, y.data(), bench.rows, begin, end);
      } else {
        kernels.linear_f32(w, x.data(), padded, bench.n_tokens, y.data(), bench.rows, begin, end);
      }
      ++done;
    } while (std::chrono::steady_clock::now() < deadline);
    calls += done;
  });
  return {calls.load() / bench.threads, elapsed};
}

}  // namespace qh
