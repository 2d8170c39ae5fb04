// bind_sampler.cpp: the sampler as _native.Sampler. Arguments were checked by
// qh_kernels/sampler.py.

#include <nanobind/ndarray.h>

#include "bind/bind.h"
#include "decoder/sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace qh {
namespace {

using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The token, or -3 for a NaN or infinite logit, -4 when no token is left to draw.
int32_t sample_code(const SampleResult& sample) noexcept {
  switch (sample.error) {
    case SampleError::none:
      return sample.token;
    case SampleError::not_a_number:
      return -3;
    case SampleError::no_candidates:
      break;
  }
  return -4;
}

}  // namespace

void bind_sampler(nb::module_& module) {
  nb::class_<Sampler>(module, "Sampler")
      .def(
          "__init__",
          [](Sampler* self, int64_t vocab_size, int64_t allowed_vocab, double temperature,
             int64_t top_k, double top_p, double min_p, float repetition_penalty,
             float presence_penalty, float frequency_penalty, int64_t penalty_window,
             uint64_t seed) {
            new (self) Sampler(SamplerOptions{vocab_size, allowed_vocab, temperature, top_k, top_p,
                                              min_p, repetition_penalty, presence_penalty,
                                              frequency_penalty, penalty_window, seed});
          },
          "vocab_size"_a, "allowed_vocab"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
          "repetition_penalty"_a, "presence_penalty"_a, "frequency_penalty"_a, "penalty_window"_a,
          "seed"_a)
      .def(
          "observe",
          [](Sampler& self, const Tokens& tokens) {
            for (size_t i = 0; i < tokens.size(); ++i) self.observe(tokens.data()[i]);
          },
          "tokens"_a)
      .def(
          "sample",
          [](Sampler& self, const Logits& logits) {
            return sample_code(self.sample(logits.data()));
          },
          "logits"_a);
}

}  // namespace qh
