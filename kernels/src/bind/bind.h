// bind.h: the parts of the extension module; this folder alone sees nanobind.
#pragma once

#include <nanobind/nanobind.h>

namespace qh {

void bind_kernels(nanobind::module_& module);
void bind_decoder(nanobind::module_& module);
void bind_sampler(nanobind::module_& module);
void bind_mapped_files(nanobind::module_& module);

}  // namespace qh
