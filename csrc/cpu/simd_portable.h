/* The backend of simd.h for any width and any processor, with NEON's table lookups where there are some. It serves
 * baseline x86-64 and ARM at four floats; the tests also build it at sixteen, to run AVX-512's paths without it. */
#if defined __ARM_NEON && WIDTH == 4
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

INLINE bytes32 lookup_bytes(const uint8_t *table, bytes32 index) {
    uint8x16_t values = vld1q_u8(table);
    bytes16 low = (bytes16)vqtbl1q_u8(values, (uint8x16_t)index.lo),
            high = (bytes16)vqtbl1q_u8(values, (uint8x16_t)index.hi);
    bytes32 out;
    out.lo = low, out.hi = high;
    return out;
}

INLINE code_table code_table_of(const int16_t values[16]) {
    uint8x16x2_t split = vld2q_u8((const uint8_t *)values);
    return split;
}

INLINE void decode_shorts(code_table table, const uint8_t *codes, shorts out[4]) {
    uint8x16_t packed = vld1q_u8(codes), second = vandq_u8(packed, vdupq_n_u8(15)), first = vshrq_n_u8(packed, 4);
    uint8x16_t low = vqtbl1q_u8(table.val[0], second), high = vqtbl1q_u8(table.val[1], second);
    out[0] = (shorts)vzip1q_u8(low, high);
    out[1] = (shorts)vzip2q_u8(low, high);
    low = vqtbl1q_u8(table.val[0], first), high = vqtbl1q_u8(table.val[1], first);
    out[2] = (shorts)vzip1q_u8(low, high);
    out[3] = (shorts)vzip2q_u8(low, high);
}

/* The element of a chunk of codes that decode_shorts puts in out[slot / 8][slot % 8]. */
INLINE size_t element_in_slot(size_t slot) { return slot / 8 % 2 * 16 + slot % 8 * 2 + (slot < 16); }

INLINE ints dot2(ints to, shorts a, shorts b) {
    int32x4_t low = vmlal_s16((int32x4_t)to, vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
    return (ints)vmlal_high_s16(low, (int16x8_t)a, (int16x8_t)b);
}

typedef VECTOR(_Float16, WIDTH) native_halves;

INLINE floats from_f16(halves h) { return __builtin_convertvector((native_halves)h, floats); }
INLINE halves to_f16(floats v) { return (halves)__builtin_convertvector(v, native_halves); }

#else

typedef const float *table4;
typedef const float *table8;
typedef const float *table16;
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

INLINE void decode_shorts(code_table table, const uint8_t *codes, shorts out[4]) {
    typedef VECTOR(uint16_t, 2 * WIDTH) packed_codes;
    packed_codes packed;
    memcpy(&packed, codes, sizeof packed);
    for (int v = 0; v < 4; v++)
        for (int i = 0; i < 2 * WIDTH; i++) out[v][i] = table[packed[i] >> 4 * v & 15];
}

/* The element of a chunk of codes that decode_shorts puts in out[slot / (2 * WIDTH)][slot % (2 * WIDTH)]. */
INLINE size_t element_in_slot(size_t slot) { return slot % (2 * WIDTH) * 4 + (slot / (2 * WIDTH) ^ 1); }

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
