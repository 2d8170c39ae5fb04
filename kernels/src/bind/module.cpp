// module.cpp: qh_kernels._native. Private: the typed wrappers in qh_kernels/ check all arguments.

#include "bind/bind.h"

NB_MODULE(_native, module) {
  module.doc() = "Kernels, decoder and sampler; use the wrappers in qh_kernels.";
  qh::bind_kernels(module);
  qh::bind_sampler(module);
  qh::bind_decoder(module);
  qh::bind_mapped_files(module);
}
