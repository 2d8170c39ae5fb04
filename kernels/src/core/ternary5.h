// ternary5.h: the five ternary digits of one byte; runtime/qh_runtime/formats/ternary5.py draws it.
#pragma once

#include <cstdint>

namespace qh {
namespace {

// What the last digit is multiplied by: 81 would be enough, an even number can be looked up by
// half.
constexpr int kTopDigit = 82;

// Digit i (0..3) of what is left without the last one. Values that never occur have digits too:
// each takes as much as it can, from the last to the first.
constexpr int32_t ternary5_low_digit(int32_t rest, int i) noexcept {
  const int32_t third = rest / 27 < 2 ? rest / 27 : 2;
  if (i == 3) return third;
  rest -= 27 * third;
  const int32_t second = rest / 9 < 2 ? rest / 9 : 2;
  if (i == 2) return second;
  rest -= 9 * second;
  if (rest > 8) rest = 8;
  return i == 1 ? rest / 3 : rest % 3;
}

// Digit i (0..4) of a byte: 0, 1 or 2.
constexpr int32_t ternary5_digit(uint8_t byte, int i) noexcept {
  const int32_t top = byte / kTopDigit < 2 ? byte / kTopDigit : 2;
  return i == 4 ? top : ternary5_low_digit(byte - kTopDigit * top, i);
}

}  // namespace
}  // namespace qh
