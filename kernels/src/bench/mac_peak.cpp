#include "bench/mac_peak.h"

#include <atomic>

#include "bench/bench_threads.h"

namespace qh {

double measure_mac_peak(const MacPeak& peak, int threads, double seconds) {
  // Some 10 to 100 microseconds between two looks at the clock.
  constexpr int64_t kPasses = 16384;
  std::atomic<int64_t> passes = 0;
  const double elapsed = run_together(threads, seconds, [&](int, auto deadline) {
    int64_t done = 0;
    do {
      peak.run(kPasses);
      done += kPasses;
    } while (std::chrono::steady_clock::now() < deadline);
    passes += done;
  });
  return static_cast<double>(passes.load()) * static_cast<double>(peak.macs) / elapsed;
}

}  // namespace qh
