#include "bench/read_bandwidth.h"

#include <algorithm>
#include <atomic>

#include "bench/bench_memory.h"
#include "bench/bench_threads.h"

namespace qh {
namespace {

// The clock is read once a piece: often enough, and it costs nothing.
constexpr int64_t kPieceBytes = int64_t{1} << 20;
constexpr int64_t kPieceWords = kPieceBytes / 8;

// Several sums, so that adding never waits for adding; read by the caller so that it is kept.
// With kAhead, one line a step is asked for so many bytes early, as the kernels do; past the end
// this is a harmless hint.
template <int kAhead>
uint64_t sum_words(const uint64_t* words, int64_t count) noexcept {
  uint64_t sums[8] = {};
  for (int64_t i = 0; i + 8 <= count; i += 8) {
    if constexpr (kAhead > 0) {
      const uintptr_t ahead = reinterpret_cast<uintptr_t>(words + i) + kAhead;
      __builtin_prefetch(reinterpret_cast<const void*>(ahead), 0, 2);
    }
    for (int64_t j = 0; j < 8; ++j) sums[j] += words[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

// Bytes per second of one way to read.
template <int kAhead>
double measure(const std::vector<BenchMemory>& memory, int64_t pieces, double seconds) {
  std::atomic<uint64_t> total_words = 0;
  const double elapsed =
      run_together(static_cast<int>(memory.size()), seconds, [&](int thread, auto deadline) {
        const uint8_t* bytes = memory[static_cast<size_t>(thread)].data();
        const auto* words = reinterpret_cast<const uint64_t*>(bytes);
        int64_t done = 0;
        uint64_t words_read = 0;
        do {
          // Every word is 1, so the sum equals the words read: proof that the reads happened.
          words_read += sum_words<kAhead>(words + done % pieces * kPieceWords, kPieceWords);
          ++done;
        } while (std::chrono::steady_clock::now() < deadline);
        total_words += words_read;
      });
  return static_cast<double>(total_words.load()) * 8.0 / elapsed;
}

}  // namespace

double measure_read_bandwidth(int64_t bytes, int threads, double seconds) {
  const int64_t pieces = bytes / threads / kPieceBytes + 1;
  std::vector<BenchMemory> memory;
  for (int thread = 0; thread < threads; ++thread) {
    memory.emplace_back(pieces * kPieceBytes);
    auto* words = reinterpret_cast<uint64_t*>(memory.back().data());
    std::fill_n(words, pieces * kPieceWords, uint64_t{1});
  }
  // Which of the two is faster differs between processors, and between small and large pages.
  return std::max(measure<0>(memory, pieces, seconds / 2),
                  measure<8192>(memory, pieces, seconds / 2));
}

}  // namespace qh
