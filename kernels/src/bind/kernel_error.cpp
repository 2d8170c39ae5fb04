#include "bind/kernel_error.h"

#include <nanobind/stl/string.h>

namespace nb = nanobind;

namespace qh {

void raise_kernel_error(const std::string& message, const std::string& hint,
                        const nb::dict& facts) {
  const nb::object type = nb::module_::import_("qh_kernels.errors").attr("KernelError");
  nb::dict keywords;
  keywords["hint"] = hint;
  for (const auto& [key, value] : facts) keywords[key] = value;
  const nb::object error = type(message, **keywords);
  PyErr_SetObject(type.ptr(), error.ptr());
  throw nb::python_error();
}

void raise_mismatch(const std::string& object, const std::string& expected,
                    const std::string& found, const std::string& hint) {
  nb::dict facts;
  facts["object"] = object;
  facts["expected"] = expected;
  facts["found"] = found;
  raise_kernel_error(object + ": expected " + expected + ", found " + found, hint, facts);
}

}  // namespace qh
