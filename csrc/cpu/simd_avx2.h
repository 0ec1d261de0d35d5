/* The AVX2 backend of simd.h: eight floats, with F16C and FMA. */
#include <immintrin.h>

typedef floats table4; /* twice */
typedef floats table8;
typedef struct {
    floats low, high;
} table16;
typedef struct {
    __m256i low, high; /* the bytes of 16 int16, in both halves of the register */
} code_table;

INLINE table4  table4_of(const float *values) { return (floats)_mm256_broadcast_ps((const __m128 *)values); }
INLINE table8  table8_of(const float *values) { return load_floats(values); }
INLINE table16 table16_of(const float *values) { return (table16){load_floats(values), load_floats(values + 8)}; }

INLINE floats lookup4(table4 table, ints index) { return (floats)_mm256_permutevar_ps((__m256)table, (__m256i)index); }

INLINE floats lookup8(table8 table, ints index) {
    return (floats)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index);
}

INLINE floats lookup16(table16 table, ints index) {
    __m256 high = (__m256)(index << 28); /* bit 3 of the index as the sign */
    return (floats)_mm256_blendv_ps((__m256)lookup8(table.low, index), (__m256)lookup8(table.high, index), high);
}

#define HAS_SHUFFLE_BYTES
INLINE words shuffle_bytes(words v, const uint8_t order[16]) {
    return (words)_mm256_shuffle_epi8((__m256i)v, _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)order)));
}

#define GATHERS
/* Two indices leave the vector at a time. AVX2's own instruction takes half as long again on Zen 3 (3.6 ns for eight
 * against 2.4), and ten times where it is patched against Downfall. */
INLINE floats gather(const float *table, ints index) {
    __m128i  low = _mm256_castsi256_si128((__m256i)index), high = _mm256_extracti128_si256((__m256i)index, 1);
    uint64_t a = (uint64_t)_mm_cvtsi128_si64(low), b = (uint64_t)_mm_cvtsi128_si64(_mm_unpackhi_epi64(low, low));
    uint64_t c = (uint64_t)_mm_cvtsi128_si64(high), d = (uint64_t)_mm_cvtsi128_si64(_mm_unpackhi_epi64(high, high));
    return (floats){table[(uint32_t)a], table[a >> 32], table[(uint32_t)b], table[b >> 32],
                    table[(uint32_t)c], table[c >> 32], table[(uint32_t)d], table[d >> 32]};
}

INLINE ints gather_bytes(const uint8_t *table, ints index) {
    ints out;
    for (int i = 0; i < WIDTH; i++) out[i] = table[index[i]];
    return out;
}

#define HAS_LOOKUP_BYTES 1
INLINE bytes32 lookup_bytes(const uint8_t *table, bytes32 index) {
    __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    return (bytes32)_mm256_shuffle_epi8(twice, (__m256i)index);
}

INLINE bytes32 narrow(const ints q[VECTORS_OF_32]) {
    __m256i low = _mm256_packus_epi32((__m256i)q[0], (__m256i)q[1]);
    __m256i high = _mm256_packus_epi32((__m256i)q[2], (__m256i)q[3]);
    __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* packing works within 128 bits */
    return (bytes32)_mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
}

#define HAS_SPLIT
INLINE void split(const words v[VECTORS_OF_32], bytes32 *low, bytes32 *high) {
    __m256i both[4],
        order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0));
    for (int i = 0; i < 4; i++) both[i] = _mm256_shuffle_epi8((__m256i)v[i], order);
    __m256i a = _mm256_unpacklo_epi32(both[0], both[1]), b = _mm256_unpacklo_epi32(both[2], both[3]);
    __m256i whole = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* unpacking works within 128 bits */
    *low = (bytes32)_mm256_permutevar8x32_epi32(_mm256_unpacklo_epi64(a, b), whole);
    *high = (bytes32)_mm256_permutevar8x32_epi32(_mm256_unpackhi_epi64(a, b), whole);
}

#define HAS_FLOAT_TABLE
typedef struct {
    __m256i plane[4]; /* the first bytes of 16 floats, the second ones, …, in both halves of the register */
} float_table;

INLINE float_table float_table_of(const float values[16]) {
    float_table table;
    words       low = (words)load_floats(values), high = (words)load_floats(values + 8);
    for (uint32_t i = 0; i < 4; i++) {
        typedef VECTOR(uint8_t, 8) bytes8;
        bytes16 plane;
        plane.lo = __builtin_convertvector(low >> 8 * i & 255, bytes8);
        plane.hi = __builtin_convertvector(high >> 8 * i & 255, bytes8);
        table.plane[i] = _mm256_broadcastsi128_si256((__m128i)plane);
    }
    return table;
}

/* A byte of each float is looked up, then they are put together: twice as fast on Zen 3 as two lookups of whole floats
 * and a choice, as those cross 128 bits. */
INLINE void floats_of_bytes(float_table table, __m256i index, floats *out) {
    __m256i p[4];
    for (int i = 0; i < 4; i++) p[i] = _mm256_shuffle_epi8(table.plane[i], index);
    __m256i a = _mm256_unpacklo_epi8(p[0], p[1]), b = _mm256_unpackhi_epi8(p[0], p[1]);
    __m256i c = _mm256_unpacklo_epi8(p[2], p[3]), d = _mm256_unpackhi_epi8(p[2], p[3]);
    out[0] = (floats)_mm256_unpacklo_epi16(a, c), out[2] = (floats)_mm256_unpackhi_epi16(a, c);
    out[4] = (floats)_mm256_unpacklo_epi16(b, d), out[6] = (floats)_mm256_unpackhi_epi16(b, d);
}

INLINE void decode_floats(float_table table, words codes, floats out[8]) {
    __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m256i packed = _mm256_shuffle_epi8((__m256i)codes, order), mask = _mm256_set1_epi8(15);
    floats_of_bytes(table, _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask), out);
    floats_of_bytes(table, _mm256_and_si256(packed, mask), out + 1);
}

INLINE code_table code_table_of(const int16_t values[16]) {
    shorts  v = load_shorts(values);
    bytes16 low = __builtin_convertvector(v & 255, bytes16), high = __builtin_convertvector(v >> 8 & 255, bytes16);
    return (code_table){_mm256_broadcastsi128_si256((__m128i)low), _mm256_broadcastsi128_si256((__m128i)high)};
}

/* A shuffle looks up one byte of each value, and the two halves are interleaved within 128 bits. */
INLINE void decode_shorts(code_table table, words codes, shorts out[4]) {
    __m256i packed = (__m256i)codes, mask = _mm256_set1_epi8(15);
    __m256i second = _mm256_and_si256(packed, mask), first = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
    __m256i low = _mm256_shuffle_epi8(table.low, second), high = _mm256_shuffle_epi8(table.high, second);
    out[0] = (shorts)_mm256_unpacklo_epi8(low, high);
    out[1] = (shorts)_mm256_unpackhi_epi8(low, high);
    low = _mm256_shuffle_epi8(table.low, first), high = _mm256_shuffle_epi8(table.high, first);
    out[2] = (shorts)_mm256_unpacklo_epi8(low, high);
    out[3] = (shorts)_mm256_unpackhi_epi8(low, high);
}

#define LANE_ORDER 1, 3, 5, 7, 0, 2, 4, 6
INLINE size_t pair_in_slot(size_t slot) {
    size_t vector = slot / 8, lane = slot % 8, two_bytes = lane / 4 * 8 + vector % 2 * 4 + lane % 4;
    return two_bytes / 2 * 4 + two_bytes % 2 + vector / 2 * 2;
}

/* First the first two bytes of each of four lanes, then the other two: the unpacking above leaves each in its lane. */
INLINE words regroup(words codes) {
    __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    return (words)_mm256_shuffle_epi8((__m256i)codes, order);
}

INLINE words decode_bytes(const uint8_t values[16], words codes) {
    __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)values));
    return (words)_mm256_shuffle_epi8(table, (__m256i)(codes & 0x0f0f0f0f));
}

INLINE ints dot2(ints to, shorts a, shorts b) { return to + (ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }

#define HAS_SMALL_DOT4 1
INLINE ints small_dot4(ints to, words a, words b) {
    __m256i pairs = _mm256_maddubs_epi16((__m256i)a, (__m256i)b);
    return to + (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE floats4 sum4(floats a, floats b, floats c, floats d) {
    __m256 ab = _mm256_hadd_ps((__m256)a, (__m256)b), cd = _mm256_hadd_ps((__m256)c, (__m256)d);
    floats both = (floats)_mm256_hadd_ps(ab, cd);
    return both.lo + both.hi;
}

INLINE float sum(floats v) {
    floats4 four = v.lo + v.hi;
    return (four.x + four.z) + (four.y + four.w);
}

INLINE floats from_f16(halves h) { return (floats)_mm256_cvtph_ps((__m128i)h); }
INLINE halves to_f16(floats v) { return (halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
INLINE void   fence(void) { _mm_sfence(); }
