// mac_peak_portable.cpp: no known sequence for this processor.
#include "bench/mac_peak.h"

namespace qh {

MacPeaks mac_peaks() noexcept { return {nullptr, 0}; }

}  // namespace qh
