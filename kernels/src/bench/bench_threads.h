// bench_threads.h: starts threads together, each on a CPU of its own, and times until the last one
// is done.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace qh {

// Where each of some threads runs. New threads often begin on one CPU and are moved apart some 10
// to 30 ms later, which a short measurement would take for half the rate of the machine.
class ThreadPlaces {
 public:
  explicit ThreadPlaces(int n) : cpus_(static_cast<size_t>(n)) {
    for (std::atomic<int>& cpu : cpus_) cpu.store(kNowhere, std::memory_order_relaxed);
  }

  // Keeps its thread busy until all threads are on different CPUs, or for a tenth of a second:
  // there may be fewer CPUs, or the system may not tell.
  void settle(int thread) noexcept {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point latest = Clock::now() + std::chrono::milliseconds(100);
    do {
      cpus_[static_cast<size_t>(thread)].store(current_cpu(), std::memory_order_relaxed);
    } while (!apart() && Clock::now() < latest);
  }

 private:
  static constexpr int kNowhere = -1;

  static int current_cpu() noexcept {
#if defined(__linux__)
    return sched_getcpu();
#else
    return kNowhere;
#endif
  }

  bool apart() const noexcept {
    for (size_t i = 0; i < cpus_.size(); ++i) {
      const int cpu = cpus_[i].load(std::memory_order_relaxed);
      if (cpu == kNowhere) return false;
      for (size_t j = 0; j < i; ++j) {
        if (cpu == cpus_[j].load(std::memory_order_relaxed)) return false;
      }
    }
    return true;
  }

  std::vector<std::atomic<int>> cpus_;
};

// Calls work(thread_index, deadline) on n threads at once; returns the seconds from the common
// start to the last end. work returns when it sees that the deadline has passed.
template <typename Work>
double run_together(int n, double seconds, Work work) {
  using Clock = std::chrono::steady_clock;
  ThreadPlaces places(n);
  std::atomic<int> ready = 0;
  std::atomic<bool> go = false;
  Clock::time_point begin;
  std::vector<std::thread> threads;
  for (int i = 0; i < n; ++i) {
    threads.emplace_back([&, i] {
      places.settle(i);
      ready.fetch_add(1);
      // Awake, because a thread that sleeps may wake up on the CPU of another.
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      work(i, begin + std::chrono::duration_cast<Clock::duration>(
                          std::chrono::duration<double>(seconds)));
    });
  }
  while (ready.load() < n) std::this_thread::sleep_for(std::chrono::microseconds(100));
  begin = Clock::now();
  go.store(true, std::memory_order_release);
  for (std::thread& thread : threads) thread.join();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace qh
