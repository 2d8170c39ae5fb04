// neon_base.h: what the Arm vocabularies share: everything but products of bytes. Each name
// means what avx512vnni.h says. A vector of 16 is four registers of four rows.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "core/compiler.h"

namespace qh {
namespace {

struct NeonBase {
  using F32 = float32x4x4_t;
  using I32 = int32x4x4_t;
  using Block = uint8x16x4_t;
  using Quad = int8x16_t;

  static constexpr int kExactTokens = 2;
  static constexpr int kDenseRows = 4;
  static constexpr int kDenseBlock = 2;

  static QH_ALWAYS_INLINE Block load_block(const uint8_t* p) noexcept {
    return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
  }
  static QH_ALWAYS_INLINE Block and_mask(Block a, uint8_t mask) noexcept {
    const uint8x16_t m = vdupq_n_u8(mask);
    return each<Block>([&](int i) { return vandq_u8(a.val[i], m); });
  }
  static constexpr bool kTables128 = false;
  static QH_ALWAYS_INLINE Block set_bytes(int a) noexcept {
    return each<Block>([&](int) { return vdupq_n_u8(static_cast<uint8_t>(a)); });
  }
  static QH_ALWAYS_INLINE Block sub_bytes(Block a, Block b) noexcept {
    return each<Block>([&](int i) { return vsubq_u8(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE Block min_bytes(Block a, Block b) noexcept {
    return each<Block>([&](int i) { return vminq_u8(a.val[i], b.val[i]); });
  }
  template <int kBits>
  static QH_ALWAYS_INLINE Block shift_right(Block a) noexcept {
    return each<Block>([&](int i) {
      return vreinterpretq_u8_u16(vshrq_n_u16(vreinterpretq_u16_u8(a.val[i]), kBits));
    });
  }
  static QH_ALWAYS_INLINE Block lookup(Block nibbles, const int8_t* table) noexcept {
    const uint8x16_t entries = vreinterpretq_u8_s8(vld1q_s8(table));
    return each<Block>([&](int i) { return vqtbl1q_u8(entries, nibbles.val[i]); });
  }
  template <int kByte>
  static QH_ALWAYS_INLINE F32 lookup_f32(Block nibbles, const float* table) noexcept {
    const uint8x16x4_t entries = vld1q_u8_x4(reinterpret_cast<const uint8_t*>(table));
    const I32 index = byte_of<kByte>(nibbles);
    return each<F32>([&](int i) {
      // Row r wants the table's bytes 4 * index .. 4 * index + 3.
      const int32x4_t bytes = vmlaq_n_s32(vdupq_n_s32(0x03020100), index.val[i], 0x04040404);
      return vreinterpretq_f32_u8(vqtbl4q_u8(entries, vreinterpretq_u8_s32(bytes)));
    });
  }
  static QH_ALWAYS_INLINE Quad load_quad(const int8_t* p) noexcept {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
  template <int kByte>
  static QH_ALWAYS_INLINE I32 byte_of(Block codes) noexcept {
    return each<I32>([&](int i) {
      const int32x4_t lanes = vreinterpretq_s32_u8(codes.val[i]);
      return vshrq_n_s32(vshlq_n_s32(lanes, 24 - 8 * kByte), 24);
    });
  }

  static QH_ALWAYS_INLINE I32 zero_i32() noexcept { return set_i32(0); }
  static QH_ALWAYS_INLINE I32 set_i32(int32_t a) noexcept {
    return each<I32>([&](int) { return vdupq_n_s32(a); });
  }
  static QH_ALWAYS_INLINE I32 add(I32 a, I32 b) noexcept {
    return each<I32>([&](int i) { return vaddq_s32(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE I32 sub(I32 a, I32 b) noexcept {
    return each<I32>([&](int i) { return vsubq_s32(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE I32 mul(I32 a, I32 b) noexcept {
    return each<I32>([&](int i) { return vmulq_s32(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE I32 max(I32 a, I32 b) noexcept {
    return each<I32>([&](int i) { return vmaxq_s32(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE I32 min(I32 a, I32 b) noexcept {
    return each<I32>([&](int i) { return vminq_s32(a.val[i], b.val[i]); });
  }
  template <int kBits>
  static QH_ALWAYS_INLINE I32 shift_right_signed(I32 a) noexcept {
    return each<I32>([&](int i) { return vshrq_n_s32(a.val[i], kBits); });
  }
  static QH_ALWAYS_INLINE int32_t reduce_add(I32 a) noexcept {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.val[0], a.val[1]), vaddq_s32(a.val[2], a.val[3])));
  }
  static QH_ALWAYS_INLINE int32_t reduce_max(I32 a) noexcept {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.val[0], a.val[1]), vmaxq_s32(a.val[2], a.val[3])));
  }
  static QH_ALWAYS_INLINE void store_codes(int8_t* p, I32 a) noexcept {
    const int16x8_t low = vcombine_s16(vmovn_s32(a.val[0]), vmovn_s32(a.val[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(a.val[2]), vmovn_s32(a.val[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  }

  static QH_ALWAYS_INLINE F32 zero() noexcept { return set(0.0f); }
  static QH_ALWAYS_INLINE F32 set(float a) noexcept {
    return each<F32>([&](int) { return vdupq_n_f32(a); });
  }
  static QH_ALWAYS_INLINE F32 load(const float* p) noexcept {
    return each<F32>([&](int i) { return vld1q_f32(p + 4 * i); });
  }
  static QH_ALWAYS_INLINE F32 load_partial(const float* p, int n) noexcept {
    float lanes[16] = {};
    __builtin_memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
    return load(lanes);
  }
  static QH_ALWAYS_INLINE void store(float* p, F32 a) noexcept {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.val[i]);
  }
  static QH_ALWAYS_INLINE void store_partial(float* p, F32 a, int n) noexcept {
    float lanes[16];
    store(lanes, a);
    __builtin_memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
  }
  static QH_ALWAYS_INLINE F32 load_half(const uint16_t* p) noexcept {
    return each<F32>(
        [&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static QH_ALWAYS_INLINE F32 load_half_partial(const uint16_t* p, int n) noexcept {
    uint16_t lanes[16] = {};
    __builtin_memcpy(lanes, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return load_half(lanes);
  }
  static QH_ALWAYS_INLINE F32 load_e8m0(const uint8_t* p) noexcept {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t words[2] = {vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)};
    return each<F32>([&](int i) {
      const uint16x8_t eight = words[i / 2];
      const uint32x4_t four = i % 2 == 0 ? vmovl_u16(vget_low_u16(eight)) : vmovl_high_u16(eight);
      return vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(four, 23), vdupq_n_u32(0x00400000)));
    });
  }
  static QH_ALWAYS_INLINE F32 load_e4m3(const uint8_t* p) noexcept {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t halves[2] = {vshll_n_u8(vget_low_u8(bytes), 7), vshll_high_n_u8(bytes, 7)};
    return each<F32>([&](int i) {
      const uint16x8_t eight = halves[i / 2];
      const uint16x4_t four = i % 2 == 0 ? vget_low_u16(eight) : vget_high_u16(eight);
      return vcvt_f32_f16(vreinterpret_f16_u16(four));
    });
  }
  static QH_ALWAYS_INLINE void store_half(uint16_t* p, F32 a) noexcept {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.val[i])));
  }
  static QH_ALWAYS_INLINE void store_half_partial(uint16_t* p, F32 a, int n) noexcept {
    uint16_t lanes[16];
    store_half(lanes, a);
    __builtin_memcpy(p, lanes, static_cast<size_t>(n) * sizeof(uint16_t));
  }
  static QH_ALWAYS_INLINE F32 load_bf16(const uint16_t* p) noexcept {
    return each<F32>(
        [&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static QH_ALWAYS_INLINE F32 load_bf16_partial(const uint16_t* p, int n) noexcept {
    uint16_t lanes[16] = {};
    __builtin_memcpy(lanes, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return load_bf16(lanes);
  }

  static QH_ALWAYS_INLINE F32 add(F32 a, F32 b) noexcept {
    return each<F32>([&](int i) { return vaddq_f32(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE F32 sub(F32 a, F32 b) noexcept {
    return each<F32>([&](int i) { return vsubq_f32(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE F32 mul(F32 a, F32 b) noexcept {
    return each<F32>([&](int i) { return vmulq_f32(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE F32 div(F32 a, F32 b) noexcept {
    return each<F32>([&](int i) { return vdivq_f32(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE F32 fma(F32 a, F32 b, F32 c) noexcept {
    return each<F32>([&](int i) { return vfmaq_f32(c.val[i], a.val[i], b.val[i]); });
  }
  // A NaN in either argument is kept.
  static QH_ALWAYS_INLINE F32 max(F32 a, F32 b) noexcept {
    return each<F32>([&](int i) { return vmaxq_f32(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE F32 min(F32 a, F32 b) noexcept {
    return each<F32>([&](int i) { return vminq_f32(a.val[i], b.val[i]); });
  }
  static QH_ALWAYS_INLINE float reduce_add(F32 a) noexcept { return vaddvq_f32(fold(a)); }
  static QH_ALWAYS_INLINE void reduce_add_each(const F32 (&a)[4], float* out) noexcept {
    const float32x4_t low = vpaddq_f32(fold(a[0]), fold(a[1]));
    const float32x4_t high = vpaddq_f32(fold(a[2]), fold(a[3]));
    vst1q_f32(out, vpaddq_f32(low, high));
  }
  static QH_ALWAYS_INLINE float reduce_max(F32 a) noexcept {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.val[0], a.val[1]), vmaxq_f32(a.val[2], a.val[3])));
  }
  static QH_ALWAYS_INLINE F32 to_f32(I32 a) noexcept {
    return each<F32>([&](int i) { return vcvtq_f32_s32(a.val[i]); });
  }
  static QH_ALWAYS_INLINE I32 round_i32(F32 a) noexcept {
    return each<I32>([&](int i) { return vcvtnq_s32_f32(a.val[i]); });
  }
  static QH_ALWAYS_INLINE I32 magnitude_bits(F32 a) noexcept {
    return each<I32>([&](int i) { return vreinterpretq_s32_f32(vabsq_f32(a.val[i])); });
  }
  static QH_ALWAYS_INLINE F32 power_of_two(I32 n) noexcept {
    return each<F32>([&](int i) {
      return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.val[i], vdupq_n_s32(127)), 23));
    });
  }

 protected:
  // 16 lanes to 4.
  static QH_ALWAYS_INLINE float32x4_t fold(F32 a) noexcept {
    return vaddq_f32(vaddq_f32(a.val[0], a.val[1]), vaddq_f32(a.val[2], a.val[3]));
  }
  // {{f(0), f(1), f(2), f(3)}}
  template <typename Vector, typename Function>
  static QH_ALWAYS_INLINE Vector each(Function f) noexcept {
    return {{f(0), f(1), f(2), f(3)}};
  }
};

}  // namespace
}  // namespace qh
