// bind_mapped_files.cpp: the watch over mapped weight files; qh_kernels/mapped_files.py is its
// owner.

#include <cstdint>

#include "bind/bind.h"
#include "core/mapped_files.h"

namespace nb = nanobind;

namespace qh {

void bind_mapped_files(nb::module_& module) {
  module.def("watch_mapping", [](uint64_t begin, uint64_t nbytes) {
    return watch_mapping(static_cast<uintptr_t>(begin), nbytes);
  });
  module.def("unwatch_mapping", &unwatch_mapping);
  module.def("mapping_is_lost", &mapping_is_lost);
  module.def("lost_mappings", &lost_mappings);
}

}  // namespace qh
