// trapped_tiles.cpp: the instructions of AMX on a processor that has none: a handler of SIGILL
// reads the instruction that was refused, does its work in plain loops, with the checks that a
// processor makes, and steps over it. So the object file that is shipped runs here as it is.
// Source: Intel, Software Developer's Manual volume 2, sections 2.1 and 2.3 (encoding) and the
// pages of LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TILERELEASE and TDPBSSD.
#include <signal.h>
#include <ucontext.h>

#include <cstdint>

#include "dispatch.h"
#include "tiles/tile_config.h"

namespace qh {
namespace {

struct TileRegisters {
  bool configured;
  TileConfig config;
  uint8_t bytes[kTileRegisters][16][64];

  // Whether the processor would accept `wanted`.
  bool configure(const TileConfig& wanted) noexcept {
    if (wanted.palette != 1 || wanted.start_row != 0) return false;
    for (const uint8_t byte : wanted.reserved) {
      if (byte != 0) return false;
    }
    for (int i = 0; i < 16; ++i) {
      const bool unused = wanted.rows[i] == 0 && wanted.row_bytes[i] == 0;
      const bool fits = wanted.rows[i] > 0 && wanted.rows[i] <= 16 && wanted.row_bytes[i] > 0 &&
                        wanted.row_bytes[i] <= 64;
      if (!unused && (i >= kTileRegisters || !fits)) return false;
    }
    *this = {true, wanted, {}};
    return true;
  }
  bool usable(int tile) const noexcept {
    return configured && tile < kTileRegisters && config.rows[tile] > 0;
  }
  bool zero(int tile) noexcept {
    if (!usable(tile)) return false;
    __builtin_memset(bytes[tile], 0, sizeof bytes[tile]);
    return true;
  }
  bool load(int tile, uint64_t from, uint64_t stride) noexcept {
    if (!zero(tile)) return false;
    for (uint64_t m = 0; m < config.rows[tile]; ++m) {
      __builtin_memcpy(bytes[tile][m], reinterpret_cast<const void*>(from + m * stride),
                       config.row_bytes[tile]);
    }
    return true;
  }
  bool store(int tile, uint64_t to, uint64_t stride) const noexcept {
    if (!usable(tile)) return false;
    for (uint64_t m = 0; m < config.rows[tile]; ++m) {
      __builtin_memcpy(reinterpret_cast<void*>(to + m * stride), bytes[tile][m],
                       config.row_bytes[tile]);
    }
    return true;
  }
  // int32 sums += signed bytes of a times signed bytes of b.
  bool dot(int sums, int a, int b) noexcept {
    if (sums == a || sums == b || a == b) return false;
    if (!usable(sums) || !usable(a) || !usable(b)) return false;
    const int rows = config.rows[sums];
    const int cols = config.row_bytes[sums] / 4;
    const int depth = config.rows[b];
    if (config.rows[a] != rows || config.row_bytes[b] != 4 * cols ||
        config.row_bytes[sums] != 4 * cols || config.row_bytes[a] != 4 * depth) {
      return false;
    }
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < cols; ++n) {
        uint32_t sum;  // wraps around
        __builtin_memcpy(&sum, bytes[sums][m] + 4 * n, 4);
        for (int k = 0; k < 4 * depth; ++k) {
          const int8_t left = static_cast<int8_t>(bytes[a][m][k]);
          const int8_t right = static_cast<int8_t>(bytes[b][k / 4][4 * n + k % 4]);
          sum += static_cast<uint32_t>(left * right);
        }
        __builtin_memcpy(bytes[sums][m] + 4 * n, &sum, 4);
      }
    }
    return true;
  }
};

thread_local TileRegisters registers;

// An instruction with a 3-byte VEX prefix, opcode map 0F38, W and L zero.
struct Instruction {
  uint8_t opcode;
  int prefix;  // 0 none, 1 66, 2 F3, 3 F2
  int mod, reg, rm, vvvv;
  uint64_t base, stride;  // memory: base with displacement, scaled index
  int length;
};

constexpr int kNumbered[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                               REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                               REG_R12, REG_R13, REG_R14, REG_R15};

bool decode(const ucontext_t& context, Instruction& found) noexcept {
  const auto value_of = [&](int number) {
    return static_cast<uint64_t>(context.uc_mcontext.gregs[kNumbered[number]]);
  };
  const uint64_t at = static_cast<uint64_t>(context.uc_mcontext.gregs[REG_RIP]);
  const uint8_t* p = reinterpret_cast<const uint8_t*>(at);
  if (p[0] != 0xc4 || (p[1] & 0x1f) != 2 || (p[2] & 0x84) != 0) return false;
  const int more_reg = (p[1] & 0x80) != 0 ? 0 : 8;  // R, X and B are stored inverted
  const int more_index = (p[1] & 0x40) != 0 ? 0 : 8;
  const int more_base = (p[1] & 0x20) != 0 ? 0 : 8;
  found.prefix = p[2] & 3;
  found.vvvv = (~p[2] >> 3) & 15;
  found.opcode = p[3];
  found.mod = p[4] >> 6;
  found.reg = ((p[4] >> 3) & 7) + more_reg;
  found.rm = (p[4] & 7) + (found.mod == 3 ? more_base : 0);
  found.length = 5;
  found.base = 0;
  found.stride = 0;
  if (found.mod == 3) return true;
  bool long_displacement = found.mod == 2;
  bool from_next = false;
  if (found.rm == 4) {
    const uint8_t sib = p[found.length++];
    const int index = ((sib >> 3) & 7) + more_index;
    if (index != 4) found.stride = value_of(index) << (sib >> 6);
    if ((sib & 7) == 5 && found.mod == 0) {
      long_displacement = true;
    } else {
      found.base = value_of((sib & 7) + more_base);
    }
  } else if (found.rm == 5 && found.mod == 0) {
    long_displacement = true;
    from_next = true;
  } else {
    found.base = value_of(found.rm + more_base);
  }
  if (long_displacement) {
    int32_t displacement;
    __builtin_memcpy(&displacement, p + found.length, 4);
    found.length += 4;
    found.base += static_cast<uint64_t>(static_cast<int64_t>(displacement));
  } else if (found.mod == 1) {
    const int8_t displacement = static_cast<int8_t>(p[found.length++]);
    found.base += static_cast<uint64_t>(static_cast<int64_t>(displacement));
  }
  if (from_next) found.base += at + static_cast<uint64_t>(found.length);
  return true;
}

bool execute(const Instruction& one) noexcept {
  const bool memory = one.mod != 3;
  // 256 times the opcode, 16 times the prefix, whether the operand is in memory.
  switch (one.opcode * 256 + one.prefix * 16 + (memory ? 1 : 0)) {
    case 0x4901: {
      TileConfig config;
      __builtin_memcpy(&config, reinterpret_cast<const void*>(one.base + one.stride),
                       sizeof config);
      return one.reg == 0 && one.vvvv == 0 && registers.configure(config);
    }
    case 0x4900:
      registers = {};
      return one.reg == 0 && one.rm == 0 && one.vvvv == 0;
    case 0x4930:
      return one.rm == 0 && one.vvvv == 0 && registers.zero(one.reg);
    case 0x4b31:
      return one.rm == 4 && one.vvvv == 0 && registers.load(one.reg, one.base, one.stride);
    case 0x4b21:
      return one.rm == 4 && one.vvvv == 0 && registers.store(one.reg, one.base, one.stride);
    case 0x5e30:
      return registers.dot(one.reg, one.rm, one.vvvv);
    default:
      return false;
  }
}

void on_refused(int, siginfo_t*, void* pointer) noexcept {
  ucontext_t& context = *static_cast<ucontext_t*>(pointer);
  Instruction refused;
  if (decode(context, refused) && execute(refused)) {
    context.uc_mcontext.gregs[REG_RIP] += refused.length;
  } else {
    signal(SIGILL, SIG_DFL);  // the instruction is met once more, and ends the process
  }
}

}  // namespace

bool permit_tiles() noexcept {
  struct sigaction action{};
  action.sa_sigaction = &on_refused;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

}  // namespace qh
