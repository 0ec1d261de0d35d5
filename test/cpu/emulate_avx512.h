/* AVX-512's instructions as csrc/cpu/simd_avx512.h uses them, spelled out from Intel's descriptions: included before
 * it, so that the backend runs where there is no such processor. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __AVX512F__  1
#define __AVX512BW__ 1

#define LANES(type, count) __attribute__((ext_vector_type(count))) type
#define EACH_LANE(count)   for (int lane = 0; lane < (count); lane++)

typedef LANES(float, 16) emulated_floats;
typedef LANES(int32_t, 16) emulated_ints;
typedef LANES(int16_t, 32) emulated_shorts;

static inline __m512 emulated_permutexvar_ps(__m512i index, __m512 table) {
    emulated_floats out, from = (emulated_floats)table;
    emulated_ints   at = (emulated_ints)index;
    EACH_LANE(16) out[lane] = from[at[lane] & 15];
    return (__m512)out;
}

static inline __m512 emulated_permutex2var_ps(__m512 low, __m512i index, __m512 high) {
    emulated_floats out, from[2] = {(emulated_floats)low, (emulated_floats)high};
    emulated_ints   at = (emulated_ints)index;
    EACH_LANE(16) out[lane] = from[at[lane] >> 4 & 1][at[lane] & 15];
    return (__m512)out;
}

static inline __m512i emulated_permutexvar_epi16(__m512i index, __m512i table) {
    emulated_shorts out, from = (emulated_shorts)table, at = (emulated_shorts)index;
    EACH_LANE(32) out[lane] = from[at[lane] & 31];
    return (__m512i)out;
}

static inline __m512 emulated_permutevar_ps(__m512 table, __m512i index) {
    emulated_floats out, from = (emulated_floats)table;
    emulated_ints   at = (emulated_ints)index;
    EACH_LANE(16) out[lane] = from[lane / 4 * 4 + (at[lane] & 3)];
    return (__m512)out;
}

static inline __m512 emulated_broadcast_f32x4(__m128 four) {
    typedef LANES(float, 4) floats4; /* clang before 20 wants a typedef */
    floats4         from = (floats4)four;
    emulated_floats out;
    EACH_LANE(16) out[lane] = from[lane % 4];
    return (__m512)out;
}

static inline __m512 emulated_broadcast_f32x8(__m256 eight) {
    typedef LANES(float, 8) floats8; /* clang before 20 wants a typedef */
    floats8         from = (floats8)eight;
    emulated_floats out;
    EACH_LANE(16) out[lane] = from[lane % 8];
    return (__m512)out;
}

static inline __m512i emulated_broadcast_i64x4(__m256i half) {
    typedef LANES(int16_t, 16) shorts16;
    shorts16        from = (shorts16)half;
    emulated_shorts out;
    EACH_LANE(32) out[lane] = from[lane % 16];
    return (__m512i)out;
}

static inline __m512i emulated_i32gather_epi32(__m512i index, const void *base, int scale) {
    emulated_ints out, at = (emulated_ints)index;
    EACH_LANE(16) {
        int32_t element;
        memcpy(&element, (const char *)base + (ptrdiff_t)at[lane] * scale, sizeof element);
        out[lane] = element;
    }
    return (__m512i)out;
}

static inline __m128i emulated_cvtepi32_epi8(__m512i v) {
    return (__m128i) __builtin_convertvector((emulated_ints)v, LANES(int8_t, 16));
}

static inline __m512i emulated_loadu_si512(const void *from) {
    __m512i v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline __m512i emulated_srli_epi16(__m512i v, unsigned by) {
    return (__m512i)((LANES(uint16_t, 32))v >> (uint16_t)by);
}

static inline __m512i emulated_madd_epi16(__m512i a, __m512i b) {
    emulated_shorts x = (emulated_shorts)a, y = (emulated_shorts)b;
    emulated_ints   out;
    EACH_LANE(16) out[lane] = x[2 * lane] * y[2 * lane] + x[2 * lane + 1] * y[2 * lane + 1];
    return (__m512i)out;
}

static inline __m512i emulated_broadcast_i32x4(__m128i quarter) {
    typedef LANES(int32_t, 4) ints4;
    ints4         from = (ints4)quarter;
    emulated_ints out;
    EACH_LANE(16) out[lane] = from[lane % 4];
    return (__m512i)out;
}

static inline __m512i emulated_shuffle_epi8(__m512i table, __m512i index) {
    uint8_t from[64], at[64], out[64];
    memcpy(from, &table, 64), memcpy(at, &index, 64);
    EACH_LANE(64) out[lane] = at[lane] & 128 ? 0 : from[lane / 16 * 16 + (at[lane] & 15)];
    return emulated_loadu_si512(out);
}

static inline __m512i emulated_maddubs_epi16(__m512i a, __m512i b) {
    uint8_t x[64];
    int8_t  y[64];
    memcpy(x, &a, 64), memcpy(y, &b, 64);
    emulated_shorts out;
    EACH_LANE(32) {
        int sum = x[2 * lane] * y[2 * lane] + x[2 * lane + 1] * y[2 * lane + 1];
        out[lane] = (int16_t)(sum > INT16_MAX ? INT16_MAX : sum < INT16_MIN ? INT16_MIN : sum);
    }
    return (__m512i)out;
}

static inline float emulated_reduce_add_ps(__m512 v) {
    emulated_floats from = (emulated_floats)v;
    float           sum = 0;
    EACH_LANE(16) sum += from[lane];
    return sum;
}

static inline __m512 emulated_cvtph_ps(__m256i v) {
    return (__m512) __builtin_convertvector((LANES(_Float16, 16))v, emulated_floats);
}

static inline __m256i emulated_cvtps_ph(__m512 v, int rounding) {
    (void)rounding; /* to nearest even, as the conversion is */
    return (__m256i) __builtin_convertvector((emulated_floats)v, LANES(_Float16, 16));
}

#define _mm512_permutexvar_ps    emulated_permutexvar_ps
#define _mm512_permutex2var_ps   emulated_permutex2var_ps
#define _mm512_permutexvar_epi16 emulated_permutexvar_epi16
#define _mm512_permutevar_ps     emulated_permutevar_ps
#define _mm512_broadcast_f32x4   emulated_broadcast_f32x4
#define _mm512_broadcast_f32x8   emulated_broadcast_f32x8
#define _mm512_broadcast_i64x4   emulated_broadcast_i64x4
#undef _mm512_i32gather_ps
#define _mm512_i32gather_ps(index, base, scale) (__m512) emulated_i32gather_epi32(index, base, scale)
#undef _mm512_i32gather_epi32
#define _mm512_i32gather_epi32 emulated_i32gather_epi32
#define _mm512_cvtepi32_epi8   emulated_cvtepi32_epi8
#define _mm512_loadu_si512     emulated_loadu_si512
#define _mm512_srli_epi16      emulated_srli_epi16
#define _mm512_madd_epi16      emulated_madd_epi16
#define _mm512_broadcast_i32x4 emulated_broadcast_i32x4
#define _mm512_shuffle_epi8    emulated_shuffle_epi8
#define _mm512_maddubs_epi16   emulated_maddubs_epi16
#define _mm512_reduce_add_ps   emulated_reduce_add_ps
#define _mm512_cvtph_ps        emulated_cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph emulated_cvtps_ph
