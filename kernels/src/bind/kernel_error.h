// kernel_error.h: raising qh_kernels.errors.KernelError, with its facts, from boundary code.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

namespace qh {

// Raises KernelError(message, hint=hint, **facts). Needs the GIL.
[[noreturn]] void raise_kernel_error(const std::string& message, const std::string& hint,
                                     const nanobind::dict& facts);
// The usual form: "<object>: expected <expected>, found <found>" with the three as facts.
[[noreturn]] void raise_mismatch(const std::string& object, const std::string& expected,
                                 const std::string& found, const std::string& hint);

}  // namespace qh
