#include "decoder/decoder.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <utility>

#include "format_info.h"
#include "formats.h"

namespace qh {
namespace {

// A chunk ends at so many bytes of weights or multiply-adds, whichever comes first: about 100
// microseconds, so that a thread which lost its CPU for a while leaves little behind. Not less,
// because behind the end of a chunk the kernels prefetch what another thread will read: with 128 kB
// of ternary weights a chunk, a token of a 2B model took 7 % longer (2 cores of an EPYC, 2026-11).
constexpr int64_t kChunkBytes = 4 * 1024 * 1024;
constexpr int64_t kChunkWork = 16 * 1024 * 1024;
constexpr int64_t kMinChunksPerThread = 4;
// Rows of the head that one thread computes again; each is a wait for memory.
constexpr int64_t kRescoreChunk = 16;
// Below this many multiply-adds (about 0.5 microseconds) a step is faster on one thread than handed
// over: 0.2 to 0.4 microseconds to a spinning worker (2 cores of an EPYC, November 2026).
constexpr int64_t kHandOverWork = 32 * 1024;

// No NaN and no infinity: an exponent of all ones carries into the top bit.
bool all_finite(const float* x, int64_t n) noexcept {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    bad |= (std::bit_cast<uint32_t>(x[i]) & 0x7f800000u) + 0x00800000u;
  }
  return (bad & 0x80000000u) == 0;
}

// Every |x| rounds to a finite float16; false for NaN. A key that became -infinity would drop out
// of the attention without a trace.
bool fits_half(const float* x, int64_t n) noexcept {
  constexpr uint32_t kTooLarge =
      0x477ff000u;  // 65520, halfway from the largest float16 to the next
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  }
  return largest < kTooLarge;
}

// Rows that are not divided between threads.
int64_t unit_of(const MatrixView& w) noexcept {
  return std::max(row_unit(spec_of(w.format)), kTileRows);
}

int64_t tiles_of(const MatrixView& w) noexcept { return (w.rows + unit_of(w) - 1) / unit_of(w); }

// The least rows of a product by column blocks that are worth tables of their own.
constexpr int64_t kPartRows = 2048;

int64_t bytes_of(const MatrixView& w) noexcept {
  return format_nbytes(w.format, w.rows, w.cols).value_or(0);
}

// Adds the nanoseconds of its life to a sum, or does nothing without one.
class ElapsedAdder {
 public:
  explicit ElapsedAdder(std::atomic<int64_t>* sum) noexcept : sum_(sum) {
    if (sum_ != nullptr) begin_ = Clock::now();
  }
  ~ElapsedAdder() {
    if (sum_ == nullptr) return;
    const auto life = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin_);
    sum_->fetch_add(life.count(), std::memory_order_relaxed);
  }
  ElapsedAdder(const ElapsedAdder&) = delete;
  ElapsedAdder& operator=(const ElapsedAdder&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  std::atomic<int64_t>* sum_;
  Clock::time_point begin_{};
};

}  // namespace

DecoderBytes decoder_bytes(const ModelShape& shape, int64_t context_length, int threads,
                           KvType kv_type, int64_t batch_tokens) noexcept {
  Scratch scratch;
  return {KvCache::bytes(shape, context_length, kv_type),
          scratch.lay_out(shape, context_length, threads, batch_tokens, nullptr)};
}

Decoder::Decoder(const KernelTable& table, ModelView model, const DecoderOptions& options)
    : table_(table),
      model_(std::move(model)),
      options_(options),
      cache_(model_.shape, options.context_length, options.kv_type),
      scratch_{},
      block_(scratch_.lay_out(model_.shape, options.context_length, options.threads,
                              options.batch_tokens, nullptr)),
      pool_(options.threads) {
  scratch_.lay_out(model_.shape, options.context_length, options.threads, options.batch_tokens,
                   block_.data());
}

Status Decoder::prefill(const int32_t* tokens, int64_t n_tokens) {
  return run(tokens, n_tokens, nullptr);
}

Status Decoder::forward(const int32_t* tokens, int64_t n_tokens, float* logits) {
  return run(tokens, n_tokens, logits);
}

Decoder::NextToken Decoder::next_token(Sampler& sampler) {
  if (const Status status = commit_pending(); status != Status::ok) return {status, {}};
  if (const Status status = require_logits(); status != Status::ok) return {status, {}};
  const SampleResult sample = sampler.sample(scratch_.logits);
  if (sample.error == SampleError::none) pending_ = sample.token;
  return {Status::ok, sample};
}

Status Decoder::require_logits() {
  if (has_logits_) return Status::ok;
  const ScopedFlushDenormals flush;
  bad_position_.store(kAllFinite, std::memory_order_relaxed);
  compute_logits(last_row_, 1, position() - 1, scratch_.logits);
  if (bad_position_.load(std::memory_order_relaxed) != kAllFinite) return Status::non_finite;
  has_logits_ = true;
  return Status::ok;
}

Status Decoder::commit_pending() {
  if (cancelled()) return Status::cancelled;
  if (pending_ < 0) return Status::ok;
  const int32_t token = pending_;
  const Status status = run(&token, 1, nullptr);
  if (status == Status::ok) pending_ = -1;
  return status;
}

void Decoder::truncate(int64_t position) noexcept {
  position_.store(position, std::memory_order_relaxed);
  pending_ = -1;
  has_last_ = false;
  has_logits_ = false;
}

Status Decoder::run(const int32_t* tokens, int64_t n_tokens, float* all_logits) {
  trace_.clear();
  for (int64_t done = 0; done < n_tokens;) {
    const int64_t n = std::min(options_.batch_tokens, n_tokens - done);
    float* logits = all_logits == nullptr ? nullptr : all_logits + done * model_.shape.vocab_size;
    if (const Status status = run_batch(tokens + done, n, logits); status != Status::ok) {
      return status;
    }
    done += n;
  }
  return Status::ok;
}

Status Decoder::run_batch(const int32_t* tokens, int64_t n_tokens, float* all_logits) {
  const ScopedFlushDenormals flush;
  const int64_t begin = position();
  const int64_t hidden_size = model_.shape.hidden_size;
  bad_position_.store(kAllFinite, std::memory_order_relaxed);
  // The rows of the residual stream are overwritten now; logits that were computed stay.
  has_last_ = has_logits_;
  extend_rope_tables(begin + n_tokens);

  const MatrixView& embedding = model_.embedding.w;
  const UnpackRow unpack_row = table_.formats[static_cast<int>(embedding.format)].unpack_row;
  for (int64_t t = 0; t < n_tokens; ++t) {
    unpack_row(embedding, tokens[t], scratch_.hidden + t * scratch_.hidden_stride);
  }
  for (int64_t layer = 0; layer < model_.shape.num_hidden_layers; ++layer) {
    if (!run_layer(layer, begin, n_tokens)) return Status::cancelled;
  }
  // A NaN or an infinity anywhere ends in the residual stream as one: the kernels hand it on (the
  // quantizers as a NaN scale).
  for (int64_t t = 0; t < n_tokens; ++t) {
    if (!all_finite(scratch_.hidden + t * scratch_.hidden_stride, hidden_size)) {
      note_non_finite(begin + t);
    }
  }
  if (cancelled()) return Status::cancelled;
  if (all_logits != nullptr) compute_logits(0, n_tokens, begin, all_logits);
  if (bad_position_.load(std::memory_order_relaxed) != kAllFinite) return Status::non_finite;
  position_.store(begin + n_tokens, std::memory_order_relaxed);
  last_row_ = n_tokens - 1;
  has_last_ = true;
  has_logits_ = all_logits != nullptr;
  if (has_logits_) {
    const int64_t vocab_size = model_.shape.vocab_size;
    std::memcpy(scratch_.logits, all_logits + last_row_ * vocab_size,
                static_cast<size_t>(vocab_size) * sizeof(float));
  }
  return Status::ok;
}

bool Decoder::run_layer(int64_t layer, int64_t begin, int64_t n_tokens) {
  const LayerView& weights = model_.layers[static_cast<size_t>(layer)];
  const ModelShape& shape = model_.shape;
  Scratch& s = scratch_;
  const float eps = model_.rms_norm_eps;

  const LinearJob qkv[] = {{&weights.q, s.q, s.q_stride},
                           {&weights.k, s.k, s.kv_stride},
                           {&weights.v, s.v, s.kv_stride}};
  prepare_input({layer, "q"}, n_tokens, shape.hidden_size, forms_of(qkv),
                [&](int64_t t, float* input) {
                  table_.rms_norm(s.hidden + t * s.hidden_stride, weights.attention_norm, eps,
                                  shape.hidden_size, input);
                });
  multiply(qkv, n_tokens);
  if (cancelled()) return false;
  store_positions(layer, begin, n_tokens);
  attend(pool_, {table_, shape, cache_, s.attend, layer, begin, n_tokens, weights.sliding_window,
                 s.q, s.attention, s.q_stride});

  const LinearJob o[] = {{&weights.o, s.branch, s.hidden_stride}};
  prepare_input({layer, "o"}, n_tokens, shape.q_size(), forms_of(o), [&](int64_t t, float* input) {
    const float* attention = s.attention + t * s.q_stride;
    if (weights.attention_sub_norm != nullptr) {
      table_.rms_norm(attention, weights.attention_sub_norm, eps, shape.q_size(), input);
    } else {
      std::memcpy(input, attention, static_cast<size_t>(shape.q_size()) * sizeof(float));
    }
  });
  multiply(o, n_tokens);
  if (cancelled()) return false;

  const LinearJob gate_up[] = {{&weights.gate, s.gate, s.intermediate_stride},
                               {&weights.up, s.up, s.intermediate_stride}};
  prepare_input({layer, "gate"}, n_tokens, shape.hidden_size, forms_of(gate_up),
                [&](int64_t t, float* input) {
                  float* hidden = s.hidden + t * s.hidden_stride;
                  table_.add(hidden, s.branch + t * s.hidden_stride, shape.hidden_size);
                  table_.rms_norm(hidden, weights.mlp_norm, eps, shape.hidden_size, input);
                });
  multiply(gate_up, n_tokens);
  if (cancelled()) return false;

  const LinearJob down[] = {{&weights.down, s.branch, s.hidden_stride}};
  prepare_input({layer, "down"}, n_tokens, shape.intermediate_size, forms_of(down),
                [&](int64_t t, float* input) {
                  const float* gate = s.gate + t * s.intermediate_stride;
                  const float* up = s.up + t * s.intermediate_stride;
                  const bool sub_norm = weights.mlp_sub_norm != nullptr;
                  float* product = sub_norm ? s.product + t * s.intermediate_stride : input;
                  table_.gated(model_.activation, gate, up, shape.intermediate_size, product);
                  if (sub_norm) {
                    table_.rms_norm(product, weights.mlp_sub_norm, eps, shape.intermediate_size,
                                    input);
                  }
                });
  multiply(down, n_tokens);
  for_each_token(n_tokens, [&](int64_t t) {
    table_.add(s.hidden + t * s.hidden_stride, s.branch + t * s.hidden_stride, shape.hidden_size);
  });
  return !cancelled();
}

// Norms and rotates queries and keys, and puts keys and values into the cache.
void Decoder::store_positions(int64_t layer, int64_t begin, int64_t n_tokens) noexcept {
  const LayerView& weights = model_.layers[static_cast<size_t>(layer)];
  const ModelShape& shape = model_.shape;
  Scratch& s = scratch_;
  const int64_t head_dim = shape.head_dim;
  const float eps = model_.rms_norm_eps;

  for_each_token(n_tokens, [&](int64_t t) {
    const int64_t position = begin + t;
    float* q = s.q + t * s.q_stride;
    float* k = s.k + t * s.kv_stride;
    if (weights.q_norm != nullptr) {
      for (int64_t head = 0; head < shape.num_attention_heads; ++head) {
        table_.rms_norm(q + head * head_dim, weights.q_norm, eps, head_dim, q + head * head_dim);
      }
    }
    if (weights.k_norm != nullptr) {
      for (int64_t head = 0; head < shape.num_key_value_heads; ++head) {
        table_.rms_norm(k + head * head_dim, weights.k_norm, eps, head_dim, k + head * head_dim);
      }
    }
    const float* cos = s.cos + position * (head_dim / 2);
    const float* sin = s.sin + position * (head_dim / 2);
    table_.rope(q, shape.num_attention_heads, head_dim, cos, sin);
    table_.rope(k, shape.num_key_value_heads, head_dim, cos, sin);
    const float* v = s.v + t * s.kv_stride;
    if (!fits_cache(k, shape.kv_size()) || !fits_cache(v, shape.kv_size())) {
      note_non_finite(position);
    }
  });
  // By head and not by token: in the cache, tokens that follow each other share cache lines.
  const auto store = [&](int64_t head, int) {
    for (int64_t t = 0; t < n_tokens; ++t) {
      const int64_t position = begin + t;
      const int64_t at = t * s.kv_stride + head * head_dim;
      table_.store_kv(cache_.head(layer, head, position / kKvSegment), position % kKvSegment,
                      s.k + at, s.v + at);
    }
  };
  const int64_t kv_heads = shape.num_key_value_heads;
  if (n_tokens * shape.kv_size() > kHandOverWork) {
    pool_.run(kv_heads, store);
  } else {
    for (int64_t head = 0; head < kv_heads; ++head) store(head, 0);
  }
}

// Whether what is stored of x is finite.
bool Decoder::fits_cache(const float* x, int64_t n) const noexcept {
  return options_.kv_type == KvType::f16 ? fits_half(x, n) : all_finite(x, n);
}

// Logits of n_tokens rows of the residual stream from first_row on; the first is at position begin.
void Decoder::compute_logits(int64_t first_row, int64_t n_tokens, int64_t begin, float* logits) {
  const ModelShape& shape = model_.shape;
  Scratch& s = scratch_;
  const LinearJob head[] = {{&model_.head, logits, shape.vocab_size}};
  const LinearJob scan[] = {{&model_.head_scan, logits, shape.vocab_size}};
  const bool scans = model_.head_scan.w.data != nullptr && !options_.exact;
  const unsigned forms = forms_of(head) | (scans ? forms_of(scan) : 0u);
  prepare_input({shape.num_hidden_layers, "head"}, n_tokens, shape.hidden_size, forms,
                [&](int64_t t, float* input) {
                  table_.rms_norm(s.hidden + (first_row + t) * s.hidden_stride, model_.final_norm,
                                  model_.rms_norm_eps, shape.hidden_size, input);
                });
  if (scans) {
    multiply(scan, n_tokens);
    for (int64_t t = 0; t < n_tokens; ++t) rescore(t, logits + t * shape.vocab_size);
  } else {
    multiply(head, n_tokens);
  }
  for (int64_t t = 0; t < n_tokens; ++t) {
    if (!all_finite(logits + t * shape.vocab_size, shape.vocab_size)) note_non_finite(begin + t);
  }
}

// Computes the best of the scanned logits of one token again, from the head itself. Rows of a
// packed head come in tiles, and then the whole tile of a row is computed.
void Decoder::rescore(int64_t token, float* logits) noexcept {
  const MatrixView& w = model_.head.w;
  const Scratch& s = scratch_;
  const bool dense = table_.formats[static_cast<int>(w.format)].linear_quantized == nullptr;
  const int64_t unit = dense ? 1 : unit_of(w);
  const int64_t n_best = best_rows(logits, w.rows, s.block_best, s.best);
  const int64_t n_chunks = (n_best + kRescoreChunk - 1) / kRescoreChunk;
  pool_.run(n_chunks, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kRescoreChunk;
    const int64_t end = std::min(begin + kRescoreChunk, n_best);
    // A tile belongs to the chunk of the first of its rows.
    int64_t done = begin == 0 ? -1 : s.best[begin - 1] / unit;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t place = s.best[i] / unit;
      if (place == done) continue;
      done = place;
      multiply_rows(model_.head, logits, w.rows, token, 1, place * unit,
                    std::min((place + 1) * unit, w.rows));
    }
  });
}

Decoder::InputForm Decoder::form_of(const MatrixView& w) const noexcept {
  if (table_.formats[static_cast<int>(w.format)].linear_quantized == nullptr) return kF32;
  // The int8 activations of a ternary model are its own arithmetic, not an approximation.
  if (spec_of(w.format).family == Family::ternary) return kTokenCodes;
  return options_.exact ? kF32 : kGroupCodes;
}

template <int N>
unsigned Decoder::forms_of(const LinearJob (&jobs)[N]) const noexcept {
  unsigned forms = 0;
  for (const LinearJob& job : jobs) forms |= form_of(job.linear->w);
  return forms;
}

template <class Body>
void Decoder::for_each_token(int64_t n_tokens, Body body) noexcept {
  pool_.run(n_tokens, [&](int64_t t, int) { body(t); });
}

// Puts the input of the next linear layers into scratch_.input and its codes, in every form that
// one of them reads. fill(t, input) writes the cols values of token t.
template <class Fill>
void Decoder::prepare_input(Place place, int64_t n_tokens, int64_t cols, unsigned forms,
                            Fill fill) {
  Scratch& s = scratch_;
  const int64_t stride = round_up(cols, kActivationPad);
  const int64_t groups = stride / kActivationGroup;
  for_each_token(n_tokens, [&](int64_t t) {
    float* input = s.input + t * stride;
    fill(t, input);
    std::memset(input + cols, 0, static_cast<size_t>(stride - cols) * sizeof(float));
    if ((forms & kTokenCodes) != 0) {
      table_.quantize_token(input, cols, stride, s.token_codes + t * stride, s.token_scales + t,
                            s.token_sums + t);
    }
    if ((forms & kGroupCodes) != 0) {
      table_.quantize_groups(input, cols, stride, s.group_codes + t * stride,
                             s.group_scales + t * groups, s.group_sums + t * 2 * groups);
    }
  });
  if (options_.trace) {
    if ((forms & kTokenCodes) != 0) record(place, true, n_tokens, cols, stride);
    if ((forms & kGroupCodes) != 0) record(place, false, n_tokens, cols, stride);
  }
}

// All jobs; they share the prepared input.
template <int N>
void Decoder::multiply(const LinearJob (&jobs)[N], int64_t n_tokens) noexcept {
  bool by_parts = n_tokens == 1;
  int64_t floats = 0;
  for (const LinearJob& job : jobs) {
    const MatrixView& w = job.linear->w;
    const FormatKernels& kernels = table_.formats[static_cast<int>(w.format)];
    by_parts = by_parts && kernels.linear_part != nullptr && form_of(w) == kGroupCodes;
    floats += Scratch::part_floats(w.rows, w.cols);
  }
  if (by_parts && floats <= scratch_.part_capacity) {
    multiply_parts(jobs);
  } else {
    multiply_all_rows(jobs, n_tokens);
  }
}

// One token, in two steps: what each column block adds to a range of rows, then the sums.
template <int N>
void Decoder::multiply_parts(const LinearJob (&jobs)[N]) noexcept {
  struct Parts {
    float* at;
    int64_t stride, blocks, splits, units;
  };
  Parts parts[N];
  int64_t floats = 0;
  int64_t blocks = 0;
  int64_t units = 0;
  int64_t tiles = 0;
  for (const LinearJob& job : jobs) blocks += Scratch::part_blocks(job.linear->w.cols);
  const int64_t threads = pool_.threads();
  for (int i = 0; i < N; ++i) {
    const MatrixView& w = jobs[i].linear->w;
    Parts& part = parts[i];
    part.at = scratch_.parts + floats;
    part.blocks = Scratch::part_blocks(w.cols);
    part.stride = Scratch::part_floats(w.rows, w.cols) / part.blocks;
    const int64_t wanted = threads == 1 ? 1 : (2 * threads + blocks - 1) / blocks;
    part.splits = std::clamp<int64_t>(w.rows / kPartRows, 1, wanted);
    part.units = part.blocks * part.splits;
    floats += part.stride * part.blocks;
    units += part.units;
    tiles += tiles_of(w);
  }
  pool_.run(units, [&](int64_t unit, int) {
    const ElapsedAdder timer(times_linears_ ? &linear_ns_ : nullptr);
    for (int i = 0; i < N; ++i) {
      if (unit >= parts[i].units) {
        unit -= parts[i].units;
        continue;
      }
      const MatrixView& w = jobs[i].linear->w;
      const Parts& part = parts[i];
      const int64_t block = unit / part.splits;
      const int64_t split = unit % part.splits;
      const int64_t n_tiles = tiles_of(w);
      const int64_t begin = n_tiles * split / part.splits * unit_of(w);
      const int64_t end = std::min(n_tiles * (split + 1) / part.splits * unit_of(w), w.rows);
      table_.formats[static_cast<int>(w.format)].linear_part(
          w, group_activations(w, 0, 1), block, part.at + block * part.stride, begin, end);
      return;
    }
  });
  const int64_t n_chunks = std::min(tiles, threads);
  pool_.run(n_chunks, [&](int64_t chunk, int) {
    const ElapsedAdder timer(times_linears_ ? &linear_ns_ : nullptr);
    for (int i = 0; i < N; ++i) {
      const Linear& linear = *jobs[i].linear;
      const int64_t n_tiles = tiles_of(linear.w);
      const int64_t begin = n_tiles * chunk / n_chunks * unit_of(linear.w);
      const int64_t end =
          std::min(n_tiles * (chunk + 1) / n_chunks * unit_of(linear.w), linear.w.rows);
      if (begin >= end) continue;
      table_.formats[static_cast<int>(linear.w.format)].sum_parts(
          linear.w, parts[i].at, parts[i].stride, jobs[i].y, begin, end);
      if (linear.bias != nullptr) table_.add(jobs[i].y + begin, linear.bias + begin, end - begin);
    }
  });
}

// All rows of all jobs in one hand-over.
template <int N>
void Decoder::multiply_all_rows(const LinearJob (&jobs)[N], int64_t n_tokens) noexcept {
  int64_t tiles = 0;
  int64_t bytes = 0;
  int64_t work = 0;
  for (const LinearJob& job : jobs) {
    tiles += tiles_of(job.linear->w);
    bytes += bytes_of(job.linear->w);
    work += job.linear->w.rows * job.linear->w.cols * n_tokens;
  }
  const int64_t threads = pool_.threads();
  const int64_t wanted =
      std::max({threads * kMinChunksPerThread, bytes / kChunkBytes, work / kChunkWork});
  const int64_t n_chunks = threads == 1 || work < kHandOverWork ? 1 : std::min(tiles, wanted);
  pool_.run(n_chunks, [&](int64_t chunk, int) {
    const ElapsedAdder timer(times_linears_ ? &linear_ns_ : nullptr);
    int64_t begin = tiles * chunk / n_chunks;
    int64_t end = tiles * (chunk + 1) / n_chunks;
    for (const LinearJob& job : jobs) {
      const int64_t n_tiles = tiles_of(job.linear->w);
      const int64_t first = std::max<int64_t>(begin, 0);
      const int64_t last = std::min(end, n_tiles);
      if (first < last) {
        const int64_t unit = unit_of(job.linear->w);
        multiply_rows(*job.linear, job.y, job.y_stride, 0, n_tokens, first * unit,
                      std::min(last * unit, job.linear->w.rows));
      }
      begin -= n_tiles;
      end -= n_tiles;
    }
  });
}

// The prepared input with one scale per kActivationGroup.
QuantizedActivations Decoder::group_activations(const MatrixView& w, int64_t first_token,
                                                int64_t n_tokens) const noexcept {
  const Scratch& s = scratch_;
  const int64_t stride = round_up(w.cols, kActivationPad);
  const int64_t groups = stride / kActivationGroup;
  const int64_t group = first_token * groups;
  return {s.group_codes + first_token * stride,
          s.group_scales + group,
          s.group_sums + 2 * group,
          stride,
          groups,
          2 * groups,
          n_tokens};
}

// y: rows of the tokens from first_token on.
void Decoder::multiply_rows(const Linear& linear, float* y, int64_t y_stride, int64_t first_token,
                            int64_t n_tokens, int64_t row_begin, int64_t row_end) noexcept {
  const MatrixView& w = linear.w;
  const FormatKernels& kernels = table_.formats[static_cast<int>(w.format)];
  const Scratch& s = scratch_;
  const int64_t stride = round_up(w.cols, kActivationPad);
  const int64_t at = first_token * stride;
  switch (form_of(w)) {
    case kF32:
      kernels.linear_f32(w, s.input + at, stride, n_tokens, y, y_stride, row_begin, row_end);
      break;
    case kTokenCodes:
      kernels.linear_quantized(w,
                               {s.token_codes + at, s.token_scales + first_token,
                                s.token_sums + first_token, stride, 1, 1, n_tokens},
                               y, y_stride, row_begin, row_end);
      break;
    case kGroupCodes:
      kernels.linear_quantized(w, group_activations(w, first_token, n_tokens), y, y_stride,
                               row_begin, row_end);
      break;
  }
  if (linear.bias != nullptr) {
    for (int64_t t = 0; t < n_tokens; ++t) {
      table_.add(y + t * y_stride + row_begin, linear.bias + row_begin, row_end - row_begin);
    }
  }
}

void Decoder::make_up_input(int64_t n_tokens) {
  const ModelShape& shape = model_.shape;
  const int64_t widest = std::max({shape.hidden_size, shape.q_size(), shape.intermediate_size});
  prepare_input({0, "q"}, n_tokens, widest, kF32 | kTokenCodes | kGroupCodes,
                [&](int64_t t, float* input) {
                  for (int64_t i = 0; i < widest; ++i) {
                    input[i] = static_cast<float>((i + t) % 17) - 8.0f;
                  }
                });
}

// The products of run_layer, in its order.
void Decoder::multiply_layer(const LayerView& weights, int64_t n_tokens) noexcept {
  const Scratch& s = scratch_;
  const LinearJob qkv[] = {{&weights.q, s.q, s.q_stride},
                           {&weights.k, s.k, s.kv_stride},
                           {&weights.v, s.v, s.kv_stride}};
  const LinearJob o[] = {{&weights.o, s.branch, s.hidden_stride}};
  const LinearJob gate_up[] = {{&weights.gate, s.gate, s.intermediate_stride},
                               {&weights.up, s.up, s.intermediate_stride}};
  const LinearJob down[] = {{&weights.down, s.branch, s.hidden_stride}};
  multiply(qkv, n_tokens);
  multiply(o, n_tokens);
  multiply(gate_up, n_tokens);
  multiply(down, n_tokens);
}

// The angle is a float32 product, as in the implementations that models were made with; its cosine
// and sine are exact to float32.
void Decoder::extend_rope_tables(int64_t end) noexcept {
  const int64_t half_dim = model_.shape.head_dim / 2;
  for (; rope_positions_ < end; ++rope_positions_) {
    float* cos = scratch_.cos + rope_positions_ * half_dim;
    float* sin = scratch_.sin + rope_positions_ * half_dim;
    for (int64_t i = 0; i < half_dim; ++i) {
      const float angle = static_cast<float>(rope_positions_) * model_.inv_freq[i];
      cos[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
      sin[i] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
}

void Decoder::note_non_finite(int64_t position) noexcept {
  int64_t known = bad_position_.load(std::memory_order_relaxed);
  while (position < known &&
         !bad_position_.compare_exchange_weak(known, position, std::memory_order_relaxed)) {
  }
}

void Decoder::record(Place place, bool per_token, int64_t n_tokens, int64_t cols, int64_t stride) {
  const Scratch& s = scratch_;
  const int8_t* codes = per_token ? s.token_codes : s.group_codes;
  const float* scales = per_token ? s.token_scales : s.group_scales;
  const int64_t scale_stride = per_token ? 1 : stride / kActivationGroup;
  const int64_t n_scales = per_token ? 1 : (cols + kActivationGroup - 1) / kActivationGroup;
  TraceRecord entry{place.layer, place.name, per_token, n_tokens, cols, {}, {}};
  for (int64_t t = 0; t < n_tokens; ++t) {
    entry.codes.insert(entry.codes.end(), codes + t * stride, codes + t * stride + cols);
    entry.scales.insert(entry.scales.end(), scales + t * scale_stride,
                        scales + t * scale_stride + n_scales);
  }
  trace_.push_back(std::move(entry));
}

}  // namespace qh
