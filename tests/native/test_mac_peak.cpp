// test_mac_peak.cpp: every sequence of multiply-adds that this processor has runs and is counted.
#include <cstring>

#include "bench/mac_peak.h"
#include "check.h"

int main() {
  qh_test::Report report;
  report.same(1, qh::mac_peaks().count >= 0, "mac_peaks", "count", 0);
  for (const qh::MacPeak& peak : qh::mac_peaks()) {
    if (!peak.runs_here()) continue;
    for (const int threads : {1, 2}) {
      const double rate = qh::measure_mac_peak(peak, threads, 0.001);
      report.same(1, rate > 1e6 && rate < 1e15, "rate", peak.name, threads);
    }
    // Names say which one is meant: of those that run here, each comes once.
    for (const qh::MacPeak& other : qh::mac_peaks()) {
      const bool same = other.runs_here() && std::strcmp(other.name, peak.name) == 0;
      report.same(&other == &peak, same, "name", peak.name, 0);
    }
    std::printf("%s runs here\n", peak.name);
  }
  return report.finish("mac_peak");
}
