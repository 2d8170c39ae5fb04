// sampler.h: draws one token from logits. Everything is allocated when the sampler is made.
//
// Order: penalties, temperature, top-k, top-p, min-p, each on what the one before left over and
// renormalised (the order of Hugging Face transformers). Candidates are ranked by logit, equal
// logits by id, lowest first; that rank decides what top-k and top-p keep.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder/random.h"

namespace qh {

struct SamplerOptions {
  int64_t vocab_size;
  int64_t allowed_vocab;  // ids from here on are never drawn (padding of the vocabulary)
  double temperature;     // 0: the highest logit, lowest id among equals
  int64_t top_k;          // 0: all
  double top_p;           // 1: all
  double min_p;           // 0: all
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  int64_t penalty_window;  // tokens; 0: no penalties
  uint64_t seed;
};

enum class SampleError : int32_t {
  none,
  not_a_number,   // a logit is NaN or +infinity
  no_candidates,  // every allowed logit is -infinity
};

struct SampleResult {
  SampleError error = SampleError::none;
  int32_t token = -1;
};

class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options);

  // The token counts as seen by the penalties from now on.
  void observe(int32_t token) noexcept;
  // logits: (vocab_size). The token drawn is observed.
  SampleResult sample(const float* logits) noexcept;

  int64_t vocab_size() const noexcept { return options_.vocab_size; }

 private:
  struct Candidate {
    float logit;
    int32_t id;
    double weight;  // probability relative to the best
    // A total order, so that every way to select the best few selects the same.
    bool operator<(const Candidate& other) const noexcept {
      return logit != other.logit ? logit > other.logit : id < other.id;
    }
  };

  bool penalizes() const noexcept;
  const float* penalized(const float* logits) noexcept;
  int32_t draw(const float* logits, float max_logit) noexcept;
  void keep_top_k(const float* logits, float max_logit) noexcept;
  double cut_ranked() noexcept;
  double keep_by_probability(const float* logits, float max_logit) noexcept;
  Candidate worst_of_mass(double wanted) noexcept;
  double weight(float logit, float max_logit) const noexcept;

  SamplerOptions options_;
  Random random_;
  std::vector<float> adjusted_;  // (vocab_size) logits after penalties; empty without
  std::vector<int32_t> window_;  // ring of the last penalty_window tokens
  std::vector<int32_t> counts_;  // (vocab_size) how often each is in the window
  int64_t window_size_ = 0;
  int64_t window_next_ = 0;
  std::vector<Candidate> candidates_;  // reserved for the most there can be
};

}  // namespace qh
