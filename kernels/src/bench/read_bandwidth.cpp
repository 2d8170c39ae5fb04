#include "bench/read_bandwidth.h"

#include <atomic>
#include <cstring>

#include "bench/bench_threads.h"

namespace qh {
namespace {

// Several sums, so that adding never waits for adding; read by the caller so that it is kept.
// One line a step is asked for 8 KiB ahead, as the kernels do: without it the measured rate is that
// of the hardware prefetcher, which the kernels exceed. Past the end this is a harmless hint.
uint64_t sum_words(const uint64_t* words, int64_t count) noexcept {
  uint64_t sums[8] = {};
  for (int64_t i = 0; i + 8 <= count; i += 8) {
    const uintptr_t ahead = reinterpret_cast<uintptr_t>(words + i) + 8192;
    __builtin_prefetch(reinterpret_cast<const void*>(ahead), 0, 2);
    for (int64_t j = 0; j < 8; ++j) sums[j] += words[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

double measure_read_bandwidth(int64_t bytes, int threads, double seconds) {
  // 1 MiB pieces: the clock is read often enough and costs nothing.
  constexpr int64_t kPieceWords = (int64_t{1} << 20) / 8;
  const int64_t pieces = bytes / threads / (kPieceWords * 8) + 1;
  std::vector<std::vector<uint64_t>> memory(static_cast<size_t>(threads));
  for (std::vector<uint64_t>& part : memory) {
    part.assign(static_cast<size_t>(pieces * kPieceWords), 1);
  }
  std::atomic<int64_t> total_pieces = 0;
  std::atomic<uint64_t> total_sum = 0;
  const double elapsed = run_together(threads, seconds, [&](int thread, auto deadline) {
    const uint64_t* words = memory[static_cast<size_t>(thread)].data();
    int64_t done = 0;
    uint64_t sum = 0;
    do {
      sum += sum_words(words + done % pieces * kPieceWords, kPieceWords);
      ++done;
    } while (std::chrono::steady_clock::now() < deadline);
    total_pieces += done;
    total_sum += sum;
  });
  // Every word is 1, so the sum equals the words read: proof that the reads happened.
  return static_cast<double>(total_sum.load()) * 8.0 / elapsed;
}

}  // namespace qh
