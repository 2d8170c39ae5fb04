#include "format_info.h"

#include "codebook_layout.h"
#include "formats.h"

namespace qh {
namespace {

constexpr const char* kIsaNames[] = {"scalar",     "avx2", "avx512vnni",
                                     "avx512vbmi", "neon", "neon_dotprod"};

}  // namespace

const char* format_name(FormatId format) noexcept { return spec_of(format).name; }

std::optional<FormatId> format_from_name(std::string_view name) noexcept {
  for (const FormatSpec& spec : kFormats) {
    if (name == spec.name) return spec.id;
  }
  return std::nullopt;
}

std::optional<int64_t> format_nbytes(FormatId format, int64_t rows, int64_t cols) noexcept {
  if (rows < 1 || rows > kMaxRows || cols < 1 || cols > kMaxCols) return std::nullopt;
  // With both bounds the product stays below 2^31 * 2^18 * 4 = 2^51: no overflow.
  const FormatSpec& spec = spec_of(format);
  if (spec.family == Family::dense) return rows * cols * spec.element_bytes;
  if (spec.family == Family::codebook) return codebook_nbytes(spec, rows, cols);
  return round_up(rows, kTileRows) / kTileRows * tile_bytes(spec, cols);
}

int64_t format_activation_group(FormatId format) noexcept {
  switch (spec_of(format).family) {
    case Family::dense:
      return 0;
    case Family::ternary:
      return -1;
    case Family::int8:
    case Family::lut4:
    case Family::codebook:
      break;
  }
  return kActivationGroup;
}

const char* isa_name(Isa isa) noexcept { return kIsaNames[static_cast<int32_t>(isa)]; }

std::optional<Isa> isa_from_name(std::string_view name) noexcept {
  for (int32_t i = 0; i < static_cast<int32_t>(sizeof kIsaNames / sizeof kIsaNames[0]); ++i) {
    if (name == kIsaNames[i]) return static_cast<Isa>(i);
  }
  return std::nullopt;
}

}  // namespace qh
