// test_decoder.cpp: the decoder and its threads, for the sanitizers above all; values are compared
// with the NumPy reference in tests/unit/decoder.
// Usage: test_decoder <isa>; exit code 77 where it does not run here.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "decoder/decoder.h"
#include "format_info.h"

// Sanitizers have an operator new of their own, which finds more than this count does.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define QH_COUNT_ALLOCATIONS 1
#else
#define QH_COUNT_ALLOCATIONS 0
#endif

#if QH_COUNT_ALLOCATIONS
namespace {

std::atomic<int64_t> g_allocations{0};  // by any thread of this process

void* counted(size_t size, size_t alignment) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  const size_t rounded = (size + alignment - 1) / alignment * alignment;
  if (void* memory = std::aligned_alloc(alignment, rounded > 0 ? rounded : alignment)) {
    return memory;
  }
  throw std::bad_alloc();
}

}  // namespace

// The other forms of operator new and delete call these.
void* operator new(size_t size) { return counted(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
#endif

namespace {

using qh::FormatId;
using qh::Status;
using qh_test::Buffer;
using qh_test::Random;
using qh_test::Report;

uint16_t half_bits(float value) {  // of a positive normal value
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits >> 13) - ((127 - 15) << 10));
}

// Random weights of a model whose linear layers take the formats in turn, in buffers of exactly the
// bytes of each matrix.
class RandomModel {
 public:
  RandomModel(const qh::ModelShape& shape, const std::vector<FormatId>& formats, int64_t window)
      : formats_(formats) {
    view_.shape = shape;
    view_.embedding = {matrix(FormatId::bf16, shape.vocab_size, shape.hidden_size), nullptr};
    view_.head = {matrix(formats[0], shape.vocab_size, shape.hidden_size), nullptr};
    view_.head_scan = {matrix(formats[0], shape.vocab_size, shape.hidden_size), nullptr};
    view_.final_norm = vector(shape.hidden_size, 1.0f);
    view_.inv_freq = vector(shape.head_dim / 2, 0.3f);
    view_.rms_norm_eps = 1e-5f;
    view_.activation = qh::Activation::silu;
    for (int64_t layer = 0; layer < shape.num_hidden_layers; ++layer) {
      qh::LayerView parts{};
      parts.q = linear(shape.q_size(), shape.hidden_size);
      parts.k = linear(shape.kv_size(), shape.hidden_size);
      parts.v = linear(shape.kv_size(), shape.hidden_size);
      parts.o = linear(shape.hidden_size, shape.q_size());
      parts.gate = linear(shape.intermediate_size, shape.hidden_size);
      parts.up = linear(shape.intermediate_size, shape.hidden_size);
      parts.down = linear(shape.hidden_size, shape.intermediate_size);
      parts.attention_norm = vector(shape.hidden_size, 1.0f);
      parts.mlp_norm = vector(shape.hidden_size, 1.0f);
      parts.q_norm = vector(shape.head_dim, 1.0f);
      parts.k_norm = vector(shape.head_dim, 1.0f);
      parts.attention_sub_norm = vector(shape.q_size(), 1.0f);
      parts.mlp_sub_norm = vector(shape.intermediate_size, 1.0f);
      parts.sliding_window = layer % 2 == 0 ? 0 : window;
      view_.layers.push_back(parts);
    }
  }

  const qh::ModelView& view() const { return view_; }

  std::vector<int32_t> tokens(int64_t n) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < n; ++i) {
      ids.push_back(static_cast<int32_t>(random_.integer(0, view_.shape.vocab_size - 1)));
    }
    return ids;
  }

 private:
  qh::Linear linear(int64_t rows, int64_t cols) {
    const FormatId format = formats_[next_++ % formats_.size()];
    return {matrix(format, rows, cols), vector(rows, 0.1f)};
  }

  const float* vector(int64_t n, float mean) {
    floats_.emplace_back(n);
    for (int64_t i = 0; i < n; ++i) floats_.back()[i] = mean + random_.normal(0.1f);
    return floats_.back().data();
  }

  // Codes are any bytes; every byte that may be part of a scale is overwritten by one: the packed
  // formats here have their scales at known places of the tile.
  qh::MatrixView matrix(FormatId format, int64_t rows, int64_t cols) {
    const int64_t nbytes = *qh::format_nbytes(format, rows, cols);
    bytes_.emplace_back(nbytes);
    Buffer<uint8_t>& data = bytes_.back();
    for (int64_t i = 0; i < nbytes; ++i) data[i] = static_cast<uint8_t>(random_.integer(0, 255));
    const float scale = 1.0f / static_cast<float>(cols);
    const int64_t tile = *qh::format_nbytes(format, 1, cols);
    if (format == FormatId::f32) {
      for (int64_t i = 0; i < nbytes; i += 4) put_float(&data[i], random_.normal(0.2f));
    } else if (format == FormatId::bf16 || format == FormatId::f16) {
      // Exponents of small numbers, either sign.
      for (int64_t i = 1; i < nbytes; i += 2) {
        data[i] = static_cast<uint8_t>((data[i] & 0x80) | (format == FormatId::bf16 ? 0x3d : 0x2c));
      }
    } else if (format == FormatId::int4_g32) {
      // A line of 64 bytes of scales, then 8 blocks of 64 columns; the last span may be half.
      const uint16_t bits = half_bits(0.02f);
      for (int64_t t = 0; t < nbytes; t += tile) {
        for (int64_t span = t; span < t + tile; span += 64 + 8 * 64) {
          for (int64_t i = span; i < span + 64; i += 2) std::memcpy(&data[i], &bits, 2);
        }
      }
    } else {
      for (int64_t t = 0; t < nbytes; t += tile) {
        for (int64_t i = tile - 64; i < tile; i += 4) put_float(&data[t + i], scale);
        if (format != FormatId::ternary) continue;
        // 3 is no code of this format.
        for (int64_t i = 0; i < tile - 64; ++i)
          data[t + i] = static_cast<uint8_t>(data[t + i] & 0x55);
      }
    }
    return {data.data(), rows, cols, format};
  }

  static void put_float(uint8_t* out, float value) { std::memcpy(out, &value, 4); }

  Random random_{20261123};
  std::vector<FormatId> formats_;
  size_t next_ = 0;
  std::vector<Buffer<float>> floats_;
  std::vector<Buffer<uint8_t>> bytes_;
  qh::ModelView view_;
};

qh::DecoderOptions options(int threads, int64_t batch_tokens, qh::KvType kv_type, bool exact) {
  return {/*context_length=*/600, threads,        kv_type, exact,
          batch_tokens,           /*trace=*/false};
}

void compare_batches_and_threads(const qh::KernelTable& table, const qh::ModelShape& shape,
                                 int64_t n_tokens, qh::KvType kv_type, Report& report) {
  const bool exact = kv_type == qh::KvType::f32;
  RandomModel model(shape,
                    {FormatId::int8, FormatId::f32, FormatId::ternary, FormatId::int4_g32,
                     FormatId::bf16, FormatId::f16},
                    7);
  const std::vector<int32_t> tokens = model.tokens(n_tokens);
  qh::Decoder one(table, model.view(), options(1, 1, kv_type, exact));
  Buffer<float> expected(n_tokens * shape.vocab_size);
  report.same(0, static_cast<int>(one.forward(tokens.data(), n_tokens, expected.data())), "status",
              table.name, 0);
  const float* last = expected.data() + (n_tokens - 1) * shape.vocab_size;
  for (int threads = 1; threads <= 4; ++threads) {
    qh::Decoder decoder(table, model.view(), options(threads, 16, kv_type, exact));
    Buffer<float> found(n_tokens * shape.vocab_size);
    decoder.forward(tokens.data(), n_tokens, found.data());
    for (int64_t i = 0; i < found.size(); ++i) {
      report.same_bits(expected[i], found[i], "logits", table.name, i);
    }
    decoder.truncate(11);
    decoder.prefill(tokens.data() + 11, n_tokens - 11);
    decoder.require_logits();
    for (int64_t i = 0; i < shape.vocab_size; ++i) {
      report.same_bits(last[i], decoder.logits()[i], "logits after truncate", table.name, i);
    }
  }
}

void test_prefill_equals_decode(const qh::KernelTable& table, Report& report) {
  // No multiples of tiles and paddings; and one whose steps are large enough to be handed over.
  const qh::ModelShape odd{56, 104, 4, 2, 14, 131, 2};
  const qh::ModelShape large{264, 520, 6, 2, 48, 1003, 1};
  compare_batches_and_threads(table, odd, 60, qh::KvType::f16, report);
  compare_batches_and_threads(table, odd, 60, qh::KvType::f32, report);
  compare_batches_and_threads(table, odd, 60, qh::KvType::int8, report);
  compare_batches_and_threads(table, large, 30, qh::KvType::f16, report);
  // Three segments of the cache.
  compare_batches_and_threads(table, odd, 600, qh::KvType::f16, report);
  compare_batches_and_threads(table, odd, 600, qh::KvType::int8, report);
}

void test_generate_and_cancel(const qh::KernelTable& table, Report& report) {
  const qh::ModelShape shape{128, 256, 4, 2, 32, 1003, 3};
  RandomModel model(shape, {FormatId::ternary, FormatId::int8}, 9);
  const std::vector<int32_t> prompt = model.tokens(40);
  qh::Sampler sampler({shape.vocab_size, 1000, 0.9, 20, 0.9, 0.02, 1.1f, 0.1f, 0.1f, 32, 5});
  qh::Decoder decoder(table, model.view(), options(3, 16, qh::KvType::f16, false));
  decoder.prefill(prompt.data(), 40);
  for (int i = 0; i < 20; ++i) {
    const qh::Decoder::NextToken next = decoder.next_token(sampler);
    report.check(next.status == Status::ok && next.sample.token >= 0 && next.sample.token < 1000,
                 "token", table.name, i, 0, next.sample.token, 0);
  }
  report.same(59, decoder.position(), "position", table.name, 0);

  for (int round = 0; round < 20; ++round) {
    decoder.truncate(0);
    decoder.clear_cancel();
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(50 * round));
      decoder.cancel();
    });
    const Status status = decoder.prefill(prompt.data(), 40);
    canceller.join();
    const int64_t position = decoder.position();
    report.check(status == Status::ok ? position == 40 : position % 16 == 0 && position < 40,
                 "position after cancel", table.name, round, 40, static_cast<double>(position), 0);
  }
}

// From the first prompt on: a decoder and a sampler allocate when they are made and never again.
void test_tokens_allocate_nothing(const qh::KernelTable& table, Report& report) {
#if QH_COUNT_ALLOCATIONS
  const qh::ModelShape shape{264, 520, 6, 2, 48, 1003, 2};
  RandomModel model(shape, {FormatId::ternary, FormatId::int8, FormatId::int4_g32, FormatId::bf16},
                    9);
  const std::vector<int32_t> prompt = model.tokens(40);
  for (const int threads : {1, 3}) {
    // Top-k of the heap, of the selection, and none: each keeps its candidates in another way.
    for (const int64_t top_k : {20, 600, 0}) {
      qh::Sampler sampler({shape.vocab_size, 1000, 0.9, top_k, 0.9, 0.02, 1.1f, 0.1f, 0.1f, 32, 5});
      qh::Decoder decoder(table, model.view(), options(threads, 16, qh::KvType::f16, false));
      const int64_t before = g_allocations.load();
      decoder.prefill(prompt.data(), 40);
      for (int i = 0; i < 12; ++i) decoder.next_token(sampler);
      decoder.truncate(7);
      decoder.prefill(prompt.data() + 7, 33);
      decoder.next_token(sampler);
      report.same(0, g_allocations.load() - before, "allocations", table.name, top_k);
    }
  }
  const int64_t before = g_allocations.load();
  delete new std::string(100, 'x');
  report.check(g_allocations.load() > before, "the count itself", table.name, 0, 1, 0, 0);
#else
  (void)table;
  (void)report;
#endif
}

void test_thread_pool(Report& report) {
  for (int threads = 1; threads <= 5; ++threads) {
    qh::ThreadPool pool(threads);
    report.same(threads, pool.threads(), "threads", "pool", threads);
    Random random(7);
    std::vector<int64_t> done(64);
    for (int step = 0; step < 3000; ++step) {
      const int64_t n_chunks = random.integer(0, 64);
      std::fill(done.begin(), done.end(), 0);
      pool.run(n_chunks, [&](int64_t chunk, int worker) {
        // Not atomic: each chunk belongs to one thread, and the caller reads after the step.
        done[static_cast<size_t>(chunk)] += worker < threads ? chunk + 1 : -1;
      });
      for (int64_t chunk = 0; chunk < 64; ++chunk) {
        report.same(chunk < n_chunks ? chunk + 1 : 0, done[static_cast<size_t>(chunk)], "chunk",
                    "pool", chunk);
      }
      // Now and then long enough for the workers to fall asleep.
      if (step % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  for (int i = 0; i < 100; ++i) {
    qh::ThreadPool pool(4);
    std::atomic<int64_t> sum{0};
    if (i % 2 == 0) pool.run(10, [&](int64_t chunk, int) { sum += chunk; });
    report.same(i % 2 == 0 ? 45 : 0, sum.load(), "sum", "short-lived pool", i);
  }
}

void test_denormals_are_restored(Report& report) {
  volatile float small = 1e-38f;
  volatile float tenth = 0.01f;
  {
    const qh::ScopedFlushDenormals flush;
#if defined(__x86_64__) || defined(__aarch64__)
    report.check(small * tenth == 0.0f, "flushed", "denormals", 0, 0,
                 static_cast<double>(small * tenth), 0);
#endif
  }
  report.check(small * tenth > 0.0f, "restored", "denormals", 1, 1e-40,
               static_cast<double>(small * tenth), 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto isa = qh::isa_from_name(argv[1]);
  const qh::KernelTable* table = isa ? qh::kernel_table(*isa) : nullptr;
  if (table == nullptr) return qh_test::kSkipped;
  Report report;
  if (*isa == qh::Isa::scalar) {  // these two use no table, so one entry runs them
    test_thread_pool(report);
    test_denormals_are_restored(report);
  }
  test_prefill_equals_decode(*table, report);
  test_generate_and_cancel(*table, report);
  test_tokens_allocate_nothing(*table, report);
  return report.finish("test_decoder");
}
