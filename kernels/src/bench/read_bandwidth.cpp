#include "bench/read_bandwidth.h"

#include <algorithm>
#include <atomic>

#include "bench/bench_threads.h"

namespace qh {
namespace {

constexpr int64_t kLineBytes = 64;
// The clock is read once for so many bytes: often enough, and it costs nothing.
constexpr int64_t kPieceBytes = int64_t{1} << 20;

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
double read(const uint64_t* words, int64_t part_bytes, int threads, double seconds) {
  const int64_t piece = std::min(part_bytes, kPieceBytes) / kLineBytes * kLineBytes;
  const int64_t pieces = part_bytes / piece;
  const int64_t at_once = kPieceBytes / piece;
  std::atomic<uint64_t> total_words = 0;
  const double elapsed = run_together(threads, seconds, [&](int thread, auto deadline) {
    const uint64_t* part = words + thread * (part_bytes / 8);
    int64_t done = 0;
    uint64_t words_read = 0;
    do {
      for (int64_t i = 0; i < at_once; ++i, ++done) {
        // Every word is 1, so the sum equals the words read: proof that the reads happened.
        words_read += sum_words<kAhead>(part + done % pieces * (piece / 8), piece / 8);
      }
    } while (std::chrono::steady_clock::now() < deadline);
    total_words += words_read;
  });
  return static_cast<double>(total_words.load()) * 8.0 / elapsed;
}

}  // namespace

ReadBench::ReadBench(int64_t bytes) : bytes_(bytes), memory_(bytes) {
  auto* words = reinterpret_cast<uint64_t*>(memory_.data());
  std::fill_n(words, bytes / 8, uint64_t{1});
}

double ReadBench::measure(int64_t bytes, int threads, double seconds) const {
  const int64_t part_bytes = bytes / threads / kLineBytes * kLineBytes;
  const auto* words = reinterpret_cast<const uint64_t*>(memory_.data());
  // Which of the two is faster differs between processors, and between small and large pages.
  return std::max(read<0>(words, part_bytes, threads, seconds / 2),
                  read<8192>(words, part_bytes, threads, seconds / 2));
}

}  // namespace qh
