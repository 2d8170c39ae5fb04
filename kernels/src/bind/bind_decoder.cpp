// bind_decoder.cpp: the decoder as _native.Decoder. Arguments were checked by
// qh_kernels/decoder.py; what is left to do here is to keep the arrays alive and to release the GIL
// while it computes.

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/bind_kernels.h"
#include "decoder/decoder.h"
#include "format_info.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace qh {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using LogitsOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// What next_token returns instead of a token.
constexpr int32_t kCancelled = -1;
constexpr int32_t kNonFinite = -2;
constexpr int32_t kNotANumber = -3;
constexpr int32_t kNoCandidates = -4;

ModelShape shape_of(const nb::tuple& sizes) {
  return {nb::cast<int64_t>(sizes[0]), nb::cast<int64_t>(sizes[1]), nb::cast<int64_t>(sizes[2]),
          nb::cast<int64_t>(sizes[3]), nb::cast<int64_t>(sizes[4]), nb::cast<int64_t>(sizes[5]),
          nb::cast<int64_t>(sizes[6])};
}

// Reads the description of a model and keeps every array it points into.
class ModelReader {
 public:
  // (data, rows, cols, format, bias or None)
  Linear linear(nb::handle description) {
    const auto parts = nb::cast<nb::tuple>(description);
    const FormatId format = require_format(nb::cast<std::string>(parts[3]));
    return {{keep(nb::cast<Bytes>(parts[0], false)), nb::cast<int64_t>(parts[1]),
             nb::cast<int64_t>(parts[2]), format},
            floats(parts[4])};
  }

  // Seven linears, six norms or None, sliding window.
  LayerView layer(nb::handle description) {
    const auto parts = nb::cast<nb::tuple>(description);
    return {linear(parts[0]),  linear(parts[1]),
            linear(parts[2]),  linear(parts[3]),
            linear(parts[4]),  linear(parts[5]),
            linear(parts[6]),  floats(parts[7]),
            floats(parts[8]),  floats(parts[9]),
            floats(parts[10]), floats(parts[11]),
            floats(parts[12]), nb::cast<int64_t>(parts[13])};
  }

  const float* floats(nb::handle array) {
    return array.is_none() ? nullptr : keep(nb::cast<Floats>(array, false));
  }

  std::vector<Bytes> bytes;
  std::vector<Floats> values;

 private:
  const uint8_t* keep(Bytes array) { return bytes.emplace_back(std::move(array)).data(); }
  const float* keep(Floats array) { return values.emplace_back(std::move(array)).data(); }
};

class NativeDecoder {
 public:
  NativeDecoder(const std::string& isa, const nb::tuple& sizes, float rms_norm_eps,
                const std::string& activation, const nb::object& inv_freq,
                const nb::tuple& embedding, const nb::tuple& head, const nb::object& head_scan,
                const nb::object& final_norm, const nb::list& layers, int64_t context_length,
                int threads, const std::string& kv_type, bool exact, int64_t batch_tokens,
                bool trace) {
    ModelView model;
    model.shape = shape_of(sizes);
    model.rms_norm_eps = rms_norm_eps;
    model.activation = activation == "silu" ? Activation::silu : Activation::relu2;
    model.inv_freq = numbers_.floats(inv_freq);
    read_weights(embedding, head, head_scan, final_norm, layers, weights_, model);
    decoder_ =
        std::make_unique<Decoder>(require_table(isa), std::move(model),
                                  DecoderOptions{context_length, threads, require_kv_type(kv_type),
                                                 exact, batch_tokens, trace});
  }

  // The same weights at another place; the arrays of the old one are let go.
  void move_weights(const nb::tuple& embedding, const nb::tuple& head, const nb::object& head_scan,
                    const nb::object& final_norm, const nb::list& layers) {
    ModelReader moved;
    ModelView model = decoder_->model();
    read_weights(embedding, head, head_scan, final_norm, layers, moved, model);
    decoder_->set_model(std::move(model));
    weights_ = std::move(moved);
  }

  int32_t prefill(const Tokens& tokens) {
    const nb::gil_scoped_release release;
    return static_cast<int32_t>(
        decoder_->prefill(tokens.data(), static_cast<int64_t>(tokens.size())));
  }

  int32_t forward(const Tokens& tokens, const LogitsOut& logits) {
    const nb::gil_scoped_release release;
    return static_cast<int32_t>(
        decoder_->forward(tokens.data(), static_cast<int64_t>(tokens.size()), logits.data()));
  }

  int32_t next_token(Sampler& sampler) {
    const nb::gil_scoped_release release;
    const Decoder::NextToken next = decoder_->next_token(sampler);
    if (next.status == Status::cancelled) return kCancelled;
    if (next.status == Status::non_finite) return kNonFinite;
    if (next.sample.error == SampleError::not_a_number) return kNotANumber;
    if (next.sample.error == SampleError::no_candidates) return kNoCandidates;
    return next.sample.token;
  }

  int32_t commit_pending() {
    const nb::gil_scoped_release release;
    return static_cast<int32_t>(decoder_->commit_pending());
  }

  int32_t require_logits() {
    const nb::gil_scoped_release release;
    return static_cast<int32_t>(decoder_->require_logits());
  }

  nb::ndarray<nb::numpy, float, nb::ndim<1>> logits() const {
    const auto n = static_cast<size_t>(decoder_->shape().vocab_size);
    return own(std::vector<float>(decoder_->logits(), decoder_->logits() + n), {n});
  }

  // (layer, name, per_token, codes (n_tokens, cols), scales (n_tokens, groups)) of each input.
  nb::list trace() const {
    nb::list records;
    for (const TraceRecord& record : decoder_->trace()) {
      const auto n = static_cast<size_t>(record.n_tokens);
      records.append(nb::make_tuple(
          record.layer, record.name, record.per_token,
          own(std::vector<int8_t>(record.codes), {n, static_cast<size_t>(record.cols)}),
          own(std::vector<float>(record.scales), {n, record.scales.size() / n})));
    }
    return records;
  }

  Decoder& decoder() { return *decoder_; }

 private:
  template <class T, size_t N>
  static nb::ndarray<nb::numpy, T, nb::ndim<N>> own(std::vector<T> values,
                                                    const size_t (&shape)[N]) {
    auto* held = new std::vector<T>(std::move(values));
    const nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return {held->data(), N, shape, owner};
  }

  static void read_weights(const nb::tuple& embedding, const nb::tuple& head,
                           const nb::object& head_scan, const nb::object& final_norm,
                           const nb::list& layers, ModelReader& reader, ModelView& model) {
    model.embedding = reader.linear(embedding);
    model.head = reader.linear(head);
    model.head_scan = head_scan.is_none() ? Linear{} : reader.linear(head_scan);
    model.final_norm = reader.floats(final_norm);
    model.layers.clear();
    for (const nb::handle layer : layers) model.layers.push_back(reader.layer(layer));
  }

  ModelReader numbers_;
  ModelReader weights_;
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace

void bind_decoder(nb::module_& module) {
  module.def(
      "decoder_bytes",
      [](const nb::tuple& sizes, int64_t context_length, int threads, const std::string& kv_type,
         int64_t batch_tokens) {
        const DecoderBytes bytes = decoder_bytes(shape_of(sizes), context_length, threads,
                                                 require_kv_type(kv_type), batch_tokens);
        return nb::make_tuple(bytes.kv_cache, bytes.scratch);
      },
      "sizes"_a, "context_length"_a, "threads"_a, "kv_type"_a, "batch_tokens"_a);

  nb::class_<NativeDecoder>(module, "Decoder")
      .def(nb::init<const std::string&, const nb::tuple&, float, const std::string&,
                    const nb::object&, const nb::tuple&, const nb::tuple&, const nb::object&,
                    const nb::object&, const nb::list&, int64_t, int, const std::string&, bool,
                    int64_t, bool>(),
           "isa"_a, "sizes"_a, "rms_norm_eps"_a, "activation"_a, "inv_freq"_a, "embedding"_a,
           "head"_a, "head_scan"_a.none(), "final_norm"_a, "layers"_a, "context_length"_a,
           "threads"_a, "kv_type"_a, "exact"_a, "batch_tokens"_a, "trace"_a)
      .def("move_weights", &NativeDecoder::move_weights, "embedding"_a, "head"_a,
           "head_scan"_a.none(), "final_norm"_a, "layers"_a)
      .def("prefill", &NativeDecoder::prefill, "tokens"_a)
      .def("forward", &NativeDecoder::forward, "tokens"_a, "logits"_a)
      .def("next_token", &NativeDecoder::next_token, "sampler"_a)
      .def("commit_pending", &NativeDecoder::commit_pending)
      .def("require_logits", &NativeDecoder::require_logits)
      .def("logits", &NativeDecoder::logits)
      .def("trace", &NativeDecoder::trace)
      .def(
          "truncate",
          [](NativeDecoder& self, int64_t position) { self.decoder().truncate(position); },
          "position"_a)
      .def(
          "linear_rate",
          [](NativeDecoder& self, int64_t n_tokens, double seconds) {
            Decoder::LinearRate rate{};
            {
              const nb::gil_scoped_release release;
              rate = self.decoder().linear_rate(n_tokens, seconds);
            }
            return nb::make_tuple(rate.layers, rate.seconds);
          },
          "n_tokens"_a, "seconds"_a)
      .def(
          "fill_cache",
          [](NativeDecoder& self, int64_t end) {
            const nb::gil_scoped_release release;
            self.decoder().fill_cache(end);
          },
          "end"_a)
      .def(
          "time_linears", [](NativeDecoder& self, bool on) { self.decoder().time_linears(on); },
          "on"_a)
      .def("linear_seconds", [](NativeDecoder& self) { return self.decoder().linear_seconds(); })
      .def("cancel", [](NativeDecoder& self) { self.decoder().cancel(); })
      .def("clear_cancel", [](NativeDecoder& self) { self.decoder().clear_cancel(); })
      .def("bytes",
           [](NativeDecoder& self) {
             const DecoderBytes bytes = self.decoder().bytes();
             return nb::make_tuple(bytes.kv_cache, bytes.scratch);
           })
      .def_prop_ro("isa", [](NativeDecoder& self) { return isa_name(self.decoder().isa()); })
      .def_prop_ro("threads", [](NativeDecoder& self) { return self.decoder().threads(); })
      .def_prop_ro("position", [](NativeDecoder& self) { return self.decoder().position(); })
      .def_prop_ro("pending", [](NativeDecoder& self) { return self.decoder().pending(); })
      .def_prop_ro("has_last", [](NativeDecoder& self) { return self.decoder().has_last(); })
      .def_prop_ro("non_finite_position",
                   [](NativeDecoder& self) { return self.decoder().non_finite_position(); });
}

}  // namespace qh
