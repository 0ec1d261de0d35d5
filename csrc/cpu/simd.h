/* Vectors as wide as an instruction set's registers. Every kernel is written once over them: the arithmetic is C's own
 * operators on vector types, and only what those cannot say is a function here or in a backend.
 *
 * A backend defines WIDTH, the floats in a register, and:
 *   table4, 8, 16       so many floats to look up, and table4_of, lookup4 and so on: a lane's index counts by its lowest
 *                       2, 3 or 4 bits
 *   code_table          16 int16 values to decode 4-bit codes with, code_table_of, decode_shorts and element_in_slot
 *   lookup_bytes        32 bytes, each the index of one in a table of 16
 *   narrow              32 small integers as bytes, in order
 *   dot2                to each lane, the sum of two products of int16
 *   dot4                to each lane, the sum of four products of int8; only where HAS_DOT4 is 1. The first operand's
 *                       bytes come with DOT4_FLIP applied: where it is 0x80808080 they are unsigned, 128 too large
 *   sum, sum4           the lanes of one vector added up, or of each of four
 *   from_f16, to_f16    16-bit floats, rounded to nearest even
 *   fence               makes streamed stores visible to who is told next
 *   GATHERS             where its own gather and gather_bytes are better than those below */
#ifndef BNB_CPU_SIMD_H
#define BNB_CPU_SIMD_H

#include <string.h>

#include "forms.h"

#if defined PORTABLE_WIDTH
#define WIDTH PORTABLE_WIDTH
#elif defined __AVX512BW__
#define WIDTH 16
#elif defined __AVX2__
#define WIDTH 8
#else
#define WIDTH 4
#endif

#if defined __AVX512F__ || defined __aarch64__ || WIDTH == 16
#define REGISTERS 32
#else
#define REGISTERS 16
#endif

#define INLINE static inline __attribute__((always_inline))
#define VECTOR(type, lanes) type __attribute__((ext_vector_type(lanes)))

typedef VECTOR(float, WIDTH) floats;
typedef VECTOR(float, 4) floats4;
typedef VECTOR(int32_t, WIDTH) ints;
typedef VECTOR(uint32_t, WIDTH) words;
typedef VECTOR(uint16_t, WIDTH) halves; /* 16-bit floats as they are stored */
typedef VECTOR(int16_t, 2 * WIDTH) shorts;
typedef VECTOR(uint8_t, WIDTH) bytes;
typedef VECTOR(uint8_t, 16) bytes16;
typedef VECTOR(uint8_t, 32) bytes32;

enum {
    VECTORS_OF_32 = 32 / WIDTH,
    CHUNK         = 8 * WIDTH, /* the 4-bit codes that fill a register */
};

INLINE floats load_floats(const float *from) {
    floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE halves load_halves(const uint16_t *from) {
    halves v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE shorts load_shorts(const int16_t *from) {
    shorts v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE ints load_ints(const void *from) {
    ints v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE bytes32 load_bytes32(const uint8_t *from) {
    bytes32 v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* a * b + c; rounded once where the processor can. */
INLINE floats fma(floats a, floats b, floats c) {
#if defined __FMA__ || defined __aarch64__
    return __builtin_elementwise_fma(a, b, c);
#else
    return a * b + c;
#endif
}

/* With NaN for x, the bound: an index made of the result stays in its table. */
INLINE floats clamp(floats x) {
    x = x < 1.0f ? x : (floats)1.0f;
    return x > -1.0f ? x : (floats)-1.0f;
}

#if defined PORTABLE_WIDTH
#include "simd_portable.h"
#elif defined __AVX512BW__
#include "simd_avx512.h"
#elif defined __AVX2__
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

#ifndef HAS_DOT4
#define HAS_DOT4 0
#endif

#ifndef GATHERS

/* Each lane's element of a table in memory, loaded one by one. */
INLINE floats gather(const float *table, ints index) {
    floats out;
    for (int i = 0; i < WIDTH; i++) out[i] = table[index[i]];
    return out;
}

/* The same for bytes, of which up to 3 past the index may be read. */
INLINE ints gather_bytes(const uint8_t *table, ints index) {
    ints out;
    for (int i = 0; i < WIDTH; i++) out[i] = table[index[i]];
    return out;
}

#endif

INLINE floats from_bf16(halves h) { return (floats)(__builtin_convertvector(h, words) << 16); }

/* As f32_to_bf16 of half.h. */
INLINE halves to_bf16(floats v) {
    words bits = (words)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return __builtin_convertvector((ints)(bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded, halves);
}

/* WIDTH elements from the ith on, as fp32. The dtype is a constant wherever this is inlined. */
INLINE floats load(const void *data, bnb_dtype dtype, size_t i) {
    if (dtype == BNB_F16) return from_f16(load_halves((const uint16_t *)data + i));
    if (dtype == BNB_BF16) return from_bf16(load_halves((const uint16_t *)data + i));
    return load_floats((const float *)data + i);
}

INLINE void store(void *data, bnb_dtype dtype, size_t i, floats v) {
    if (dtype == BNB_F32) {
        memcpy((float *)data + i, &v, sizeof v);
    } else {
        halves h = dtype == BNB_F16 ? to_f16(v) : to_bf16(v);
        memcpy((uint16_t *)data + i, &h, sizeof h);
    }
}

/* The same past the caches, for results that they can't hold; the address is a multiple of the vector's size. */
INLINE void stream(void *data, bnb_dtype dtype, size_t i, floats v) {
    if (dtype == BNB_F32) {
        __builtin_nontemporal_store(v, (floats *)((float *)data + i));
    } else {
        halves h = dtype == BNB_F16 ? to_f16(v) : to_bf16(v);
        __builtin_nontemporal_store(h, (halves *)((uint16_t *)data + i));
    }
}

/* WIDTH 4-bit codes in order. Above each stand bits of its neighbours, which a lookup ignores. */
INLINE ints load_nibbles(const uint8_t *codes) {
    uint64_t packed = 0;
    memcpy(&packed, codes, WIDTH / 2);
#if WIDTH == 16
    typedef VECTOR(uint32_t, 2) words2;
    words2 both = {(uint32_t)packed, (uint32_t)(packed >> 32)};
    words spread = __builtin_shufflevector(both, both, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return (ints)(spread >> (words){4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24});
#elif WIDTH == 8
    return (ints)((words)(uint32_t)packed >> (words){4, 0, 12, 8, 20, 16, 28, 24});
#else
    return (ints)((words)(uint32_t)packed >> (words){4, 0, 12, 8});
#endif
}

INLINE ints load_bytes(const uint8_t *codes) {
    bytes v;
    memcpy(&v, codes, sizeof v);
    return __builtin_convertvector(v, ints);
}

INLINE floats load_signed_bytes(const int8_t *codes) {
    VECTOR(int8_t, WIDTH) v;
    memcpy(&v, codes, sizeof v);
    return __builtin_convertvector(v, floats);
}

/* The values that WIDTH 8-bit codes stand for. Where gathering means loads one by one, the codes are taken from memory
 * one by one too. */
INLINE floats values_of(const float *values, const uint8_t *codes) {
#if WIDTH == 16
    return gather(values, load_bytes(codes));
#else
    floats out;
    for (int i = 0; i < WIDTH; i++) out[i] = values[codes[i]];
    return out;
#endif
}

static inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t most(size_t a, size_t b) { return a > b ? a : b; }

#endif
