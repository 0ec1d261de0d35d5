/* GGML's types of 1.5 to 3.5 bits: blocks of 256 elements whose groups of 8 or 4 are points of a grid, with signs
 * beside
 * them and a small scale for each 16 or 32 elements. */
#include "gguf_blocks.h"
#include "gguf_grids.h"

enum { BLOCK = 256 };

static const float VALUES_2[4] = {8, 25, 43, 0};
static const float VALUES_3[8] = {4, 12, 20, 28, 36, 44, 52, 62};
static const float VALUES_3S[8] = {1, 3, 5, 7, 9, 11, 13, 15};

static uint32_t load_u16(const uint8_t *from) {
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static uint32_t load_u32(const uint8_t *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static uint32_t nibble_at(const uint8_t *packed, uint32_t i) { return packed[i / 2] >> 4 * (i % 2) & 15u; }

/* Seven signs are stored; the eighth makes their number even. */
static uint32_t eighth_sign(uint32_t seven) {
    uint32_t parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    return seven | ((parity ^ parity >> 1) & 1u) << 7;
}

static float signed_as(float value, uint32_t signs, uint32_t i) { return value * (signs >> i & 1u ? -1.0f : 1.0f); }

/* Eight elements, 2 bits each. */
static void put_8(float scale, uint32_t point, uint32_t signs, float *to) {
    for (uint32_t i = 0; i < 8; i++) to[i] = signed_as(scale * VALUES_2[point >> 2 * i & 3u], signs, i);
}

/* Four elements, 3 bits each; `first` is the first's sign. */
static void put_4(float scale, uint32_t point, const float *values, uint32_t signs, uint32_t first, float *to) {
    for (uint32_t i = 0; i < 4; i++) to[i] = signed_as(scale * values[point >> 4 * i & 7u], signs, first + i);
}

/* Scale; for each 32 elements four indices, and a number of four times seven signs and a 4-bit scale. */
void expand_iq2_xxs(const uint8_t *from, float *to) {
    float d = load_f16(from);
    for (uint32_t group = 0; group < BLOCK / 32; group++) {
        const uint8_t *points = from + 2 + 8 * group;
        uint32_t       packed = load_u32(points + 4);
        float          scale = d * (0.5f + (float)(packed >> 28)) * 0.25f;
        for (uint32_t i = 0; i < 4; i++)
            put_8(scale, GRID_IQ2_XXS[points[i]], eighth_sign(packed >> 7 * i & 127u), to + 32 * group + 8 * i);
    }
}

/* Scale; for each 8 elements an index of 9 bits and seven signs; then a 4-bit scale for each 16. */
void expand_iq2_xs(const uint8_t *from, float *to) {
    float          d = load_f16(from);
    const uint8_t *points = from + 2, *scales = points + BLOCK / 4;
    for (uint32_t i = 0; i < BLOCK / 8; i++) {
        uint32_t packed = load_u16(points + 2 * i);
        float    scale = d * (0.5f + (float)nibble_at(scales, i / 2)) * 0.25f;
        put_8(scale, GRID_IQ2_XS[packed & 511u], eighth_sign(packed >> 9), to + 8 * i);
    }
}

/* Scale; for each 8 elements a byte of an index, a byte of signs, two more bits of the index; a 4-bit scale for each
 * 16. */
void expand_iq2_s(const uint8_t *from, float *to) {
    float          d = load_f16(from);
    const uint8_t *low = from + 2, *signs = low + BLOCK / 8, *high = signs + BLOCK / 8, *scales = high + BLOCK / 32;
    for (uint32_t i = 0; i < BLOCK / 8; i++) {
        uint32_t point = low[i] | (uint32_t)(high[i / 4] >> 2 * (i % 4) & 3) << 8;
        float    scale = d * (0.5f + (float)nibble_at(scales, i / 2)) * 0.25f;
        put_8(scale, GRID_IQ2_S[point], signs[i], to + 8 * i);
    }
}

/* Scale; an index for each 4 elements; for each 32 a number of four times seven signs and a 4-bit scale. */
void expand_iq3_xxs(const uint8_t *from, float *to) {
    float          d = load_f16(from);
    const uint8_t *points = from + 2, *packed = points + BLOCK / 4;
    for (uint32_t i = 0; i < BLOCK / 4; i++) {
        uint32_t group = load_u32(packed + 4 * (i / 8));
        uint32_t signs = eighth_sign(group >> 7 * (i / 2 % 4) & 127u);
        float    scale = d * (0.5f + (float)(group >> 28)) * 0.5f;
        put_4(scale, GRID_IQ3_XXS[points[i]], VALUES_3, signs, 4 * (i % 2), to + 4 * i);
    }
}

/* Scale; for each 4 elements a byte of an index and one more bit; a sign each; a 4-bit scale for each 32. */
void expand_iq3_s(const uint8_t *from, float *to) {
    float          d = load_f16(from);
    const uint8_t *low = from + 2, *high = low + BLOCK / 4, *signs = high + BLOCK / 32, *scales = signs + BLOCK / 8;
    for (uint32_t i = 0; i < BLOCK / 4; i++) {
        uint32_t point = low[i] | (uint32_t)(high[i / 8] >> i % 8 & 1) << 8;
        float    scale = d * (float)(1 + 2 * nibble_at(scales, i / 8));
        put_4(scale, GRID_IQ3_S[point], VALUES_3S, signs[i / 2], 4 * (i % 2), to + 4 * i);
    }
}

/* Eight of -1, 0 and 1, all moved by an eighth up or down. */
static void put_ternary(float scale, uint32_t point, bool down, float *to) {
    for (uint32_t i = 0; i < 8; i++) to[i] = scale * ((float)(point >> 2 * i & 3u) - 1.0f + (down ? -0.125f : 0.125f));
}

/* Scale; for each 8 elements a byte of an index; for each 32 four times three bits more, a 3-bit scale, and which way
 * all
 * of them are moved. */
void expand_iq1_s(const uint8_t *from, float *to) {
    float          d = load_f16(from);
    const uint8_t *low = from + 2, *high = low + BLOCK / 8;
    for (uint32_t i = 0; i < BLOCK / 8; i++) {
        uint32_t packed = load_u16(high + 2 * (i / 4));
        uint32_t point = low[i] | (packed >> 3 * (i % 4) & 7u) << 8;
        float    scale = d * (float)(2 * (packed >> 12 & 7u) + 1);
        put_ternary(scale, GRID_IQ1_S[point], packed >> 15, to + 8 * i);
    }
}

/* For each 8 elements a byte of an index, three bits more and which way they are moved; four numbers with a 3-bit scale
 * for each 16 elements, and in their highest 4 bits each a quarter of the block's scale. */
void expand_iq1_m(const uint8_t *from, float *to) {
    const uint8_t *low = from, *high = low + BLOCK / 8, *scales = high + BLOCK / 16;
    uint32_t       bits = 0;
    for (uint32_t i = 0; i < 4; i++) bits |= load_u16(scales + 2 * i) >> 12 << 4 * i;
    float d = f16_to_f32((uint16_t)bits);
    for (uint32_t i = 0; i < BLOCK / 8; i++) {
        uint32_t packed = nibble_at(high, i), step = load_u16(scales + 2 * (i / 8)) >> 3 * (i / 2 % 4) & 7u;
        uint32_t point = low[i] | (packed & 7u) << 8;
        put_ternary(d * (float)(2 * step + 1), GRID_IQ1_S[point], packed >> 3, to + 8 * i);
    }
}
