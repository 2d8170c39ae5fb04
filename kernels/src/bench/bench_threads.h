// bench_threads.h: starts threads together and times until the last one is done.
#pragma once

#include <barrier>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace qh {

// Calls work(thread_index, deadline) on n threads at once; returns the seconds from the common
// start to the last end. work returns when it sees that the deadline has passed.
template <typename Work>
double run_together(int n, double seconds, Work work) {
  using Clock = std::chrono::steady_clock;
  std::barrier start(n + 1);
  Clock::time_point begin;
  std::vector<std::thread> threads;
  for (int i = 0; i < n; ++i) {
    threads.emplace_back([&, i] {
      start.arrive_and_wait();  // everybody is ready
      start.arrive_and_wait();  // the start time is set
      work(i, begin + std::chrono::duration_cast<Clock::duration>(
                          std::chrono::duration<double>(seconds)));
    });
  }
  start.arrive_and_wait();
  begin = Clock::now();
  start.arrive_and_wait();
  for (std::thread& thread : threads) thread.join();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace qh
