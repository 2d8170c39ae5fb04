// bind_kernels.h: binds single kernels; and the checks of names and sizes that all bindings share.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>

#include "bind/bind.h"
#include "kernel_table.h"

namespace qh {

// Each raises KernelError naming what is accepted.
const KernelTable& require_table(const std::string& isa);
FormatId require_format(const std::string& name);
KvType require_kv_type(const std::string& name);
int64_t require_nbytes(FormatId format, int64_t rows, int64_t cols);

}  // namespace qh
