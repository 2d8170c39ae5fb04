// prefetch.h: how far ahead of their use the kernels ask for weights that they read front to back.
#pragma once

#include <cstdint>

#include "core/compiler.h"

namespace qh {

// Of products with one token, in bytes, chosen for this processor when the library is loaded; 0
// leaves it to the hardware. Only a measurement (src/bind/bind_bench.cpp) changes it.
extern uintptr_t prefetch_distance;

namespace {

// Of products with several tokens, which have time: on any processor measured.
constexpr uintptr_t kBatchPrefetchDistance = 8192;

// Asks for what follows p. Past the end of the weights this is a harmless hint; integer arithmetic
// keeps it defined.
template <int kTokens>
QH_ALWAYS_INLINE void prefetch(const uint8_t* p) noexcept {
  const uintptr_t distance = kTokens == 1 ? prefetch_distance : kBatchPrefetchDistance;
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + distance), 0,
                     2);
}

}  // namespace
}  // namespace qh
