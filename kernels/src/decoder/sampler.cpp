#include "decoder/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace qh {
namespace {

// Up to here the best k are kept in a heap while the logits stream by; from here on a selection
// over a copy of all of them is faster.
constexpr int64_t kHeapLimit = 512;

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {
  const auto vocab = static_cast<size_t>(options.vocab_size);
  if (penalizes()) {
    adjusted_.resize(vocab);
    counts_.resize(vocab, 0);
    window_.resize(static_cast<size_t>(options.penalty_window));
  }
  if (options.temperature > 0) {
    const bool heap = options.top_k > 0 && options.top_k <= kHeapLimit;
    candidates_.reserve(static_cast<size_t>(heap ? std::min(options.top_k, options.allowed_vocab)
                                                 : options.allowed_vocab));
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
  const bool top_k = options_.top_k > 0 && options_.top_k < options_.allowed_vocab;
  double total;
  if (top_k) {
    keep_top_k(logits, max_logit);
    total = cut_ranked();
  } else {
    total = keep_by_probability(logits, max_logit);
  }
  const double target = random_.uniform() * total;
  double below = 0.0;
  int32_t token = candidates_.front().id;
  for (const Candidate& candidate : candidates_) {
    if (candidate.weight <= 0.0) continue;
    // Rounding may leave the target at the very end: the last possible candidate then.
    token = candidate.id;
    below += candidate.weight;
    if (target < below) break;
  }
  return token;
}

// Leaves the top_k best candidates, best first.
void Sampler::keep_top_k(const float* logits, float max_logit) noexcept {
  const int64_t count = options_.top_k;
  candidates_.clear();
  int64_t id = 0;
  const auto candidate = [&] { return Candidate{logits[id], static_cast<int32_t>(id), 0.0}; };
  if (count <= kHeapLimit) {
    // A heap whose front is the worst of the best so far: one comparison for most logits.
    for (; id < count; ++id) candidates_.push_back(candidate());
    std::make_heap(candidates_.begin(), candidates_.end());
    for (; id < options_.allowed_vocab; ++id) {
      if (!(logits[id] > candidates_.front().logit)) continue;  // equal: the lower id is in it
      std::pop_heap(candidates_.begin(), candidates_.end());
      candidates_.back() = candidate();
      std::push_heap(candidates_.begin(), candidates_.end());
    }
  } else {
    for (; id < options_.allowed_vocab; ++id) candidates_.push_back(candidate());
    std::nth_element(candidates_.begin(), candidates_.begin() + count - 1, candidates_.end());
    candidates_.resize(static_cast<size_t>(count));
  }
  std::sort(candidates_.begin(), candidates_.end());
  for (Candidate& kept : candidates_) kept.weight = weight(kept.logit, max_logit);
}

// Cuts ranked candidates by top-p, then by min-p; returns the weight of what is left.
double Sampler::cut_ranked() noexcept {
  double mass = 0.0;
  for (const Candidate& candidate : candidates_) mass += candidate.weight;
  const double wanted =
      options_.top_p < 1.0 ? options_.top_p * mass : std::numeric_limits<double>::infinity();
  double kept = 0.0;
  size_t count = 0;
  for (; count < candidates_.size() && kept < wanted; ++count) {
    // The best has weight 1, so min_p is the smallest weight that stays.
    if (count > 0 && candidates_[count].weight < options_.min_p) break;
    kept += candidates_[count].weight;
  }
  candidates_.resize(std::max<size_t>(count, 1));
  return count == 0 ? candidates_.front().weight : kept;
}

// Leaves what top-p and min-p keep of all allowed ids, in the order of the ids; returns its weight.
double Sampler::keep_by_probability(const float* logits, float max_logit) noexcept {
  candidates_.clear();
  double mass = 0.0;
  double kept = 0.0;
  for (int64_t id = 0; id < options_.allowed_vocab; ++id) {
    const double w = weight(logits[id], max_logit);
    mass += w;
    // The best has weight 1, so min_p is the smallest weight that stays.
    if (w <= 0.0 || w < options_.min_p) continue;
    kept += w;
    candidates_.push_back({logits[id], static_cast<int32_t>(id), w});
  }
  const double wanted = options_.top_p * mass;
  if (options_.top_p >= 1.0 || kept <= wanted) return kept;

  const Candidate worst = worst_of_mass(wanted);
  kept = 0.0;
  size_t count = 0;
  // Again from the logits, because finding the worst reordered the candidates.
  const size_t n_ranked = candidates_.size();
  candidates_.clear();
  for (int64_t id = 0; id < options_.allowed_vocab && count < n_ranked; ++id) {
    Candidate candidate{logits[id], static_cast<int32_t>(id), 0.0};
    if (worst < candidate) continue;
    candidate.weight = weight(candidate.logit, max_logit);
    if (candidate.weight <= 0.0 || candidate.weight < options_.min_p) continue;
    kept += candidate.weight;
    candidates_.push_back(candidate);
    ++count;
  }
  return kept;
}

// The worst of the smallest set of best candidates whose weight is at least `wanted`. A quickselect
// that counts weight instead of elements: linear time, no sort.
Sampler::Candidate Sampler::worst_of_mass(double wanted) noexcept {
  size_t begin = 0;
  size_t end = candidates_.size();
  double before = 0.0;  // weight of all that is better than [begin, end)
  Candidate worst = candidates_.front();
  while (begin < end) {
    const size_t middle = begin + (end - begin) / 2;
    const Candidate& a = candidates_[begin];
    const Candidate& b = candidates_[middle];
    const Candidate& c = candidates_[end - 1];
    const Candidate pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
    size_t split = begin;
    double better = 0.0;
    for (size_t i = begin; i < end; ++i) {
      if (!(candidates_[i] < pivot)) continue;
      better += candidates_[i].weight;
      std::swap(candidates_[i], candidates_[split]);
      ++split;
    }
    if (before + better >= wanted && split > begin) {
      end = split;
      continue;
    }
    worst = pivot;
    before += better + pivot.weight;
    if (before >= wanted) break;
    // The pivot is the best of the rest; move it out of the way.
    for (size_t i = split; i < end; ++i) {
      if (candidates_[i].id == pivot.id) {
        std::swap(candidates_[i], candidates_[split]);
        break;
      }
    }
    begin = split + 1;
  }
  return worst;
}

}  // namespace qh
