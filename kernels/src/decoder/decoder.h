// decoder.h: a whole decoder, from token ids to logits, over weights that somebody else owns.
//
// One forward pass takes a batch of tokens at consecutive positions through all layers. Prefill and
// decode are the same code with different batch sizes, and no result depends on the batch size, the
// number of threads or who computed which row: prefill equals token-by-token decode bit for bit.
//
// Not for concurrent use, except cancel, clear_cancel and position.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "decoder/arena.h"
#include "decoder/kv_cache.h"
#include "decoder/model_view.h"
#include "decoder/sampler.h"
#include "decoder/scratch.h"
#include "decoder/thread_pool.h"
#include "kernel_table.h"

namespace qh {

enum class Status : int32_t { ok, cancelled, non_finite };

struct DecoderBytes {
  int64_t kv_cache;
  int64_t scratch;
};

// What a Decoder of this shape allocates, without making one.
DecoderBytes decoder_bytes(const ModelShape& shape, int64_t context_length, int threads,
                           KvType kv_type, int64_t batch_tokens) noexcept;

// The int8 codes of one input of linear layers, for the tokens of one batch.
struct TraceRecord {
  int64_t layer;     // num_hidden_layers for the head
  std::string name;  // the first linear layer that reads it: "q", "o", "gate", "down" or "head"
  bool per_token;    // one scale per token (ternary), else one per kActivationGroup inputs
  int64_t n_tokens;
  int64_t cols;
  std::vector<int8_t> codes;  // (n_tokens, cols)
  std::vector<float> scales;  // (n_tokens, groups)
};

class Decoder {
 public:
  // Allocates everything; throws std::bad_alloc or std::system_error where the system refuses.
  Decoder(const KernelTable& table, ModelView model, const DecoderOptions& options);

  // Appends the tokens to the KV cache, batch by batch. Anything but ok leaves the position at the
  // end of the last complete batch.
  Status prefill(const int32_t* tokens, int64_t n_tokens);
  // The same, and writes the logits of every token: (n_tokens, vocab_size).
  Status forward(const int32_t* tokens, int64_t n_tokens, float* logits);

  struct NextToken {
    Status status;
    SampleResult sample;  // of an ok status
  };
  // Runs the pending token, if there is one, then draws from the logits; what was drawn becomes the
  // pending token. A cancelled call changes nothing.
  NextToken next_token(Sampler& sampler);
  // Multiplies the head for the last token, if that was not done yet: not cancelled or ok only, and
  // not before something was computed (has_last). Prefill leaves it to here, so that a prompt that
  // comes in pieces pays for one head.
  Status require_logits();
  // Runs the pending token without drawing another.
  Status commit_pending();
  // Forgets every position from `position` on, and the pending token and the logits.
  void truncate(int64_t position) noexcept;

  void cancel() noexcept { cancelled_.store(true, std::memory_order_relaxed); }
  void clear_cancel() noexcept { cancelled_.store(false, std::memory_order_relaxed); }

  int64_t position() const noexcept { return position_.load(std::memory_order_relaxed); }
  int64_t context_length() const noexcept { return options_.context_length; }
  int32_t pending() const noexcept { return pending_; }
  // Whether there is a last token to have logits of.
  bool has_last() const noexcept { return has_last_; }
  // Of the last token, after require_logits.
  const float* logits() const noexcept { return scratch_.logits; }
  // The first position with a NaN or infinite value in the last pass that said non_finite.
  int64_t non_finite_position() const noexcept { return bad_position_.load(); }
  DecoderBytes bytes() const noexcept { return {cache_.bytes(), block_.bytes()}; }
  const std::vector<TraceRecord>& trace() const noexcept { return trace_; }
  const ModelShape& shape() const noexcept { return model_.shape; }
  // What is computed with, and the same at another place in memory.
  const ModelView& model() const noexcept { return model_; }
  void set_model(ModelView model) noexcept { model_ = std::move(model); }
  int threads() const noexcept { return pool_.threads(); }
  Isa isa() const noexcept { return table_.isa; }

  // For measurements (measuring.cpp).
  // The linear layers, decoder layer by decoder layer and again from the first, for about `seconds`
  // on made-up inputs, with the hand-overs of a forward pass and nothing else of it.
  struct LinearRate {
    int64_t layers;  // decoder layers that were multiplied
    double seconds;
  };
  // n_tokens: at most batch_tokens. Overwrites the last token: truncate or prefill afterwards.
  LinearRate linear_rate(int64_t n_tokens, double seconds);
  // Puts made-up keys and values at positions 0..end, as if so many tokens had been computed.
  void fill_cache(int64_t end) noexcept;
  // From now on, adds up the time that threads spend inside the products of linear layers.
  void time_linears(bool on) noexcept {
    times_linears_ = on;
    linear_ns_.store(0, std::memory_order_relaxed);
  }
  // Mean over the threads, in seconds: waiting for each other and for work is not in it.
  double linear_seconds() const noexcept {
    return static_cast<double>(linear_ns_.load(std::memory_order_relaxed)) * 1e-9 /
           static_cast<double>(pool_.threads());
  }

 private:
  // Which forms of an input its linear layers read.
  enum InputForm : unsigned { kF32 = 1, kTokenCodes = 2, kGroupCodes = 4 };
  struct LinearJob {
    const Linear* linear;
    float* y;
    int64_t y_stride;
  };
  // Where an input is in the model, for the trace.
  struct Place {
    int64_t layer;
    const char* name;
  };
  InputForm form_of(const MatrixView& w) const noexcept;
  template <int N>
  unsigned forms_of(const LinearJob (&jobs)[N]) const noexcept;
  template <class Fill>
  void prepare_input(Place place, int64_t n_tokens, int64_t cols, unsigned forms, Fill fill);
  template <int N>
  void multiply(const LinearJob (&jobs)[N], int64_t n_tokens) noexcept;
  template <int N>
  void multiply_parts(const LinearJob (&jobs)[N]) noexcept;
  template <int N>
  void multiply_all_rows(const LinearJob (&jobs)[N], int64_t n_tokens) noexcept;
  QuantizedActivations group_activations(const MatrixView& w, int64_t first_token,
                                         int64_t n_tokens) const noexcept;
  void multiply_rows(const Linear& linear, float* y, int64_t y_stride, int64_t first_token,
                     int64_t n_tokens, int64_t row_begin, int64_t row_end) noexcept;
  template <class Body>
  void for_each_token(int64_t n_tokens, Body body) noexcept;

  // For measurements: values in every form and as wide as the widest layer reads.
  void make_up_input(int64_t n_tokens);
  void multiply_layer(const LayerView& weights, int64_t n_tokens) noexcept;

  Status run(const int32_t* tokens, int64_t n_tokens, float* all_logits);
  Status run_batch(const int32_t* tokens, int64_t n_tokens, float* all_logits);
  bool run_layer(int64_t layer, int64_t begin, int64_t n_tokens);
  void store_positions(int64_t layer, int64_t begin, int64_t n_tokens) noexcept;
  bool fits_cache(const float* x, int64_t n) const noexcept;
  void compute_logits(int64_t first_row, int64_t n_tokens, int64_t begin, float* logits);
  void rescore(int64_t token, float* logits) noexcept;
  void extend_rope_tables(int64_t end) noexcept;
  void note_non_finite(int64_t position) noexcept;
  void record(Place place, bool per_token, int64_t n_tokens, int64_t cols, int64_t stride);
  bool cancelled() const noexcept { return cancelled_.load(std::memory_order_relaxed); }

  static constexpr int64_t kAllFinite = std::numeric_limits<int64_t>::max();

  const KernelTable& table_;
  ModelView model_;
  DecoderOptions options_;
  KvCache cache_;
  Scratch scratch_;
  AlignedBlock block_;
  ThreadPool pool_;
  int64_t rope_positions_ = 0;
  std::atomic<int64_t> position_{0};
  std::atomic<int64_t> bad_position_{kAllFinite};
  std::atomic<bool> cancelled_{false};
  std::atomic<int64_t> linear_ns_{0};
  bool times_linears_ = false;
  int32_t pending_ = -1;
  int64_t last_row_ = 0;     // row of scratch_.hidden that belongs to the last token
  bool has_last_ = false;    // that row, or has_logits_
  bool has_logits_ = false;  // scratch_.logits are those of the last token
  std::vector<TraceRecord> trace_;
};

}  // namespace qh
