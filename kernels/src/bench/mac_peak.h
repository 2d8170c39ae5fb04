// mac_peak.h: how many multiply-adds a second the instructions of this processor can do at best,
// the limit of every prefill.
//
// Loops of one instruction sequence on registers, in assembly: what is measured is exactly what is
// written, whatever the compiler, and no file needs instruction-set flags for it.
#pragma once

#include <cstdint>

namespace qh {

struct MacPeak {
  const char* name;  // the sequence: "vpdpbusd_zmm"
  bool (*runs_here)() noexcept;
  void (*run)(int64_t passes) noexcept;
  int64_t macs;  // of one pass
};

// Those of the processor family that this was compiled for: mac_peak_<cpu>.cpp. A name comes twice
// where processors have two encodings of one instruction; of these one runs here at most.
struct MacPeaks {
  const MacPeak* first;
  int count;
  const MacPeak* begin() const noexcept { return first; }
  const MacPeak* end() const noexcept { return first + count; }
};
MacPeaks mac_peaks() noexcept;

// Multiply-adds per second of all threads together; peak.runs_here().
double measure_mac_peak(const MacPeak& peak, int threads, double seconds);

}  // namespace qh
