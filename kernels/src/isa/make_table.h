// make_table.h: one kernel table from one vector vocabulary.
#pragma once

#include "families/codebook_sums.h"
#include "families/codebook_tables.h"
#include "families/dense.h"
#include "families/int8.h"
#include "families/lut4.h"
#include "families/ternary.h"
#include "families/ternary5.h"
#include "kernel_table.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/quantize.h"
#include "ops/store_kv.h"

namespace qh {
namespace {

template <typename V, FormatId kFormat>
constexpr FormatKernels format_kernels() noexcept {
  constexpr Family kFamily = spec_of(kFormat).family;
  if constexpr (kFamily == Family::dense) {
    return Dense<V, kFormat>::kernels();
  } else if constexpr (kFamily == Family::int8) {
    return Packed<V, Int8<V, kFormat>>::kernels();
  } else if constexpr (kFamily == Family::ternary) {
    if constexpr (is_dense_ternary(spec_of(kFormat))) {
      return Packed<V, Ternary5<V, kFormat>>::kernels();
    } else {
      return Packed<V, Ternary<V, kFormat>>::kernels();
    }
  } else if constexpr (has_tables(spec_of(kFormat))) {
    return CodebookTables<V, kFormat>::kernels();
  } else if constexpr (kFamily == Family::codebook) {
    return CodebookSums<V, kFormat>::kernels();
  } else {
    return Packed<V, Lut4<V, kFormat>>::kernels();
  }
}

// Fills formats[0..kCount) from kFormats, so that a new format line needs no change here.
template <typename V, int kCount>
constexpr void fill_formats(FormatKernels* formats) noexcept {
  if constexpr (kCount > 0) {
    fill_formats<V, kCount - 1>(formats);
    formats[kCount - 1] = format_kernels<V, kFormats[kCount - 1].id>();
  }
}

template <typename V>
constexpr KernelTable make_table(Isa isa, const char* name) noexcept {
  KernelTable table{};
  table.isa = isa;
  table.name = name;
  fill_formats<V, kFormatCount>(table.formats);
  table.rms_norm = &rms_norm<V>;
  table.add = &add_rows<V>;
  table.gated = &gated<V>;
  table.rope = &rope<V>;
  table.quantize_token = &quantize_token<V>;
  table.quantize_groups = &quantize_groups<V>;
  table.store_kv = &store_kv<V>;
  table.attention = &attention<V>;
  table.attention_merge = &attention_merge<V>;
  table.attention_finish = &attention_finish<V>;
  return table;
}

}  // namespace
}  // namespace qh
