// bind_bench.h: binds the measurements of src/bench/.
#pragma once

#include <nanobind/nanobind.h>

namespace qh {

void bind_bench(nanobind::module_& m);

}  // namespace qh
