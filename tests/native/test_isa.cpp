// test_isa.cpp: every kernel of one instruction set against the plain loops.
// Usage: test_isa <isa>; exit code 77 where it does not run here.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "check.h"
#include "codebook_layout.h"
#include "core/kv_layout.h"
#include "format_info.h"
#include "formats.h"
#include "kernel_table.h"

namespace {

using qh::FormatId;
using qh::FormatSpec;
using qh::KernelTable;
using qh_test::Buffer;
using qh_test::Random;
using qh_test::Report;

constexpr double kEpsilon = 0x1p-24;  // half a unit in the last place of 1
constexpr int64_t kRowCounts[] = {1, 15, 16, 17, 33, 48};
constexpr int64_t kColCounts[] = {1, 2, 16, 31, 32, 33, 100, 128, 129, 300, 515, 1000};
constexpr int64_t kTokenCounts[] = {1, 2, 3, 4, 8, 9, 13};

struct Case {
  const FormatSpec* spec;
  int64_t rows, cols, tokens;
  std::string name;
};

Case make_case(const FormatSpec& spec, int64_t rows, int64_t cols, int64_t tokens) {
  return {&spec, rows, cols, tokens,
          std::string(spec.name) + " " + std::to_string(rows) + "x" + std::to_string(cols) + " T" +
              std::to_string(tokens)};
}

// call(place in the tile) for every scale of a weight group.
template <typename Call>
void for_group_scales(const qh::FormatSpec& spec, int64_t padded, Call call) {
  if (spec.family != qh::Family::lut4) return;
  for (int64_t group = 0; group < padded / spec.group; ++group) {
    for (int64_t r = 0; r < qh::kTileRows; ++r) {
      call(qh::group_scales_at(spec, group) + r * qh::scale_width(spec));
    }
  }
}

// Any bytes are valid codes; scales become moderate numbers so that sums stay finite.
Buffer<uint8_t> random_weights(const Case& c, Random& random) {
  Buffer<uint8_t> data(*qh::format_nbytes(c.spec->id, c.rows, c.cols));
  for (int64_t i = 0; i < data.size(); ++i) {
    data[i] = static_cast<uint8_t>(random.integer(0, 255));
  }
  const auto put_float = [&](int64_t at) {
    const float value = random.normal(0.1f);
    std::memcpy(data.data() + at, &value, 4);
  };
  const auto put_half = [&](int64_t at) {  // finite, either sign, subnormals too
    uint16_t half = static_cast<uint16_t>(random.integer(0, 0xffff));
    if ((half & 0x7c00) == 0x7c00) half ^= 0x4000;
    std::memcpy(data.data() + at, &half, 2);
  };
  if (c.spec->family == qh::Family::dense) {
    const int64_t step = c.spec->element_bytes;
    for (int64_t i = 0; i < data.size(); i += step) {
      if (step == 4) put_float(i);
      if (c.spec->id == FormatId::f16) put_half(i);
      if (c.spec->id == FormatId::bf16) {
        data[i + 1] = static_cast<uint8_t>((data[i + 1] & 0x80) | 0x3e);
      }
    }
    return data;
  }
  if (c.spec->family == qh::Family::codebook) {
    for (int64_t row = 0; row < qh::padded_rows(*c.spec, c.rows); ++row) {
      put_float(qh::row_factors_at(*c.spec) + 4 * row);
    }
    return data;
  }
  // Finite, of every size, subnormals and zeros too; a byte 253 may make weights of 2^128.
  const auto put_scale = [&](int64_t at) {
    const bool e8m0 = c.spec->scale == qh::ScaleType::e8m0;
    data[at] = static_cast<uint8_t>(e8m0 ? random.integer(0, 160) : random.integer(0, 0x7e));
  };
  const int64_t tile = qh::tile_bytes(*c.spec, c.cols);
  const int64_t padded = qh::round_up(c.cols, c.spec->column_unit);
  const int64_t rows = qh::row_scales_at(*c.spec, padded);
  for (int64_t t = 0; t < data.size(); t += tile) {
    for_group_scales(*c.spec, padded, [&](int64_t at) {
      if (c.spec->scale == qh::ScaleType::f16) {
        put_half(t + at);
      } else {
        put_scale(t + at);
      }
    });
    for (int64_t i = 0; i < qh::row_scale_bytes(*c.spec); i += 4) put_float(t + rows + i);
  }
  return data;
}

struct Activations {
  Buffer<int8_t> codes;
  Buffer<float> scales;
  Buffer<int32_t> sums;
  int64_t padded, groups, sum_groups;

  // extreme: codes at the ends of their range only.
  Activations(const Case& c, Random& random, bool extreme)
      : codes(c.tokens * qh::round_up(c.cols, qh::kActivationPad)),
        scales(c.tokens * group_count(c)),
        sums(c.tokens * sum_count(c)),
        padded(qh::round_up(c.cols, qh::kActivationPad)),
        groups(group_count(c)),
        sum_groups(sum_count(c)) {
    const int64_t low = c.spec->family == qh::Family::ternary ? -128 : -127;
    for (int64_t t = 0; t < c.tokens; ++t) {
      const int64_t end = extreme ? random.integer(0, 1) : 0;
      for (int64_t k = 0; k < c.cols; ++k) {
        const int64_t code = extreme ? (end == 0 ? low : 127) : random.integer(low, 127);
        codes[t * padded + k] = static_cast<int8_t>(code);
      }
      for (int64_t g = 0; g < groups; ++g) {
        scales[t * groups + g] = random.normal(0.01f);
      }
      for (int64_t k = 0; k < padded; ++k) {
        const int32_t code = codes[t * padded + k];
        if (sum_groups == 1) {
          sums[t] += code;
          continue;
        }
        int32_t* of_group = &sums[t * sum_groups + k / qh::kActivationGroup * 2];
        of_group[0] += code;
        if (k % qh::kActivationGroup < qh::kActivationGroup / 2) of_group[1] += code;
      }
    }
  }

  qh::QuantizedActivations view(int64_t token, int64_t n) const {
    return {codes.data() + token * padded,
            scales.data() + token * groups,
            sums.data() + token * sum_groups,
            padded,
            groups,
            sum_groups,
            n};
  }

 private:
  static int64_t group_count(const Case& c) {
    return c.spec->family == qh::Family::ternary
               ? 1
               : qh::round_up(c.cols, qh::kActivationPad) / qh::kActivationGroup;
  }
  static int64_t sum_count(const Case& c) {
    return c.spec->family == qh::Family::ternary ? 1 : 2 * group_count(c);
  }
};

// One call, then token by token, then split by rows: all must give the same bits.
template <typename Call>
void check_splits(const Case& c, Report& report, const Buffer<float>& whole, Call call) {
  Buffer<float> single(c.tokens * c.rows);
  for (int64_t t = 0; t < c.tokens; ++t) {
    call(t, 1, single.data() + t * c.rows, 0, c.rows);
  }
  Buffer<float> split(c.tokens * c.rows);
  const int64_t unit = std::max(qh::row_unit(*c.spec), qh::kTileRows);
  for (int64_t begin = 0; begin < c.rows; begin += unit) {
    const int64_t end = std::min(begin + unit, c.rows);
    call(0, c.tokens, split.data(), begin, end);
  }
  for (int64_t i = 0; i < whole.size(); ++i) {
    report.same_bits(whole[i], single[i], "token by token", c.name.c_str(), i);
    report.same_bits(whole[i], split[i], "rows split", c.name.c_str(), i);
  }
}

// What a file may hold where scales are: every row of a matrix has one in a few tens of groups.
void put_hostile_scales(const Case& c, Random& random, Buffer<uint8_t>& data) {
  constexpr uint16_t kHalves[] = {0x7c00, 0xfc00, 0x7e01, 0x7c01, 0x8000, 0x0001, 0x83ff};
  constexpr float kFloats[] = {INFINITY, -INFINITY, NAN, -0.0f, 1e-45f, -1e-40f, 3e38f};
  if (c.spec->family == qh::Family::codebook) {
    for (int64_t row = 0; row < c.rows; row += 3) {
      std::memcpy(data.data() + qh::row_factors_at(*c.spec) + 4 * row,
                  &kFloats[random.integer(0, 6)], 4);
    }
    return;
  }
  const int64_t padded = qh::round_up(c.cols, c.spec->column_unit);
  const int64_t tile = qh::tile_bytes(*c.spec, c.cols);
  const int64_t width = qh::scale_width(*c.spec);
  for (int64_t t = 0; t < data.size(); t += tile) {
    for_group_scales(*c.spec, padded, [&](int64_t at) {
      if (random.integer(0, 40) != 0) return;
      const uint16_t half = kHalves[random.integer(0, 6)];
      const uint8_t byte = static_cast<uint8_t>(random.integer(0x70, 0xff));
      std::memcpy(data.data() + t + at, width == 2 ? static_cast<const void*>(&half) : &byte,
                  static_cast<size_t>(width));
    });
    const int64_t rows = t + qh::row_scales_at(*c.spec, padded);
    for (int64_t i = 0; i < qh::row_scale_bytes(*c.spec); i += 4) {
      if (random.integer(0, 3) == 0) {
        std::memcpy(data.data() + rows + i, &kFloats[random.integer(0, 6)], 4);
      }
    }
  }
}

enum class Kind { usual, extreme, hostile };

void test_quantized(const KernelTable& plain, const KernelTable& table, const Case& c,
                    uint32_t seed, Kind kind, Report& report) {
  Random random(seed);
  Buffer<uint8_t> data = random_weights(c, random);
  const bool extreme = kind == Kind::extreme;
  if (kind == Kind::hostile) put_hostile_scales(c, random, data);
  if (extreme && c.spec->family == qh::Family::codebook) {
    // One vector of the largest entries, whose sums wrap around 16 bits the same way everywhere.
    std::memset(data.data(), 0x7f, static_cast<size_t>(qh::row_factors_at(*c.spec)));
  } else if (extreme) {
    // The two largest integers of the table of a lut4 format, at least.
    const bool e2m1 = c.spec->scale == qh::ScaleType::e8m0 || c.spec->scale == qh::ScaleType::e4m3;
    const bool low = random.integer(0, 1) == 0;
    const uint8_t byte = e2m1 ? (low ? 0x77 : 0xff) : (low ? 0x80 : 0xff);
    const int64_t padded = qh::round_up(c.cols, c.spec->column_unit);
    const int64_t tile = qh::tile_bytes(*c.spec, c.cols);
    for (int64_t t = 0; t < data.size(); t += tile) {
      for (int64_t b = 0; b < padded / c.spec->block_columns; ++b) {
        std::memset(data.data() + t + qh::block_at(*c.spec, b), byte, 64);
      }
    }
  }
  const Activations x(c, random, extreme);
  const qh::MatrixView w{data.data(), c.rows, c.cols, c.spec->id};
  const int32_t format = static_cast<int32_t>(c.spec->id);
  Buffer<float> expected(c.tokens * c.rows);
  Buffer<float> found(c.tokens * c.rows);
  plain.formats[format].linear_quantized(w, x.view(0, c.tokens), expected.data(), c.rows, 0,
                                         c.rows);
  table.formats[format].linear_quantized(w, x.view(0, c.tokens), found.data(), c.rows, 0, c.rows);
  for (int64_t i = 0; i < expected.size(); ++i) {
    report.same_bits(expected[i], found[i], "linear_quantized", c.name.c_str(), i);
  }
  check_splits(c, report, found, [&](int64_t t, int64_t n, float* y, int64_t begin, int64_t end) {
    table.formats[format].linear_quantized(w, x.view(t, n), y, c.rows, begin, end);
  });
}

// Tokens enough for weights of 8 bits; a split by tokens would change the arithmetic.
void test_many(const KernelTable& plain, const KernelTable& table, const Case& c, uint32_t seed,
               Report& report) {
  Random random(seed);
  const Buffer<uint8_t> data = random_weights(c, random);
  const Activations x(c, random, false);
  const qh::MatrixView w{data.data(), c.rows, c.cols, c.spec->id};
  const int32_t format = static_cast<int32_t>(c.spec->id);
  Buffer<float> expected(c.tokens * c.rows);
  Buffer<float> found(c.tokens * c.rows);
  plain.formats[format].linear_quantized(w, x.view(0, c.tokens), expected.data(), c.rows, 0,
                                         c.rows);
  table.formats[format].linear_quantized(w, x.view(0, c.tokens), found.data(), c.rows, 0, c.rows);
  for (int64_t i = 0; i < expected.size(); ++i) {
    report.same_bits(expected[i], found[i], "many tokens", c.name.c_str(), i);
  }
}

// A product by column blocks and ranges of rows.
void test_parts(const KernelTable& plain, const KernelTable& table, const Case& c, uint32_t seed,
                Report& report) {
  const qh::FormatKernels& kernels = table.formats[static_cast<int32_t>(c.spec->id)];
  if (kernels.linear_part == nullptr) return;
  Random random(seed);
  const Buffer<uint8_t> data = random_weights(c, random);
  const Activations x(c, random, false);
  const qh::MatrixView w{data.data(), c.rows, c.cols, c.spec->id};
  Buffer<float> expected(c.rows);
  plain.formats[static_cast<int32_t>(c.spec->id)].linear_quantized(w, x.view(0, 1), expected.data(),
                                                                   c.rows, 0, c.rows);
  const int64_t unit = qh::row_unit(*c.spec);
  const int64_t stride = qh::round_up(c.rows, unit);
  const int64_t blocks = (c.cols + 1023) / 1024;
  Buffer<float> parts(blocks * stride);
  for (int64_t block = 0; block < blocks; ++block) {
    float* part = parts.data() + block * stride;
    kernels.linear_part(w, x.view(0, 1), block, part, unit, c.rows);
    kernels.linear_part(w, x.view(0, 1), block, part, 0, unit);
  }
  Buffer<float> found(c.rows);
  kernels.sum_parts(w, parts.data(), stride, found.data(), 0, unit);
  kernels.sum_parts(w, parts.data(), stride, found.data(), unit, c.rows);
  for (int64_t i = 0; i < c.rows; ++i) {
    report.same_bits(expected[i], found[i], "parts", c.name.c_str(), i);
  }
}

// Rows of a matrix with hostile scales, unpacked.
void test_hostile_rows(const KernelTable& plain, const KernelTable& table, const Case& c,
                       uint32_t seed, Report& report) {
  Random random(seed);
  Buffer<uint8_t> data = random_weights(c, random);
  put_hostile_scales(c, random, data);
  const qh::MatrixView w{data.data(), c.rows, c.cols, c.spec->id};
  const int32_t format = static_cast<int32_t>(c.spec->id);
  Buffer<float> expected(c.cols);
  Buffer<float> found(c.cols);
  for (int64_t r = 0; r < c.rows; ++r) {
    plain.formats[format].unpack_row(w, r, expected.data());
    table.formats[format].unpack_row(w, r, found.data());
    for (int64_t k = 0; k < c.cols; ++k) {
      report.same_bits(expected[k], found[k], "unpack_row, hostile", c.name.c_str(), r);
    }
  }
}

void test_exact(const KernelTable& plain, const KernelTable& table, const Case& c, uint32_t seed,
                Report& report) {
  Random random(seed);
  const Buffer<uint8_t> data = random_weights(c, random);
  const bool dense = c.spec->family == qh::Family::dense;
  const int64_t stride = dense ? c.cols : qh::round_up(c.cols, qh::kActivationPad);
  Buffer<float> x(c.tokens * stride);
  for (int64_t t = 0; t < c.tokens; ++t) {
    for (int64_t k = 0; k < c.cols; ++k) x[t * stride + k] = random.normal(1.0f);
  }
  const qh::MatrixView w{data.data(), c.rows, c.cols, c.spec->id};
  const int32_t format = static_cast<int32_t>(c.spec->id);
  Buffer<float> found(c.tokens * c.rows);
  table.formats[format].linear_f32(w, x.data(), stride, c.tokens, found.data(), c.rows, 0, c.rows);

  Buffer<float> row(c.cols);
  Buffer<float> row_found(c.cols);
  for (int64_t r = 0; r < c.rows; ++r) {
    plain.formats[format].unpack_row(w, r, row.data());
    table.formats[format].unpack_row(w, r, row_found.data());
    for (int64_t k = 0; k < c.cols; ++k) {
      report.same_bits(row[k], row_found[k], "unpack_row", c.name.c_str(), r * c.cols + k);
    }
    for (int64_t t = 0; t < c.tokens; ++t) {
      double sum = 0;
      double magnitude = 0;
      for (int64_t k = 0; k < c.cols; ++k) {
        const double product = static_cast<double>(row[k]) * static_cast<double>(x[t * stride + k]);
        sum += product;
        magnitude += std::fabs(product);
      }
      // Each of up to cols additions, and a few scalings, rounds once.
      const double bound = static_cast<double>(c.cols + 8) * kEpsilon * magnitude + 1e-37;
      report.close(sum, static_cast<double>(found[t * c.rows + r]), bound, "linear_f32",
                   c.name.c_str(), t * c.rows + r);
    }
  }
  check_splits(c, report, found, [&](int64_t t, int64_t n, float* y, int64_t begin, int64_t end) {
    table.formats[format].linear_f32(w, x.data() + t * stride, stride, n, y, c.rows, begin, end);
  });
}

void test_linears(const KernelTable& plain, const KernelTable& table, Report& report) {
  uint32_t seed = 1;
  for (const FormatSpec& spec : qh::kFormats) {
    const bool packed = spec.family != qh::Family::dense;
    for (const int64_t rows : kRowCounts) {
      for (const int64_t cols : kColCounts) {
        const int64_t tokens = kTokenCounts[seed % 7];
        const Case c = make_case(spec, rows, cols, tokens);
        if (packed) test_quantized(plain, table, c, seed, Kind::usual, report);
        test_exact(plain, table, c, seed, report);
        ++seed;
      }
    }
    if (qh::has_tables(spec)) {
      // Several passes of rows and column blocks; and as many tokens as change the arithmetic.
      test_parts(plain, table, make_case(spec, 700, 2100, 1), ++seed, report);
      test_quantized(plain, table, make_case(spec, 300, 1100, 2), ++seed, Kind::usual, report);
      for (const int64_t tokens : {16, 19}) {
        test_many(plain, table, make_case(spec, 80, 1100, tokens), ++seed, report);
      }
    }
    // Largest sums that can occur, at a width where an overflow would show.
    if (!packed) continue;
    test_quantized(plain, table, make_case(spec, 16, 65536, 9), ++seed, Kind::extreme, report);
    if (!qh::has_tables(spec)) {
      test_quantized(plain, table, make_case(spec, 17, 32768, 17), ++seed, Kind::extreme, report);
    }
    for (const int64_t cols : kColCounts) {
      const Case c = make_case(spec, 33, cols, kTokenCounts[++seed % 7]);
      test_quantized(plain, table, c, seed, Kind::hostile, report);
      test_hostile_rows(plain, table, c, seed, report);
    }
  }
}

// Every number of tokens up to 40, and some that no batch of a kernel divides; enough rows and
// columns for whole and partial tiles.
void test_batches(const KernelTable& plain, const KernelTable& table, Report& report) {
  uint32_t seed = 1000;
  for (const FormatSpec& spec : qh::kFormats) {
    if (spec.family == qh::Family::dense || spec.family == qh::Family::codebook) continue;
    for (int64_t tokens = 1; tokens <= 40; ++tokens) {
      const int64_t rows = kRowCounts[++seed % 6];
      const int64_t cols = kColCounts[seed % 11 + 1];
      const Kind kind = seed % 5 == 0 ? Kind::hostile : Kind::usual;
      test_quantized(plain, table, make_case(spec, rows, cols, tokens), seed, kind, report);
    }
    for (const int64_t tokens : {128, 144, 150, 260}) {
      test_quantized(plain, table, make_case(spec, 33, 1160, tokens), ++seed, Kind::usual, report);
    }
  }
}

// Rows of numbers that hide trouble: zeros, subnormals, ties, huge values, infinities, NaN.
std::vector<std::vector<float>> hostile_rows() {
  std::vector<std::vector<float>> rows;
  Random random(7);
  for (const int64_t n : {1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 127, 128, 129, 500}) {
    for (int kind = 0; kind < 8; ++kind) {
      std::vector<float> row(static_cast<size_t>(n));
      for (float& value : row) {
        value = random.normal(1.0f);
        if (kind == 1) value = 0.0f;
        if (kind == 2) value *= 1e-44f;
        if (kind == 3) value = static_cast<float>(random.integer(-254, 254)) * 0.5f;
        if (kind == 4) value *= 1e38f;
        if (kind == 7) value *= 1e-6f;
      }
      float& last = row[static_cast<size_t>(random.integer(0, n - 1))];
      if (kind == 3) last = 127.0f;
      if (kind == 5) last = -INFINITY;
      if (kind == 6) last = NAN;
      rows.push_back(row);
    }
  }
  return rows;
}

void test_quantizers(const KernelTable& plain, const KernelTable& table, Report& report) {
  for (const std::vector<float>& row : hostile_rows()) {
    const int64_t n = static_cast<int64_t>(row.size());
    const int64_t padded = qh::round_up(n, qh::kActivationPad);
    Buffer<float> x(n);
    std::memcpy(x.data(), row.data(), row.size() * sizeof(float));
    for (const bool grouped : {false, true}) {
      const char* what = grouped ? "quantize_groups" : "quantize_token";
      const int64_t groups = grouped ? padded / qh::kActivationGroup : 1;
      const int64_t n_sums = grouped ? 2 * groups : 1;
      Buffer<int8_t> codes[2] = {Buffer<int8_t>(padded), Buffer<int8_t>(padded)};
      Buffer<float> scales[2] = {Buffer<float>(groups), Buffer<float>(groups)};
      Buffer<int32_t> sums[2] = {Buffer<int32_t>(n_sums), Buffer<int32_t>(n_sums)};
      for (int i = 0; i < 2; ++i) {
        const KernelTable& one = i == 0 ? plain : table;
        (grouped ? one.quantize_groups : one.quantize_token)(x.data(), n, padded, codes[i].data(),
                                                             scales[i].data(), sums[i].data());
      }
      for (int64_t k = 0; k < padded; ++k) report.same(codes[0][k], codes[1][k], what, "codes", k);
      for (int64_t g = 0; g < groups; ++g) {
        report.same_bits(scales[0][g], scales[1][g], what, "scales", g);
      }
      for (int64_t g = 0; g < n_sums; ++g) report.same(sums[0][g], sums[1][g], what, "sums", g);
    }
  }
}

const char* kv_name(qh::KvType type) {
  return type == qh::KvType::f32 ? "f32" : (type == qh::KvType::f16 ? "f16" : "int8");
}

// The rows of a block of positions as keys and as values, in every type.
void test_store_kv(const KernelTable& plain, const KernelTable& table, Report& report) {
  for (const std::vector<float>& row : hostile_rows()) {
    const int64_t n = static_cast<int64_t>(row.size()) / 2 * 2;
    if (n == 0) continue;
    Buffer<float> x(n);
    std::memcpy(x.data(), row.data(), static_cast<size_t>(n) * sizeof(float));
    for (const qh::KvType type : {qh::KvType::f16, qh::KvType::f32, qh::KvType::int8}) {
      const int64_t bytes = qh::kv_block_bytes(type, n);
      Buffer<uint8_t> blocks[2] = {Buffer<uint8_t>(bytes), Buffer<uint8_t>(bytes)};
      for (int i = 0; i < 2; ++i) {
        std::memset(blocks[i].data(), 0, static_cast<size_t>(bytes));
        const KernelTable& one = i == 0 ? plain : table;
        for (const int64_t position : {0, 5, 63}) {
          one.store_kv({type, n, blocks[i].data()}, position, x.data(), x.data());
        }
      }
      for (int64_t i = 0; i < bytes; ++i) {
        report.same(blocks[0][i], blocks[1][i], "store_kv", kv_name(type), i);
      }
    }
  }
}

void test_elementwise(const KernelTable& plain, const KernelTable& table, Report& report) {
  Random random(11);
  for (const int64_t n : {1, 7, 16, 17, 31, 32, 33, 64, 100, 1000}) {
    Buffer<float> x(n);
    Buffer<float> y(n);
    for (int64_t i = 0; i < n; ++i) {
      x[i] = random.normal(i % 3 == 0 ? 40.0f : 2.0f);
      y[i] = random.normal(1.0f);
    }
    Buffer<float> expected(n);
    Buffer<float> found(n);
    plain.rms_norm(x.data(), y.data(), 1e-5f, n, expected.data());
    table.rms_norm(x.data(), y.data(), 1e-5f, n, found.data());
    for (int64_t i = 0; i < n; ++i) {
      const double bound = (static_cast<double>(n) / 32 + 16) * kEpsilon *
                           std::fabs(static_cast<double>(expected[i]));
      report.close(static_cast<double>(expected[i]), static_cast<double>(found[i]), bound,
                   "rms_norm", "row", i);
    }
    for (const qh::Activation act : {qh::Activation::silu, qh::Activation::relu2}) {
      plain.gated(act, x.data(), y.data(), n, expected.data());
      table.gated(act, x.data(), y.data(), n, found.data());
      for (int64_t i = 0; i < n; ++i) {
        const double bound = 8 * kEpsilon * std::fabs(static_cast<double>(expected[i])) + 1e-37;
        report.close(static_cast<double>(expected[i]), static_cast<double>(found[i]), bound,
                     "gated", act == qh::Activation::silu ? "silu" : "relu2", i);
      }
    }
    Buffer<float> sum(n);
    std::memcpy(sum.data(), x.data(), static_cast<size_t>(n) * sizeof(float));
    table.add(sum.data(), y.data(), n);
    for (int64_t i = 0; i < n; ++i) report.same_bits(x[i] + y[i], sum[i], "add", "row", i);
  }
  // Ends of the range of silu, where e^x overflows or vanishes.
  constexpr float kEnds[] = {0.0f,  -0.0f,  88.0f,    -88.0f,    89.0f, -89.0f, 104.0f, -104.0f,
                             1e30f, -1e30f, INFINITY, -INFINITY, NAN,   1e-30f, -1e-40f};
  for (const float end : kEnds) {
    const float one = 1.0f;
    float expected = 0;
    float found = 0;
    plain.gated(qh::Activation::silu, &end, &one, 1, &expected);
    table.gated(qh::Activation::silu, &end, &one, 1, &found);
    // Below -80 the result is under 1e-33; subnormal steps count there.
    const double bound = 8 * kEpsilon * std::fabs(static_cast<double>(expected)) + 1e-37;
    report.close(static_cast<double>(expected), static_cast<double>(found), bound, "silu", "end",
                 static_cast<int64_t>(&end - kEnds));
  }
}

void test_rope(const KernelTable& plain, const KernelTable& table, Report& report) {
  Random random(13);
  for (const int64_t head_dim : {2, 6, 16, 30, 32, 34, 64, 80, 128}) {
    Buffer<float> expected(3 * head_dim);
    Buffer<float> cos(head_dim / 2);
    Buffer<float> sin(head_dim / 2);
    for (int64_t i = 0; i < expected.size(); ++i) expected[i] = random.normal(2.0f);
    for (int64_t i = 0; i < cos.size(); ++i) {
      const float angle = random.normal(3.0f);
      cos[i] = std::cos(angle);
      sin[i] = std::sin(angle);
    }
    Buffer<float> found(3 * head_dim);
    std::memcpy(found.data(), expected.data(), static_cast<size_t>(found.size()) * sizeof(float));
    plain.rope(expected.data(), 3, head_dim, cos.data(), sin.data());
    table.rope(found.data(), 3, head_dim, cos.data(), sin.data());
    for (int64_t i = 0; i < found.size(); ++i) {
      report.same_bits(expected[i], found[i], "rope", "head", i);
    }
  }
}

void test_attention(const KernelTable& plain, const KernelTable& table, Report& report) {
  struct Shape {
    int64_t heads, dim, first, last;
  };
  constexpr Shape kShapes[] = {{1, 2, 0, 0},   {2, 16, 0, 4},    {3, 30, 3, 16},  {1, 64, 0, 32},
                               {3, 80, 7, 99}, {4, 128, 62, 62}, {2, 66, 1, 255}, {5, 10, 63, 130},
                               {7, 24, 0, 96}, {8, 130, 64, 127}};
  Random random(17);
  for (const Shape& s : kShapes) {
    for (const qh::KvType type : {qh::KvType::f32, qh::KvType::f16, qh::KvType::int8}) {
      const int64_t blocks = s.last / qh::kKvBlock + 1;
      Buffer<uint8_t> data(blocks * qh::kv_block_bytes(type, s.dim));
      std::memset(data.data(), 0xff, static_cast<size_t>(data.size()));
      const qh::KvHead cache{type, s.dim, data.data()};
      Buffer<float> key(s.dim);
      Buffer<float> value(s.dim);
      double largest = 0;
      for (int64_t position = s.first; position <= s.last; ++position) {
        for (int64_t i = 0; i < s.dim; ++i) {
          key[i] = random.normal(1.0f);
          value[i] = random.normal(1.0f);
          largest = std::fmax(largest, std::fabs(static_cast<double>(key[i])));
          largest = std::fmax(largest, std::fabs(static_cast<double>(value[i])));
        }
        plain.store_kv(cache, position, key.data(), value.data());
      }
      Buffer<float> q(s.heads * s.dim);
      for (int64_t i = 0; i < q.size(); ++i) q[i] = random.normal(1.0f);
      Buffer<int8_t> codes(qh::attention_codes(s.dim));
      qh::AttentionArgs args{};
      args.cache = cache;
      args.q = q.data();
      args.n_heads = s.heads;
      args.first = s.first;
      args.last = s.last;
      args.scale = 1.0f / std::sqrt(static_cast<float>(s.dim));
      args.codes = codes.data();
      const auto whole = [&](const KernelTable& one, Buffer<float>& out) {
        Buffer<float> state(2 * s.heads);
        args.part = {out.data(), state.data()};
        one.attention(args);
        one.attention_finish(args.part, s.heads, s.dim);
      };
      Buffer<float> expected(q.size());
      Buffer<float> found(q.size());
      whole(plain, expected);
      whole(table, found);
      // Scores are off by at most (dim + 2) eps |q||k| scale, of int8 also by half a step of the
      // query; a relative change of each weight by that, of the sum by twice that, the rounding of
      // the final sum, and of int8 half a step of the weights of a block.
      const double norm = largest * 4 * std::sqrt(static_cast<double>(s.dim));
      const double step = type == qh::KvType::int8 ? 1.0 / 253 : 0.0;
      const double score_error = static_cast<double>(s.dim + 2) * kEpsilon * norm + step * norm;
      const double bound = (std::exp(2 * score_error) - 1 +
                            static_cast<double>(s.last + 17) * kEpsilon + step * 64) *
                           largest;
      for (int64_t i = 0; i < q.size(); ++i) {
        report.close(static_cast<double>(expected[i]), static_cast<double>(found[i]), bound,
                     "attention", kv_name(type), i);
      }
    }
  }
}

// Parts that are merged one by one are the whole.
void test_attention_merge(const KernelTable& plain, const KernelTable& table, Report& report) {
  Random random(19);
  for (const int64_t dim : {2, 18, 128}) {
    constexpr int64_t kHeads = 3;
    Buffer<float> out[2] = {Buffer<float>(kHeads * dim), Buffer<float>(kHeads * dim)};
    Buffer<float> state[2] = {Buffer<float>(2 * kHeads), Buffer<float>(2 * kHeads)};
    Buffer<float> later(kHeads * dim);
    Buffer<float> later_state(2 * kHeads);
    for (int64_t i = 0; i < kHeads * dim; ++i) {
      out[0][i] = out[1][i] = random.normal(1.0f);
      later[i] = random.normal(1.0f);
    }
    for (int64_t head = 0; head < kHeads; ++head) {
      // The one is larger, the other is larger, both are the same.
      state[0][2 * head] = state[1][2 * head] = static_cast<float>(head);
      later_state[2 * head] = head == 2 ? 2.0f : 1.0f - static_cast<float>(head) * 3.0f;
      state[0][2 * head + 1] = state[1][2 * head + 1] = 2.0f;
      later_state[2 * head + 1] = 3.0f;
    }
    for (int i = 0; i < 2; ++i) {
      const KernelTable& one = i == 0 ? plain : table;
      const qh::AttentionPart part{out[i].data(), state[i].data()};
      one.attention_merge(part, {later.data(), later_state.data()}, kHeads, dim);
      one.attention_finish(part, kHeads, dim);
    }
    for (int64_t i = 0; i < kHeads * dim; ++i) {
      report.close(static_cast<double>(out[0][i]), static_cast<double>(out[1][i]),
                   64 * kEpsilon * 4, "attention_merge", "head", i);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: test_isa <isa>\n");
    return 2;
  }
  const auto isa = qh::isa_from_name(argv[1]);
  if (!isa) {
    std::fprintf(stderr, "unknown instruction set %s\n", argv[1]);
    return 2;
  }
  const KernelTable* table = qh::kernel_table(*isa);
  if (table == nullptr) {
    std::printf("%s does not run here\n", argv[1]);
    return qh_test::kSkipped;
  }
  Report report;
  // The table that runs is the one that was asked for.
  report.same(static_cast<int64_t>(*isa), static_cast<int64_t>(table->isa), "active isa", argv[1],
              0);
  report.same(0, std::strcmp(table->name, argv[1]), "table name", argv[1], 0);
  const KernelTable& plain = *qh::kernel_table(qh::Isa::scalar);
  test_linears(plain, *table, report);
  test_batches(plain, *table, report);
  test_quantizers(plain, *table, report);
  test_elementwise(plain, *table, report);
  test_rope(plain, *table, report);
  test_store_kv(plain, *table, report);
  test_attention(plain, *table, report);
  test_attention_merge(plain, *table, report);
  return report.finish(argv[1]);
}
