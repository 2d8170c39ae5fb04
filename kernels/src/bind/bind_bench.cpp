#include "bind/bind_bench.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "bench/attention_bench.h"
#include "bench/linear_bench.h"
#include "bench/mac_peak.h"
#include "bench/read_bandwidth.h"
#include "bind/bind_kernels.h"
#include "bind/kernel_error.h"
#include "core/prefetch.h"

namespace nb = nanobind;

namespace qh {
namespace {

void require_positive(const char* name, double value, double high) {
  if (value > 0 && value <= high) return;
  raise_mismatch(name, "a positive number up to " + std::to_string(high), std::to_string(value),
                 "pass a value in range");
}

// Running out of memory in a measurement is the caller's choice of size, not a bug.
template <typename Function>
auto measured(int64_t bytes, Function function) {
  bool out_of_memory = false;
  std::invoke_result_t<Function> result{};
  {
    const nb::gil_scoped_release unlocked;
    try {
      result = function();
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  }
  if (out_of_memory) {
    raise_mismatch("working set", "memory for " + std::to_string(bytes) + " bytes",
                   "less than that", "measure with a smaller working set");
  }
  return result;
}

}  // namespace

void bind_bench(nb::module_& m) {
  // The memory is made in Python's sight: what does not fit is an error with its size.
  nb::class_<ReadBench>(m, "ReadBench")
      .def("__init__",
           [](ReadBench* self, int64_t bytes) {
             require_positive("bytes", static_cast<double>(bytes), 0x1p40);
             measured(bytes, [=] {
               new (self) ReadBench(bytes);
               return true;
             });
           })
      .def("measure", [](const ReadBench& self, int64_t bytes, int threads, double seconds) {
        require_positive("threads", threads, 1024);
        require_positive("bytes", static_cast<double>(bytes), static_cast<double>(self.bytes()));
        require_positive("bytes for a thread", static_cast<double>(bytes / threads / 64), 0x1p40);
        require_positive("seconds", seconds, 600);
        const nb::gil_scoped_release unlocked;
        return self.measure(bytes, threads, seconds);
      });
  m.def("mac_peak_names", [] {
    std::vector<std::string> names;
    for (const MacPeak& peak : mac_peaks()) {
      if (peak.runs_here()) names.emplace_back(peak.name);
    }
    return names;
  });
  m.def("measure_mac_peak", [](const std::string& name, int threads, double seconds) {
    require_positive("threads", threads, 1024);
    require_positive("seconds", seconds, 600);
    std::string known;
    for (const MacPeak& peak : mac_peaks()) {
      if (!peak.runs_here()) continue;
      if (name == peak.name) {
        const nb::gil_scoped_release unlocked;
        return measure_mac_peak(peak, threads, seconds);
      }
      known += (known.empty() ? "" : ", ") + std::string(peak.name);
    }
    raise_mismatch("instruction sequence", "one of " + known, name, "choose one of these");
  });
  m.def("prefetch_distance", [] { return static_cast<int64_t>(prefetch_distance); });
  m.def("set_prefetch_distance", [](int64_t bytes) {
    if (bytes < 0 || bytes > (int64_t{1} << 20)) {
      raise_mismatch("prefetch distance", "0 to 1048576", std::to_string(bytes),
                     "pass a value in range");
    }
    prefetch_distance = static_cast<uintptr_t>(bytes);
  });
  m.def("bench_linear",
        [](const std::string& isa, const std::string& format, int64_t rows, int64_t cols,
           int64_t n_tokens, int threads, double seconds, int64_t working_set_bytes) {
          const KernelTable& table = require_table(isa);
          const FormatId id = require_format(format);
          const int64_t nbytes = require_nbytes(id, rows, cols);
          require_positive("n_tokens", static_cast<double>(n_tokens), 65536);
          require_positive("threads", threads, 1024);
          require_positive("seconds", seconds, 600);
          require_positive("working_set_bytes", static_cast<double>(working_set_bytes), 0x1p40);
          const LinearBench bench{
              &table, id, rows, cols, nbytes, n_tokens, threads, seconds, working_set_bytes};
          const LinearBenchResult result = measured(working_set_bytes, [&] { return run(bench); });
          return std::pair<int64_t, double>(result.calls, result.seconds);
        });
  m.def("bench_attention", [](const std::string& isa, const std::string& kv_type, int64_t n_heads,
                              int64_t n_kv_heads, int64_t head_dim, int64_t positions, int threads,
                              double seconds, int64_t working_set_bytes) {
    const KernelTable& table = require_table(isa);
    const KvType type = require_kv_type(kv_type);
    require_positive("n_kv_heads", static_cast<double>(n_kv_heads), 1024);
    require_positive("n_heads", static_cast<double>(n_heads), 65536);
    if (n_heads % n_kv_heads != 0) {
      raise_mismatch("n_heads", "a multiple of " + std::to_string(n_kv_heads),
                     std::to_string(n_heads), "key heads are shared equally");
    }
    require_positive("head_dim", static_cast<double>(head_dim), 65536);
    if (head_dim % 2 != 0) {
      raise_mismatch("head_dim", "an even number", std::to_string(head_dim), "round it up");
    }
    require_positive("positions", static_cast<double>(positions), 0x1p24);
    require_positive("threads", threads, 1024);
    require_positive("seconds", seconds, 600);
    require_positive("working_set_bytes", static_cast<double>(working_set_bytes), 0x1p40);
    const AttentionBench bench{&table,    type,    n_heads, n_kv_heads,       head_dim,
                               positions, threads, seconds, working_set_bytes};
    const AttentionBenchResult result = measured(working_set_bytes, [&] { return run(bench); });
    return std::tuple<int64_t, double, int64_t>(result.calls, result.seconds,
                                                result.bytes_per_call);
  });
}

}  // namespace qh
