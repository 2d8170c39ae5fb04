// best_rows.h: the rows of a head with the largest logits, found in one pass over them.
#pragma once

#include <cstdint>

namespace qh {

// So many rows are computed again from the head itself after a scan in fewer bits: far more than
// any sampler keeps, and far less than the vocabulary to read.
constexpr int64_t kRescoredRows = 128;
constexpr int64_t kBestBlock = 64;

constexpr int64_t best_blocks(int64_t n) noexcept { return (n + kBestBlock - 1) / kBestBlock; }

// Room for candidates: all of fewer than kRescoredRows blocks, and kRescoredRows of equal ones.
constexpr int64_t best_capacity(int64_t n) noexcept {
  const int64_t most = kRescoredRows * (kBestBlock + 1);
  return n < most ? n : most;
}

// Writes the indices of the kRescoredRows largest of n values (all, where there are fewer), in
// ascending order, and returns how many. Of equal values the first ones; NaN is never among them.
//
//   block_best: room for 2 * best_blocks(n) values. best: room for best_capacity(n) indices.
int64_t best_rows(const float* values, int64_t n, float* block_best, int32_t* best) noexcept;

}  // namespace qh
