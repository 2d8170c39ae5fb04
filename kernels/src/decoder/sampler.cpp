#include "decoder/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace qh {
namespace {

// How many of the best candidates are ranked first when only probabilities bound their number. Real
// distributions nearly always end within them; where one does not, eight times as many are ranked.
constexpr int64_t kFirstRanked = 256;

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {
  const auto vocab = static_cast<size_t>(options.vocab_size);
  if (penalizes()) {
    adjusted_.resize(vocab);
    counts_.resize(vocab, 0);
    window_.resize(static_cast<size_t>(options.penalty_window));
  }
  if (options.temperature > 0) {
    const bool bounded = options.top_k > 0 && options.top_k < options.allowed_vocab;
    const auto most = static_cast<size_t>(bounded ? options.top_k : options.allowed_vocab);
    candidates_.reserve(most);
    weights_.reserve(most);
  }
}

bool Sampler::penalizes() const noexcept {
  return options_.penalty_window > 0 &&
         (options_.repetition_penalty != 1.0f || options_.presence_penalty != 0.0f ||
          options_.frequency_penalty != 0.0f);
}

void Sampler::observe(int32_t token) noexcept {
  const auto capacity = static_cast<int64_t>(window_.size());
  if (capacity == 0) return;
  int32_t& slot = window_[static_cast<size_t>(window_next_)];
  if (window_size_ == capacity) {
    --counts_[static_cast<size_t>(slot)];
  } else {
    ++window_size_;
  }
  slot = token;
  ++counts_[static_cast<size_t>(token)];
  window_next_ = window_next_ + 1 == capacity ? 0 : window_next_ + 1;
}

// Sources: repetition, Keskar et al. 2019 (CTRL), section 4.1, with negative logits multiplied as
// all implementations since do; presence and frequency, the OpenAI API reference.
const float* Sampler::penalized(const float* logits) noexcept {
  if (window_size_ == 0) return logits;
  std::copy_n(logits, options_.vocab_size, adjusted_.data());
  for (int64_t i = 0; i < window_size_; ++i) {
    const auto id = static_cast<size_t>(window_[static_cast<size_t>(i)]);
    // Computed from the untouched logit, so that a token which is there twice is adjusted once.
    float logit = logits[id];
    logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    logit -= options_.presence_penalty;
    logit -= options_.frequency_penalty * static_cast<float>(counts_[id]);
    adjusted_[id] = logit;
  }
  return adjusted_.data();
}

SampleResult Sampler::sample(const float* logits) noexcept {
  const float* adjusted = penalized(logits);
  float max_logit = -std::numeric_limits<float>::infinity();
  int32_t best = -1;
  bool ordered = true;
  for (int64_t id = 0; id < options_.allowed_vocab; ++id) {
    const float logit = adjusted[id];
    ordered &= logit < std::numeric_limits<float>::infinity();  // false for NaN too
    if (logit > max_logit) {
      max_logit = logit;
      best = static_cast<int32_t>(id);
    }
  }
  if (!ordered) return {SampleError::not_a_number, -1};
  if (best < 0) return {SampleError::no_candidates, -1};
  const int32_t token = options_.temperature > 0 ? draw(adjusted, max_logit) : best;
  observe(token);
  return {SampleError::none, token};
}

double Sampler::weight(float logit, float max_logit) const noexcept {
  const double distance = static_cast<double>(logit) - static_cast<double>(max_logit);
  return std::exp(distance / options_.temperature);
}

int32_t Sampler::draw(const float* logits, float max_logit) noexcept {
  const int64_t vocab = options_.allowed_vocab;
  const bool top_k = options_.top_k > 0 && options_.top_k < vocab;
  const bool top_p = options_.top_p < 1.0;
  const bool min_p = options_.min_p > 0.0;
  if (!top_k && !top_p && !min_p) return draw_from_all(logits, max_logit);

  const int64_t most = top_k ? options_.top_k : vocab;
  // Mass that top-p is a share of: of what top-k keeps, or of the whole vocabulary.
  double mass = 0.0;
  if (top_p && !top_k) {
    for (int64_t id = 0; id < vocab; ++id) mass += weight(logits[id], max_logit);
  }
  int64_t ranked = top_k ? most : std::min(kFirstRanked, vocab);
  for (;;) {
    select_best(logits, ranked);
    weights_.clear();
    double total = 0.0;
    for (const Candidate& candidate : candidates_) {
      weights_.push_back(weight(candidate.logit, max_logit));
      total += weights_.back();
    }
    if (top_k) mass = total;

    // How many of the ranked candidates top-p and min-p keep; both keep the best few.
    const double wanted = top_p ? options_.top_p * mass : std::numeric_limits<double>::infinity();
    double kept = 0.0;
    size_t count = 0;
    bool ended = false;
    while (count < candidates_.size() && !ended) {
      // The best has weight 1, so min_p is the smallest weight that stays.
      if (count > 0 && weights_[count] < options_.min_p) {
        ended = true;
        break;
      }
      kept += weights_[count];
      ++count;
      ended = kept >= wanted;
    }
    if (ended || ranked == most) {
      candidates_.resize(count);
      return draw_from_candidates(kept);
    }
    ranked = std::min(ranked * 8, most);
  }
}

int32_t Sampler::draw_from_all(const float* logits, float max_logit) noexcept {
  double total = 0.0;
  for (int64_t id = 0; id < options_.allowed_vocab; ++id) total += weight(logits[id], max_logit);
  const double target = random_.uniform() * total;
  double below = 0.0;
  int32_t last = 0;
  for (int64_t id = 0; id < options_.allowed_vocab; ++id) {
    const double w = weight(logits[id], max_logit);
    if (w <= 0.0) continue;
    last = static_cast<int32_t>(id);
    below += w;
    if (target < below) break;
  }
  return last;
}

int32_t Sampler::draw_from_candidates(double total) noexcept {
  const double target = random_.uniform() * total;
  double below = 0.0;
  size_t chosen = 0;
  for (size_t i = 0; i < candidates_.size() && weights_[i] > 0.0; ++i) {
    chosen = i;
    below += weights_[i];
    if (target < below) break;
  }
  return candidates_[chosen].id;
}

// Leaves the `count` best allowed candidates in candidates_, best first. A heap whose front is the
// worst of the best so far: one comparison for each logit that is not among them.
void Sampler::select_best(const float* logits, int64_t count) noexcept {
  candidates_.clear();
  int64_t id = 0;
  for (; id < count; ++id) candidates_.push_back({logits[id], static_cast<int32_t>(id)});
  std::make_heap(candidates_.begin(), candidates_.end());
  for (; id < options_.allowed_vocab; ++id) {
    const Candidate candidate{logits[id], static_cast<int32_t>(id)};
    if (!(candidate < candidates_.front())) continue;
    std::pop_heap(candidates_.begin(), candidates_.end());
    candidates_.back() = candidate;
    std::push_heap(candidates_.begin(), candidates_.end());
  }
  std::sort_heap(candidates_.begin(), candidates_.end());
}

}  // namespace qh
