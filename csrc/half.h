/* 16-bit floats to and from fp32, one element at a time, rounded to nearest even. */
#ifndef BNB_HALF_H
#define BNB_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float bf16_to_f32(uint16_t half) { return bits_float((uint32_t)half << 16); }

/* A NaN stays one: rounding its payload up could carry it into an infinity, so the quiet bit is set instead. */
static inline uint16_t f32_to_bf16(float value) {
    uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* By hand where the processor has no instruction: a compiler would call functions of its own runtime library, which the
 * build then has to bring along. */
#if defined(__F16C__) || defined(__aarch64__)

static inline float f16_to_f32(uint16_t half) {
    _Float16 value;
    memcpy(&value, &half, sizeof value);
    return (float)value;
}

static inline uint16_t f32_to_f16(float value) {
    _Float16 half = (_Float16)value;
    uint16_t bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}

#else

/* A subnormal is a normal number less 2^-14, whose last places are the subnormal's own. A NaN becomes quiet. */
static inline float f16_to_f32(uint16_t half) {
    uint32_t magnitude = half & 0x7fffu, sign = (uint32_t)(half & 0x8000u) << 16,
             bits = (magnitude << 13) + (112u << 23);
    if (magnitude > 0x7c00)
        bits |= 0x7fc00000;
    else if (magnitude == 0x7c00)
        bits = 0x7f800000;
    else if (magnitude < 0x400)
        bits = float_bits(bits_float(bits + (1u << 23)) - 0x1p-14f);
    return bits_float(bits | sign);
}

/* Rounds by adding: what is small to a number whose last place is 2^-24, what is normal by half of the last place. */
static inline uint16_t f32_to_f16(float value) {
    uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000, half;
    if (magnitude > 0x7f800000)
        half = 0x7e00 | (magnitude >> 13 & 0x3ff);
    else if (magnitude >= 0x477ff000)
        half = 0x7c00; /* 65520 and more: nearer to 2^16 than to the largest */
    else if (magnitude < 0x38800000)
        half = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
    else
        half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    return (uint16_t)(sign | half);
}

#endif

#endif
