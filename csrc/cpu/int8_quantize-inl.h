/* LLM.int8()'s quantising and dequantising: outlier columns, each row's largest magnitude, its codes, and back. */
#include "simd.h"

/* All bits of a lane where a magnitude, given as bits, reaches the threshold. */
INLINE ints reaching(ints magnitude, float threshold) { return (floats)magnitude >= threshold; }

/* Outliers are rare: 64 elements are looked at together before each is. */
INLINE void outliers_of(const struct int8_outliers_job *job, size_t first, size_t last, bnb_dtype dtype) {
    const struct dense *x = &job->x;
    for (size_t row = first; row < last; row++) {
        size_t at = row * x->columns, c = 0;
        for (; c + 64 <= x->columns; c += 64) {
            ints any = 0;
            for (size_t i = 0; i < 64; i += WIDTH)
                any |= reaching((ints)load(x->data, dtype, at + c + i) & 0x7fffffff, job->threshold);
            if (__builtin_reduce_or(any)) flag_outliers(job, row, c, c + 64);
        }
        flag_outliers(job, row, c, x->columns);
    }
}

static void int8_outliers(const void *int8_outliers_job, size_t first_row, size_t last_row) {
    const struct int8_outliers_job *job = int8_outliers_job;
    switch (job->x.dtype) {
    case BNB_F16: outliers_of(job, first_row, last_row, BNB_F16); break;
    case BNB_BF16: outliers_of(job, first_row, last_row, BNB_BF16); break;
    default: outliers_of(job, first_row, last_row, BNB_F32); break;
    }
}

/* Compared as integers, a NaN is above an infinity, and that above every number. */
INLINE float stats_of(const struct dense *x, bnb_dtype dtype, size_t first, float threshold) {
    ints   largest = 0;
    size_t i = first, last = first + x->columns;
    for (; i + WIDTH <= last; i += WIDTH) {
        ints magnitude = (ints)load(x->data, dtype, i) & 0x7fffffff;
        largest = __builtin_elementwise_max(largest, magnitude & ~reaching(magnitude, threshold));
    }
    uint32_t bits = (uint32_t)__builtin_reduce_max(largest);
    for (; i < last; i++) {
        float    magnitude = __builtin_fabsf(element_of(x, i));
        uint32_t these = magnitude >= threshold ? 0 : float_bits(magnitude);
        bits = these > bits ? these : bits;
    }
    return bits_float(bits);
}

/* The codes of 32 elements, as int8_code gives them. */
INLINE bytes32 int8_codes_of(const void *x, bnb_dtype dtype, size_t i, float factor, float threshold) {
    ints codes[VECTORS_OF_32];
    for (int v = 0; v < VECTORS_OF_32; v++) {
        floats element = load(x, dtype, i + (size_t)v * WIDTH), code = element * factor;
        code = code < 127 ? code : (floats)127;
        code = code > -127 ? code : (floats)-127;
        /* The sum's lowest bits are the integer. */
        codes[v] = (ints)(code + 0x1.8p23f) & 0xff & ~reaching((ints)element & 0x7fffffff, threshold);
    }
    return narrow(codes);
}

INLINE void quantize_rows(const struct int8_quantize_job *job, size_t first, size_t last, bnb_dtype dtype) {
    size_t columns = job->x.columns;
    for (size_t row = first; row < last; row++) {
        size_t i = row * columns, end = i + columns;
        if (job->finds) job->stats[row] = stats_of(&job->x, dtype, i, job->threshold);
        if (!job->codes) continue;
        float factor = int8_factor(job->stats[row]);
        for (; i + 32 <= end; i += 32) {
            bytes32 codes = int8_codes_of(job->x.data, dtype, i, factor, job->threshold);
            memcpy(job->codes + i, &codes, sizeof codes);
        }
        for (; i < end; i++) job->codes[i] = int8_code(element_of(&job->x, i), factor, job->threshold);
        for (size_t o = 0; o < job->outlier_count; o++) job->codes[row * columns + (size_t)job->outliers[o]] = 0;
    }
}

static void int8_quantize(const void *int8_quantize_job, size_t first_row, size_t last_row) {
    const struct int8_quantize_job *job = int8_quantize_job;
    switch (job->x.dtype) {
    case BNB_F16: quantize_rows(job, first_row, last_row, BNB_F16); break;
    case BNB_BF16: quantize_rows(job, first_row, last_row, BNB_BF16); break;
    default: quantize_rows(job, first_row, last_row, BNB_F32); break;
    }
}

INLINE void dequantize_rows(const struct int8_dequantize_job *job, size_t first, size_t last, bnb_dtype dtype) {
    for (size_t row = first; row < last; row++) {
        float  stats = job->stats[row];
        size_t i = row * job->columns, end = i + job->columns;
        for (; i + WIDTH <= end; i += WIDTH)
            store(job->y, dtype, i, load_signed_bytes(job->codes + i) * stats * 7.874015718698502e-3f);
        for (; i < end; i++) put_element(job->y, dtype, i, int8_weight(job->codes[i], stats));
    }
}

static void int8_dequantize(const void *int8_dequantize_job, size_t first_row, size_t last_row) {
    const struct int8_dequantize_job *job = int8_dequantize_job;
    switch (job->dtype) {
    case BNB_F16: dequantize_rows(job, first_row, last_row, BNB_F16); break;
    case BNB_BF16: dequantize_rows(job, first_row, last_row, BNB_BF16); break;
    default: dequantize_rows(job, first_row, last_row, BNB_F32); break;
    }
}
