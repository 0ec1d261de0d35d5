/* Products of a few rows with 8-bit weights, straight from the codes: what they stand for is never written out. */
#include <stdlib.h>

#include "simd.h"

enum { CODES8_ROWS = 4 }; /* the most rows of x */

struct vector8_run {
    const struct matmul_job *job;
    const float *x; /* [rows, columns] */
};

static bool takes_vector8(const struct matmul_job *job) {
    return job->q.code && job->q.code->bits == 8 && job->x.rows <= CODES8_ROWS && job->x.columns % SCALED == 0 &&
           job->q.block % SCALED == 0;
}

/* As values_of, but the codes come in a word, for here x keeps the load ports busy too. */
INLINE floats values_of_word(const float *values, const uint8_t *codes) {
#if WIDTH == 16
    return values_of(values, codes);
#else
    floats   out;
    uint64_t packed = 0;
    memcpy(&packed, codes, WIDTH);
    for (int i = 0; i < WIDTH; i++) out[i] = values[(uint8_t)(packed >> 8 * i)];
    return out;
#endif
}

INLINE void multiply_codes8(const struct vector8_run *run, size_t first, size_t last, size_t rows, bool stepped) {
    const struct coded *q = &run->job->q;
    size_t columns = q->columns, runs = columns / SCALED;
    for (size_t n = first; n < last; n++) {
        floats totals[CODES8_ROWS] = {0};
        size_t at = n * columns, block = at / q->block, next = block * q->block;
        float  scale = 0;
        for (size_t r = 0; r < runs; r++, at += SCALED) {
            if (r == 0 || at == next) {
                scale = scale_of(q, block++) * (stepped ? q->code->step : 1);
                next += q->block;
            }
            const uint8_t *codes = q->codes + at;
            const float *x = run->x + r * SCALED;
            floats parts[CODES8_ROWS][2] = {0}; /* of one row two, so that a sum does not wait for the one before */
            __builtin_prefetch(codes + AHEAD);
#pragma unroll
            for (size_t v = 0; v < SCALED / WIDTH; v++) {
                const uint8_t *from = codes + v * WIDTH;
                floats w = stepped ? load_signed_bytes((const int8_t *)from) : values_of_word(q->code->values, from);
                for (size_t m = 0; m < rows; m++) {
                    floats *part = &parts[m][rows == 1 ? v % 2 : 0];
                    *part = fma(w, load_floats(x + m * columns + v * WIDTH), *part);
                }
            }
            for (size_t m = 0; m < rows; m++) totals[m] = fma(parts[m][0] + parts[m][1], (floats)scale, totals[m]);
        }
        for (size_t m = 0; m < rows; m++) {
            float total = sum(totals[m]);
            put_element(run->job->y, run->job->x.dtype, m * q->rows + n, run->job->bias ? total + run->job->bias[n] : total);
        }
    }
}

INLINE void multiply_codes8_by(const struct vector8_run *run, size_t first, size_t last, bool stepped) {
    switch (run->job->x.rows) {
    case 1: multiply_codes8(run, first, last, 1, stepped); break;
    case 2: multiply_codes8(run, first, last, 2, stepped); break;
    case 3: multiply_codes8(run, first, last, 3, stepped); break;
    default: multiply_codes8(run, first, last, CODES8_ROWS, stepped); break;
    }
}

static void multiply_codes8_rows(const void *vector8_run, size_t first, size_t last) {
    const struct vector8_run *run = vector8_run;
    const struct codes *code = run->job->q.code;
    if (code->step) multiply_codes8_by(run, first, last, true);
    else multiply_codes8_by(run, first, last, false);
}

static bnb_status matmul_vector8(const struct matmul_job *job) {
    size_t count = job->x.rows * job->x.columns, grain = (1 << 17) / count + 1; /* some ten microseconds */
    struct vector8_run run = {job, job->x.data};
    float *wide = NULL;
    if (job->x.dtype != BNB_F32) {
        size_t bytes = round_up(count * sizeof *wide, 64);
        run.x = wide = aligned_alloc(64, bytes);
        if (!wide)
            return fail(BNB_OUT_OF_MEMORY, "matmul: no memory for %zu bytes of working space; free something and try again", bytes);
        widen(&job->x, 0, count, wide);
    }
    parallel_for(job->q.rows, grain, multiply_codes8_rows, &run);
    free(wide);
    return BNB_OK;
}
