#include "decoder/thread_pool.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace qh {
namespace {

void relax() noexcept {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__x86_64__) || defined(_M_X64)
// MXCSR bits 15 (flush results to zero) and 6 (read denormals as zero); Intel SDM 10.2.3.
constexpr uint64_t kFlushBits = (1u << 15) | (1u << 6);
uint64_t read_control() noexcept { return _mm_getcsr(); }
void write_control(uint64_t value) noexcept { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
// FPCR.FZ; Arm ARM C5.2.8.
constexpr uint64_t kFlushBits = uint64_t{1} << 24;
uint64_t read_control() noexcept {
  uint64_t value;
  asm volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
void write_control(uint64_t value) noexcept { asm volatile("msr fpcr, %0" ::"r"(value)); }
#else
constexpr uint64_t kFlushBits = 0;
uint64_t read_control() noexcept { return 0; }
void write_control(uint64_t) noexcept {}
#endif

// About 20 to 50 microseconds of pauses on the x86 cores measured: longer than the serial pieces
// between two steps of a token, far shorter than a person's pause between two prompts.
constexpr int kSpins = 1000;

}  // namespace

ScopedFlushDenormals::ScopedFlushDenormals() noexcept : saved_(read_control()) {
  write_control(saved_ | kFlushBits);
}

ScopedFlushDenormals::~ScopedFlushDenormals() { write_control(saved_); }

ThreadPool::ThreadPool(int threads) {
  // With more threads than CPUs, spinning takes time from the thread that is waited for.
  const auto cpus = static_cast<int>(std::thread::hardware_concurrency());
  spins_ = (cpus != 0 && threads > cpus) ? 0 : kSpins;
  workers_.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int worker = 1; worker < threads; ++worker) {
      workers_.emplace_back([this, worker] { work(worker); });
    }
  } catch (...) {
    // The system refused a thread: end those that run, or their destructors would end the process.
    join();
    throw;
  }
}

ThreadPool::~ThreadPool() { join(); }

void ThreadPool::join() noexcept {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  epoch_.notify_all();
  for (std::thread& thread : workers_) thread.join();
}

void ThreadPool::run_claimed(int worker) noexcept {
  uint64_t seen = claims_.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(seen) != 0) {
    // The number of the step is part of what is compared, so a claim never lands in a later step.
    if (!claims_.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
      continue;
    }
    // Until this chunk counts as done the caller cannot begin another step: the task is stable.
    const uint32_t n_chunks = n_chunks_;
    function_(context_, n_chunks - static_cast<uint32_t>(seen), worker);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_chunks && worker != 0) {
      done_.notify_one();
    }
    seen = claims_.load(std::memory_order_acquire);
  }
}

void ThreadPool::run_step(int64_t n_chunks, Function function, void* context) noexcept {
  function_ = function;
  context_ = context;
  n_chunks_ = static_cast<uint32_t>(n_chunks);
  done_.store(0, std::memory_order_relaxed);
  const uint64_t step = (claims_.load(std::memory_order_relaxed) >> 32) + 1;
  claims_.store((step << 32) | n_chunks_, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  epoch_.notify_all();

  run_claimed(0);

  for (int spin = 0; spin < spins_; ++spin) {
    if (done_.load(std::memory_order_acquire) == n_chunks_) return;
    relax();
  }
  for (uint32_t done = done_.load(std::memory_order_acquire); done != n_chunks_;
       done = done_.load(std::memory_order_acquire)) {
    done_.wait(done, std::memory_order_acquire);
  }
}

void ThreadPool::work(int worker) noexcept {
  const ScopedFlushDenormals flush;
  for (;;) {
    // Read before looking for work: a step that begins in between changes it and ends the wait.
    const uint32_t seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    run_claimed(worker);
    bool changed = false;
    for (int spin = 0; spin < spins_ && !changed; ++spin) {
      relax();
      changed = epoch_.load(std::memory_order_acquire) != seen;
    }
    if (!changed) epoch_.wait(seen, std::memory_order_acquire);
  }
}

}  // namespace qh
