#include "decoder/best_rows.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace qh {
namespace {

// The largest of one block; -infinity where there is nothing but NaN. Sixteen maxima side by side,
// which a compiler makes vectors of without reordering anything.
float largest(const float* values, int64_t n) noexcept {
  constexpr int kLanes = 16;
  float best[kLanes];
  std::fill_n(best, kLanes, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      best[lane] = values[i + lane] > best[lane] ? values[i + lane] : best[lane];
    }
  }
  for (; i < n; ++i) best[0] = values[i] > best[0] ? values[i] : best[0];
  return *std::max_element(best, best + kLanes);
}

}  // namespace

int64_t best_rows(const float* values, int64_t n, float* block_best, int32_t* best) noexcept {
  const int64_t blocks = best_blocks(n);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * kBestBlock;
    block_best[b] = largest(values + begin, std::min(kBestBlock, n - begin));
  }
  // The kRescoredRows best blocks have a value of at least `least` each, so every wanted value is
  // one of those; and fewer than kRescoredRows blocks have a larger one.
  float least = -std::numeric_limits<float>::infinity();
  if (blocks > kRescoredRows) {
    float* copy = block_best + blocks;
    std::copy_n(block_best, blocks, copy);
    std::nth_element(copy, copy + kRescoredRows - 1, copy + blocks, std::greater<>());
    least = copy[kRescoredRows - 1];
  }
  int64_t found = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (!(block_best[b] > least)) continue;
    const int64_t end = std::min((b + 1) * kBestBlock, n);
    for (int64_t i = b * kBestBlock; i < end; ++i) {
      if (values[i] > least) best[found++] = static_cast<int32_t>(i);
    }
  }
  if (found > kRescoredRows) {
    std::nth_element(best, best + kRescoredRows, best + found, [&](int32_t a, int32_t b) {
      return values[a] != values[b] ? values[a] > values[b] : a < b;
    });
    found = kRescoredRows;
  }
  for (int64_t b = 0; b < blocks && found < kRescoredRows; ++b) {
    if (!(block_best[b] >= least)) continue;
    const int64_t end = std::min((b + 1) * kBestBlock, n);
    for (int64_t i = b * kBestBlock; i < end && found < kRescoredRows; ++i) {
      if (values[i] == least) best[found++] = static_cast<int32_t>(i);
    }
  }
  std::sort(best, best + found);
  return found;
}

}  // namespace qh
