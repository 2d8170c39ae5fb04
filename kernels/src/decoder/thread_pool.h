// thread_pool.h: persistent workers that share the chunks of one parallel step with the caller.
//
// A step is n chunks of work; caller and workers claim chunks one by one until none is left, so a
// worker that was descheduled (or has not woken up yet) never holds a step back: the others take
// its chunks. Which thread computes a chunk never changes its result.
//
// Workers inherit the CPU affinity of the thread that makes the pool and are never pinned. Between
// steps they spin for some microseconds and then sleep, so an idle pool costs no CPU time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace qh {

// While it lives, this thread treats denormal floats as zero: they are as good as zero in a forward
// pass and many times slower. Restores what was set before.
class ScopedFlushDenormals {
 public:
  ScopedFlushDenormals() noexcept;
  ~ScopedFlushDenormals();
  ScopedFlushDenormals(const ScopedFlushDenormals&) = delete;
  ScopedFlushDenormals& operator=(const ScopedFlushDenormals&) = delete;

 private:
  uint64_t saved_;
};

class ThreadPool {
 public:
  // threads counts the caller: ThreadPool(1) starts none. threads >= 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const noexcept { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(chunk, worker) once for every chunk in [0, n_chunks), worker in [0, threads()), and
  // returns when all are done. One caller at a time; body must not throw and must not call run.
  template <class Body>
  void run(int64_t n_chunks, Body&& body) noexcept {
    using Plain = std::remove_reference_t<Body>;
    if (workers_.empty() || n_chunks <= 1) {
      for (int64_t chunk = 0; chunk < n_chunks; ++chunk) body(chunk, 0);
      return;
    }
    run_step(
        n_chunks,
        [](void* context, int64_t chunk, int worker) {
          (*static_cast<Plain*>(context))(chunk, worker);
        },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

 private:
  using Function = void (*)(void* context, int64_t chunk, int worker);

  void run_step(int64_t n_chunks, Function function, void* context) noexcept;
  void work(int worker) noexcept;
  void run_claimed(int worker) noexcept;
  void join() noexcept;

  // Of the step in progress. Written by the caller while no chunk is claimed, read by whoever holds
  // a claimed chunk: the claim (acquire) orders the two.
  Function function_ = nullptr;
  void* context_ = nullptr;
  uint32_t n_chunks_ = 0;

  // High half: number of the step; low half: chunks nobody has claimed yet.
  alignas(64) std::atomic<uint64_t> claims_{0};
  // Chunks of this step that are finished; the caller waits for it to reach n_chunks_.
  alignas(64) std::atomic<uint32_t> done_{0};
  // Changes with every step and at the end; idle workers wait on it.
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::atomic<bool> stop_{false};
  int spins_;
  std::vector<std::thread> workers_;
};

}  // namespace qh
