/* Matrices as the CPU sees them, dense or quantised, and what one element of each is. */
#ifndef BNB_CPU_WEIGHT_H
#define BNB_CPU_WEIGHT_H

#include <stddef.h>
#include <stdint.h>

#include "../bnb_types.h"
#include "../codebook.h"

/* From here on every product and sum is rounded by itself, as upstream's are, whatever the compiler could fuse. */
#pragma STDC FP_CONTRACT OFF

/* A dense matrix in host memory; dtype f32, f16 or bf16. */
struct dense {
    const void *data;
    bnb_dtype   dtype;
    size_t      rows, columns;
};

/* A quantised matrix in host memory: an element is values[code] * scale, rounded, + the block's offset where there are
 * some. Scales are absmax[b]; or the 16-bit floats absmax_halves[b]; or, where both are NULL,
 * nested_code->values[code b of absmax_codes] * nested_absmax[g] + nested_offsets[g] of the group g = b / nested_block,
 * or + offset where nested_offsets is NULL. Offsets are offsets[b]; or, where offsets_absmax is not NULL,
 * nested_code->values[code b of offsets] * offsets_absmax[g]. */
struct coded {
    const struct codebook *code;
    const uint8_t         *codes; /* one string of bits, the first bit of a byte its highest */
    size_t                 rows, columns, block;
    const float           *absmax;
    const uint16_t        *absmax_halves;
    bnb_dtype              absmax_dtype; /* of absmax_halves: f16 or bf16 */
    const uint8_t         *absmax_codes;
    const struct codebook *nested_code;
    const void            *nested_absmax;
    const float           *nested_offsets;
    bnb_dtype              nested_dtype; /* of nested_absmax and offsets_absmax */
    size_t                 nested_block;
    float                  offset;
    const void            *offsets; /* of blocks, or NULL */
    bnb_dtype              offsets_dtype;
    const void            *offsets_absmax;
};

/* A weight: coded, or dense where coded.code is NULL. */
struct weight {
    struct dense dense;
    struct coded coded;
};

static inline float float_at(const void *data, bnb_dtype dtype, size_t i) {
    switch (dtype) {
    case BNB_F16: return f16_to_f32(((const uint16_t *)data)[i]);
    case BNB_BF16: return bf16_to_f32(((const uint16_t *)data)[i]);
    default: return ((const float *)data)[i];
    }
}

static inline float element_of(const struct dense *x, size_t i) { return float_at(x->data, x->dtype, i); }

/* Code i is the bits [i · k, (i + 1) · k) of the codes, in one byte or two. */
static inline uint8_t code_in(const uint8_t *codes, uint32_t bits, size_t i) {
    uint32_t from = (uint32_t)(i * bits % 8);
    if (bits == 8) return codes[i];
    codes += i * bits / 8;
    uint32_t both = (uint32_t)codes[0] << 8;
    if (from + bits > 8) both |= codes[1];
    return both >> (16 - from - bits) & ((1u << bits) - 1);
}

static inline uint8_t code_at(const struct coded *q, size_t i) { return code_in(q->codes, q->code->bits, i); }

/* What the nested code of a block stands for, before an offset: by the scale of its group. */
static inline float nested_value(const struct coded *q, const uint8_t *codes, const void *absmax, size_t block,
                                 size_t group) {
    float value = q->nested_code->values[code_in(codes, q->nested_code->bits, block)];
    return value * float_at(absmax, q->nested_dtype, group);
}

/* The scale of a block, which lies in a group of them where scales are nested: who goes from block to block counts, as
 * a division takes longer than all else here. */
static inline float scale_in(const struct coded *q, size_t block, size_t group) {
    if (q->absmax) return q->absmax[block];
    if (q->absmax_halves) {
        uint16_t half = q->absmax_halves[block];
        return q->absmax_dtype == BNB_F16 ? f16_to_f32(half) : bf16_to_f32(half);
    }
    float product = nested_value(q, q->absmax_codes, q->nested_absmax, block, group);
    return product + (q->nested_offsets ? q->nested_offsets[group] : q->offset);
}

/* By a shift where that will do: a division takes as long as a short row of a product. */
static inline size_t group_of(const struct coded *q, size_t block) {
    if (!q->nested_code) return 0;
    bool is_power = (q->nested_block & (q->nested_block - 1)) == 0;
    return is_power ? block >> __builtin_ctzll(q->nested_block) : block / q->nested_block;
}

static inline float scale_of(const struct coded *q, size_t block) { return scale_in(q, block, group_of(q, block)); }

/* What is added to a block's elements once they are scaled: -0 where there is nothing, for that changes no bit. */
static inline float offset_of(const struct coded *q, size_t block) {
    if (!q->offsets) return -0.0f;
    if (!q->offsets_absmax) return float_at(q->offsets, q->offsets_dtype, block);
    return nested_value(q, q->offsets, q->offsets_absmax, block, group_of(q, block));
}

static inline float decoded(const struct coded *q, size_t i) {
    size_t block = i / q->block;
    float  scaled = q->code->values[code_at(q, i)] * scale_of(q, block);
    return scaled + offset_of(q, block);
}

static inline size_t weight_rows(const struct weight *w) { return w->coded.code ? w->coded.rows : w->dense.rows; }
static inline size_t weight_columns(const struct weight *w) {
    return w->coded.code ? w->coded.columns : w->dense.columns;
}
static inline float weight_of(const struct weight *w, size_t i) {
    return w->coded.code ? decoded(&w->coded, i) : element_of(&w->dense, i);
}

static inline void put_element(void *data, bnb_dtype dtype, size_t i, float value) {
    switch (dtype) {
    case BNB_F16: ((uint16_t *)data)[i] = f32_to_f16(value); break;
    case BNB_BF16: ((uint16_t *)data)[i] = f32_to_bf16(value); break;
    default: ((float *)data)[i] = value; break;
    }
}

#endif
