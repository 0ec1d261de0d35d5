/* The backend of simd.h for any width and any processor, with NEON's table lookups where there are some. It serves
 * baseline x86-64 and ARM at four floats; the tests also build it at sixteen, to run AVX-512's paths without it, and at
 * four with the matrix instruction that ARM has. */
#if defined __ARM_NEON && !defined PORTABLE_WIDTH
#define NEON 1
#include <arm_neon.h>
#else
#define NEON 0
#endif

#if NEON

typedef uint8x16_t   table4;
typedef uint8x16x2_t table8;
typedef uint8x16x4_t table16;
typedef uint8x16x2_t code_table; /* the low bytes of 16 int16, and the high ones */

INLINE table4  table4_of(const float *values) { return vld1q_u8((const uint8_t *)values); }
INLINE table8  table8_of(const float *values) { return vld1q_u8_x2((const uint8_t *)values); }
INLINE table16 table16_of(const float *values) { return vld1q_u8_x4((const uint8_t *)values); }

/* The numbers of the four bytes of each lane's float. */
INLINE uint8x16_t bytes_of(ints index) { return (uint8x16_t)(index * 0x04040404 + 0x03020100); }

INLINE floats lookup4(table4 table, ints index) { return (floats)vqtbl1q_u8(table, bytes_of(index & 3)); }
INLINE floats lookup8(table8 table, ints index) { return (floats)vqtbl2q_u8(table, bytes_of(index & 7)); }
INLINE floats lookup16(table16 table, ints index) { return (floats)vqtbl4q_u8(table, bytes_of(index & 15)); }

#define HAS_LOOKUP_BYTES 1
INLINE bytes32 lookup_bytes(const uint8_t *table, bytes32 index) {
    uint8x16_t values = vld1q_u8(table);
    bytes16    low = (bytes16)vqtbl1q_u8(values, (uint8x16_t)index.lo),
               high = (bytes16)vqtbl1q_u8(values, (uint8x16_t)index.hi);
    bytes32    out;
    out.lo = low, out.hi = high;
    return out;
}

#define HAS_SHUFFLE_BYTES
INLINE words shuffle_bytes(words v, const uint8_t order[16]) {
    return (words)vqtbl1q_u8((uint8x16_t)v, vld1q_u8(order));
}

#define HAS_FLOAT_TABLE
typedef uint8x16x4_t float_table; /* the first bytes of 16 floats, the second ones, … */

INLINE float_table float_table_of(const float values[16]) { return vld4q_u8((const uint8_t *)values); }

/* A byte of each float is looked up, then they are put together. */
INLINE void floats_of_bytes(float_table table, uint8x16_t index, floats *out) {
    uint8x16_t p[4];
    for (int i = 0; i < 4; i++) p[i] = vqtbl1q_u8(table.val[i], index);
    uint16x8_t a = (uint16x8_t)vzip1q_u8(p[0], p[1]), b = (uint16x8_t)vzip2q_u8(p[0], p[1]);
    uint16x8_t c = (uint16x8_t)vzip1q_u8(p[2], p[3]), d = (uint16x8_t)vzip2q_u8(p[2], p[3]);
    out[0] = (floats)vzip1q_u16(a, c), out[2] = (floats)vzip2q_u16(a, c);
    out[4] = (floats)vzip1q_u16(b, d), out[6] = (floats)vzip2q_u16(b, d);
}

INLINE void decode_floats(float_table table, words codes, floats out[8]) {
    static const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    uint8x16_t           packed = vqtbl1q_u8((uint8x16_t)codes, vld1q_u8(order));
    floats_of_bytes(table, vshrq_n_u8(packed, 4), out);
    floats_of_bytes(table, vandq_u8(packed, vdupq_n_u8(15)), out + 1);
}

INLINE code_table code_table_of(const int16_t values[16]) {
    uint8x16x2_t split = vld2q_u8((const uint8_t *)values);
    return split;
}

INLINE void decode_shorts(code_table table, words codes, shorts out[4]) {
    uint8x16_t packed = (uint8x16_t)codes, second = vandq_u8(packed, vdupq_n_u8(15)), first = vshrq_n_u8(packed, 4);
    uint8x16_t low = vqtbl1q_u8(table.val[0], second), high = vqtbl1q_u8(table.val[1], second);
    out[0] = (shorts)vzip1q_u8(low, high);
    out[1] = (shorts)vzip2q_u8(low, high);
    low = vqtbl1q_u8(table.val[0], first), high = vqtbl1q_u8(table.val[1], first);
    out[2] = (shorts)vzip1q_u8(low, high);
    out[3] = (shorts)vzip2q_u8(low, high);
}

#define LANE_ORDER 1, 3, 5, 7, 0, 2, 4, 6
INLINE size_t pair_in_slot(size_t slot) {
    size_t two_bytes = slot / 4 % 2 * 4 + slot % 4;
    return two_bytes / 2 * 4 + two_bytes % 2 + slot / 8 * 2;
}

/* The first bytes of all lanes, then the second: each two of a lane are four elements apart, as dot2 takes them. */
INLINE words regroup(words codes) {
    static const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return (words)vqtbl1q_u8((uint8x16_t)codes, vld1q_u8(order));
}

#define HAS_PAIR_OF
INLINE shorts pair_of(const int16_t x[2]) { return (shorts)vcombine_s16(vdup_n_s16(x[0]), vdup_n_s16(x[1])); }

INLINE words decode_bytes(const uint8_t values[16], words codes) {
    return (words)vqtbl1q_u8(vld1q_u8(values), (uint8x16_t)(codes & 0x0f0f0f0f));
}

INLINE ints dot2(ints to, shorts a, shorts b) {
    int32x4_t low = vmlal_s16((int32x4_t)to, vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
    return (ints)vmlal_high_s16(low, (int16x8_t)a, (int16x8_t)b);
}

typedef VECTOR(_Float16, WIDTH) native_halves;

INLINE floats from_f16(halves h) { return __builtin_convertvector((native_halves)h, floats); }
INLINE halves to_f16(floats v) { return (halves) __builtin_convertvector(v, native_halves); }

#else

typedef const float   *table4;
typedef const float   *table8;
typedef const float   *table16;
typedef const int16_t *code_table;

INLINE table4     table4_of(const float *values) { return values; }
INLINE table8     table8_of(const float *values) { return values; }
INLINE table16    table16_of(const float *values) { return values; }
INLINE code_table code_table_of(const int16_t values[16]) { return values; }

INLINE floats lookup(const float *table, ints index) {
    floats out;
    for (int i = 0; i < WIDTH; i++) out[i] = table[index[i]];
    return out;
}

INLINE floats lookup4(table4 table, ints index) { return lookup(table, index & 3); }
INLINE floats lookup8(table8 table, ints index) { return lookup(table, index & 7); }
INLINE floats lookup16(table16 table, ints index) { return lookup(table, index & 15); }

INLINE bytes32 lookup_bytes(const uint8_t *table, bytes32 index) {
    bytes32 out;
    for (int i = 0; i < 32; i++) out[i] = table[index[i]];
    return out;
}

INLINE void decode_shorts(code_table table, words codes, shorts out[4]) {
    typedef VECTOR(uint16_t, 2 * WIDTH) packed_codes;
    packed_codes packed = (packed_codes)codes;
    for (int v = 0; v < 4; v++)
        for (int i = 0; i < 2 * WIDTH; i++) out[v][i] = table[packed[i] >> 4 * v & 15];
}

#define LANE_ORDER 1, 5, 0, 4, 3, 7, 2, 6
INLINE size_t pair_in_slot(size_t slot) { return slot % WIDTH * 4 + slot / WIDTH; }
INLINE words  regroup(words codes) { return codes; }

INLINE words decode_bytes(const uint8_t values[16], words codes) {
    uint8_t from[4 * WIDTH], to[4 * WIDTH];
    memcpy(from, &codes, sizeof from);
    for (int i = 0; i < 4 * WIDTH; i++) to[i] = values[from[i] & 15];
    words out;
    memcpy(&out, to, sizeof out);
    return out;
}

INLINE ints dot2(ints to, shorts a, shorts b) {
    typedef VECTOR(int16_t, WIDTH) half_shorts;
    half_shorts a0 = a.even, a1 = a.odd, b0 = b.even, b1 = b.odd;
    return to + (__builtin_convertvector(a0, ints) * __builtin_convertvector(b0, ints) +
                 __builtin_convertvector(a1, ints) * __builtin_convertvector(b1, ints));
}

INLINE floats from_f16(halves h) {
    words bits = __builtin_convertvector(h, words), magnitude = (bits & 0x7fff) << 13;
    words finite = (words)((floats)magnitude * 0x1p112f); /* from bias 15 to bias 127, subnormals too */
    return (floats)((magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite) | (bits & 0x8000) << 16);
}

INLINE halves to_f16(floats v) {
    words bits = (words)v, magnitude = bits & 0x7fffffff;
    words normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    words subnormal = (words)((floats)magnitude + 0.5f) - 0x3f000000; /* the addition rounds to units of 2^-24 */
    words special = magnitude > 0x7f800000 ? (words)0x7e00 : (words)0x7c00;
    words out = magnitude < 0x38800000 ? subnormal : magnitude < 0x47800000 ? normal : special;
    return __builtin_convertvector(out | (bits & 0x80000000) >> 16, halves);
}

#endif

#if NEON && defined __ARM_FEATURE_DOTPROD
#define HAS_DOT4  1
#define DOT4_FLIP 0
INLINE ints dot4(ints to, words a, words b) { return (ints)vdotq_s32((int32x4_t)to, (int8x16_t)a, (int8x16_t)b); }
#elif defined PORTABLE_WIDTH
#define HAS_DOT4  1
#define DOT4_FLIP 0x80808080
INLINE ints dot4(ints to, words a, words b) {
    for (uint32_t byte = 0; byte < 32; byte += 8) to += (ints)(a >> byte & 255) * ((ints)(b << (24 - byte)) >> 24);
    return to;
}
#endif

#if NEON && defined __ARM_FEATURE_MATMUL_INT8
#define HAS_MMLA 1
INLINE ints mmla(ints to, words a, words b) { return (ints)vmmlaq_s32((int32x4_t)to, (int8x16_t)a, (int8x16_t)b); }
#elif defined PORTABLE_WIDTH && WIDTH == 4
#define HAS_MMLA 1
INLINE ints mmla(ints to, words a, words b) {
    for (uint32_t step = 0; step < 2; step++) {
        words first = {a[step], a[step], a[2 + step], a[2 + step]};
        words second = {b[step], b[2 + step], b[step], b[2 + step]};
        to = dot4(to, first, second);
    }
    return to;
}
#endif

INLINE bytes32 narrow(const ints q[VECTORS_OF_32]) {
    uint8_t out[32];
    for (int v = 0; v < VECTORS_OF_32; v++) {
        bytes part = __builtin_convertvector(q[v], bytes);
        memcpy(out + v * WIDTH, &part, sizeof part);
    }
    return load_bytes32(out);
}

INLINE float sum(floats v) {
    float out = 0;
    for (int i = 0; i < WIDTH; i += 4) out += (v[i] + v[i + 2]) + (v[i + 1] + v[i + 3]);
    return out;
}

INLINE floats4 sum4(floats a, floats b, floats c, floats d) { return (floats4){sum(a), sum(b), sum(c), sum(d)}; }

INLINE void fence(void) {
#ifdef __x86_64__
    __builtin_ia32_sfence();
#endif
}
