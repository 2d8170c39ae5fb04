// format_info.h: names and sizes of formats and instruction sets, for the boundary code.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kernel_table.h"

namespace qh {

// Largest accepted dimension. Bounds every int32 accumulator: a ternary row sums at most
// 192 * 128 * cols / 4 (fields kept in place, see families/ternary.h), so cols < 2^18 is safe.
inline constexpr int64_t kMaxCols = (int64_t{1} << 18) - 128;
inline constexpr int64_t kMaxRows = int64_t{1} << 31;

const char* format_name(FormatId format) noexcept;
std::optional<FormatId> format_from_name(std::string_view name) noexcept;
// Size of the packed buffer; nullopt where rows or cols is not in 1..kMaxRows / 1..kMaxCols.
std::optional<int64_t> format_nbytes(FormatId format, int64_t rows, int64_t cols) noexcept;
// Inputs per activation scale: 0 for formats that take float32 activations only, the whole row
// (returned as -1) for ternary, else kActivationGroup.
int64_t format_activation_group(FormatId format) noexcept;

const char* isa_name(Isa isa) noexcept;
std::optional<Isa> isa_from_name(std::string_view name) noexcept;

}  // namespace qh
