/* Vectors as wide as an instruction set's registers. Every kernel is written once over them: the arithmetic is C's own
 * operators on vector types, and only what those cannot say is a function here or in a backend.
 *
 * A backend defines WIDTH, the floats in a register, and:
 *   table4, 8, 16       so many floats to look up, and table4_of, lookup4 and so on: a lane's index counts by its
 * lowest
 *                       2, 3 or 4 bits
 *   table256            256 floats to look up, with table256_of and lookup256; HAS_TABLE256 is 1 where that is in
 *                       registers
 *   float_table         16 floats to decode 4-bit codes with, float_table_of and decode_floats, which gives the eight
 *                       elements of each lane of codes, in order; unless simd.h's own serve
 *   code_table          16 int16 to decode 4-bit codes with, code_table_of and decode_shorts, which gives four vectors
 *                       of them. Two neighbours are a pair, and pair_in_slot(i) says which pair of the codes the ith
 * is:
 *                       a lane of codes holds four, whose elements are, in order, those of LANE_ORDER
 *   regroup             what to do with codes so that decode_shorts leaves the pairs of a lane in that lane of the
 *                       four, in order, the two where dot2 adds them up
 *   pair_of             two int16 for each lane, as dot2 takes them after regroup; unless simd.h's own serves
 *   decode_bytes        the bytes that the second codes of all bytes stand for, in place
 *   lookup_bytes        32 bytes, each the index of one in a table of 16; HAS_LOOKUP_BYTES is 1 where that is quick
 *   shuffle_bytes       in each 128 bits the bytes that `order` names; only where HAS_SHUFFLE_BYTES is defined
 *   narrow              32 small integers as bytes, in order
 *   split               the lowest byte of 32 integers and the one above it, each in order; unless simd.h's own serves
 *   dot2                to each lane, the sum of two products of int16
 *   dot4                to each lane, the sum of four products of int8; only where HAS_DOT4 is 1. The first operand's
 *                       bytes come with DOT4_FLIP applied: where it is 0x80808080 they are unsigned, 128 too large
 *   small_dot4          the same where there is no dot4 and HAS_SMALL_DOT4 is 1: the first operand's bytes are
 *                       unsigned, and the first two products and the last two must each add up to an int16
 *   mmla                to lanes 2 i + j of four, the sum of eight products of int8: of one operand's ith eight and the
 *                       other's jth, flipped as for dot4; only where HAS_MMLA is 1, with vectors of four lanes
 *   sum, sum4           the lanes of one vector added up, or of each of four
 *   from_f16, to_f16    16-bit floats, rounded to nearest even
 *   fence               makes streamed stores visible to who is told next
 *   GATHERS             where its own gather and gather_bytes are better than those below */
#ifndef BNB_CPU_SIMD_H
#define BNB_CPU_SIMD_H

#include <string.h>

#include "../error.h"
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

#if defined __AVX512F__ || defined __aarch64__ || defined PORTABLE_WIDTH || WIDTH == 16
#define REGISTERS 32
#else
#define REGISTERS 16
#endif

/* A function is copied to wherever it is called, with what is constant there. With ONE_COPY, as tests have it that look
 * at the sources rather than at what ships, the compiler decides, which takes a fifth of its time. */
#ifdef ONE_COPY
#define INLINE static inline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

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
    CHUNK = 8 * WIDTH, /* the 4-bit codes that fill a register */
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
#if defined   __FMA__ || defined __aarch64__
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

#ifndef HAS_LOOKUP_BYTES
#define HAS_LOOKUP_BYTES 0
#endif

#ifndef HAS_DOT4
#define HAS_DOT4 0
#endif

#ifndef HAS_MMLA
#define HAS_MMLA 0
INLINE ints mmla(ints to, words, words) { return to; } /* for the compiler: nothing calls it */
#endif

#ifndef HAS_FLOAT_TABLE
typedef table16    float_table;
INLINE float_table float_table_of(const float values[16]) { return table16_of(values); }
INLINE void        decode_floats(float_table table, words codes, floats out[8]) {
    for (uint32_t i = 0; i < 8; i++) out[i] = lookup16(table, (ints)(codes >> 4 * (i ^ 1)));
}
#endif

#ifndef HAS_SMALL_DOT4
#define HAS_SMALL_DOT4 0
#endif

#ifndef HAS_PAIR_OF
INLINE shorts pair_of(const int16_t x[2]) {
    uint32_t both;
    memcpy(&both, x, sizeof both);
    return (shorts)(words)both;
}
#endif

#ifndef HAS_SPLIT
INLINE void split(const words v[VECTORS_OF_32], bytes32 *low, bytes32 *high) {
    ints byte[2][VECTORS_OF_32];
    for (int i = 0; i < VECTORS_OF_32; i++) byte[0][i] = (ints)(v[i] & 255), byte[1][i] = (ints)(v[i] >> 8 & 255);
    *low = narrow(byte[0]), *high = narrow(byte[1]);
}
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

#ifndef HAS_TABLE256
#define HAS_TABLE256 0
typedef const float *table256;
INLINE table256      table256_of(const float values[256]) { return values; }
INLINE floats        lookup256(table256 table, ints index) { return gather(table, index); }
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
    words  spread = __builtin_shufflevector(both, both, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
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
    typedef VECTOR(int8_t, WIDTH) signed_bytes; /* clang before 20 wants a typedef */
    signed_bytes v;
    memcpy(&v, codes, sizeof v);
    return __builtin_convertvector(v, floats);
}

/* The values that WIDTH 8-bit codes stand for. Where gathering means loads one by one, the codes are taken from memory
 * one by one too. */
INLINE floats values_of(table256 table, const uint8_t *codes) {
#if WIDTH == 16
    return lookup256(table, load_bytes(codes));
#else
    floats out;
    for (int i = 0; i < WIDTH; i++) out[i] = table[codes[i]];
    return out;
#endif
}

/* The lanes of a and b by turns: the lower halves' in a, the upper ones' in b. */
INLINE void zip(words *a, words *b) {
    words low, high;
    low.even = a->lo, low.odd = b->lo;
    high.even = a->hi, high.odd = b->hi;
    *a = low, *b = high;
}

/* The even lanes of a, then of b, in a; the odd ones in b. */
INLINE void unzip(words *a, words *b) {
    words even, odd;
    even.lo = a->even, even.hi = b->even;
    odd.lo = a->odd, odd.hi = b->odd;
    *a = even, *b = odd;
}

/* Lane i of row j becomes lane j of row i. */
INLINE void transpose(words row[WIDTH]) {
#if WIDTH == 8
#define ZIP_LOW  0, 8, 1, 9, 4, 12, 5, 13 /* within 128 bits, which costs a third of what crossing them does */
#define ZIP_HIGH 2, 10, 3, 11, 6, 14, 7, 15
    enum { SIDE = 4, STAGES = 2 };
#elif WIDTH == 16
#define ZIP_LOW  0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
    enum { SIDE = 16, STAGES = 4 };
#else
#define ZIP_LOW  0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
    enum { SIDE = 4, STAGES = 2 };
#endif
    /* Zipping the rows of one half with those of the other, as often as a side can be halved. */
    for (int stage = 0; stage < STAGES; stage++) {
        words zipped[WIDTH];
        for (int square = 0; square < WIDTH; square += SIDE)
            for (int i = 0; i < SIDE / 2; i++) {
                words a = row[square + i], b = row[square + i + SIDE / 2];
                zipped[square + 2 * i] = __builtin_shufflevector(a, b, ZIP_LOW);
                zipped[square + 2 * i + 1] = __builtin_shufflevector(a, b, ZIP_HIGH);
            }
        memcpy(row, zipped, sizeof zipped);
    }
#if WIDTH == 8
    for (int i = 0; i < 4; i++) {
        words a = row[i], b = row[i + 4];
        row[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
        row[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
#endif
#undef ZIP_LOW
#undef ZIP_HIGH
}

/* ── Functions ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* e to the x within 2 ulp: 0 below -87.3, where results would be denormal, and an infinity above 88.7. With n = x / ln
 * 2 rounded, the rest is in ±0.35, and ln 2 is taken off in two parts so that it keeps its bits (Cody and Waite 1980);
 * the polynomial is that of Cephes' expf. NaN gives NaN. */
INLINE floats exponential(floats x) {
    floats inside = x > 88.7f ? (floats)88.7f : x;
    inside = inside < -87.3f ? (floats)-87.3f : inside;
    floats shifted = fma(inside, (floats)1.44269504f, (floats)0x1.8p23f), n = shifted - 0x1.8p23f;
    floats rest = fma(n, (floats)-0.693359375f, inside);
    rest = fma(n, (floats)2.12194440e-4f, rest);
    floats p = (floats)1.9875691500e-4f;
    p = fma(p, rest, (floats)1.3981999507e-3f);
    p = fma(p, rest, (floats)8.3334519073e-3f);
    p = fma(p, rest, (floats)4.1665795894e-2f);
    p = fma(p, rest, (floats)1.6666665459e-1f);
    p = fma(p, rest, (floats)5.0000001201e-1f);
    p = fma(p, rest * rest, rest) + 1.0f;
    /* n is -126 to 128: as a power of two in two steps, since 2^128 is none of a float's. */
    ints   half = ((ints)shifted - 0x4b400000) >> 1, other = ((ints)shifted - 0x4b400000) - half;
    floats y = p * (floats)((half + 127) << 23) * (floats)((other + 127) << 23);
    y = x < -87.3f ? (floats)0 : y;
    y = x > 88.7228f ? (floats)__builtin_inff() : y;
    return x == x ? y : x;
}

/* Within 3 ulp, by Cephes' tanhf. */
INLINE floats hyperbolic_tangent(floats x) {
    floats z = x * x, p = (floats)-5.70498872745e-3f;
    p = fma(p, z, (floats)2.06390887954e-2f);
    p = fma(p, z, (floats)-5.37397155531e-2f);
    p = fma(p, z, (floats)1.33314422036e-1f);
    p = fma(p, z, (floats)-3.33332819422e-1f);
    floats small = fma(p * z, x, x), large = 1 - 2 / (exponential(x + x) + 1);
    return __builtin_elementwise_abs(x) < 0.625f ? small : large;
}

/* The error function within 2 ulp: a polynomial around 0, and one less a power of e beyond (N. Juffa, 2016). */
INLINE floats error_function(floats x) {
    floats a = __builtin_elementwise_abs(x), z = x * x;
    floats p = fma((floats)-1.72853470e-5f, a, (floats)3.83197126e-4f);
    p = fma(p, z, fma((floats)-3.88396438e-3f, a, (floats)2.42546219e-2f));
    p = fma(p, a, (floats)-1.06777877e-1f);
    p = fma(p, a, (floats)-6.34846687e-1f);
    p = fma(p, a, (floats)-1.28717512e-1f);
    floats far = 1 - exponential(fma(p, a, -a));
    far = x < 0 ? -far : far;
    floats q = (floats)-5.96761703e-4f;
    q = fma(q, z, (floats)4.99119423e-3f);
    q = fma(q, z, (floats)-2.67681349e-2f);
    q = fma(q, z, (floats)1.12819925e-1f);
    q = fma(q, z, (floats)-3.76125336e-1f);
    q = fma(q, z, (floats)1.28379166e-1f);
    floats near = fma(q, x, x);
    return a > 0.927734375f ? far : near;
}

static inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t most(size_t a, size_t b) { return a > b ? a : b; }

/* Records that an operation has nowhere to work, and returns the code. */
static bnb_status no_working_space(const char *operation, size_t bytes) {
    return fail(BNB_OUT_OF_MEMORY, "%s: no memory for %zu bytes of working space; free something and try again",
                operation, bytes);
}

#endif
