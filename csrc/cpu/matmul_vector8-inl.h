/* Products of a few rows with 8-bit weights whose codes are no integers, straight from the codes: what they stand for
 * is never written out. */
#include "simd.h"

enum { CODES8_ROWS = 4 }; /* the most rows of x */

static bool takes_vector8(const struct matmul_job *job) {
    return run_length(job, 8) == RUN && job->x.rows <= CODES8_ROWS;
}

/* As values_of, but the codes come in a word, for here x keeps the load ports busy too. */
INLINE floats values_of_word(table256 table, const uint8_t *codes) {
#if WIDTH == 16
    return values_of(table, codes);
#else
    floats   out;
    uint64_t packed = 0;
    memcpy(&packed, codes, WIDTH);
    for (int i = 0; i < WIDTH; i++) out[i] = table[(uint8_t)(packed >> 8 * i)];
    return out;
#endif
}

INLINE void multiply_codes8(const struct ordered_run *run, size_t first, size_t last, size_t rows) {
    const struct coded *q = &run->job->w.coded;
    size_t              columns = q->columns, runs = columns / RUN;
    table256            table = table256_of(q->code->values);
    struct known_runs   known;
    know_none(&known);
    for (size_t n = first; n < last; n++) {
        floats totals[CODES8_ROWS] = {0};
        size_t at = n * columns, block = at / q->block, next = block * q->block;
        float  scale = 0;
        for (size_t r = 0; r < runs; r++, at += RUN) {
            if (r == 0 || at == next) {
                scale = scale_of(q, block++);
                next += q->block;
            }
            const uint8_t *codes = q->codes + at;
            const float   *x = run->x + r * RUN;
            floats parts[CODES8_ROWS][2] = {0}; /* of one row two, so that a sum does not wait for the one before */
            __builtin_prefetch(codes + AHEAD);
#pragma unroll
            for (size_t v = 0; v < RUN / WIDTH; v++) {
                const uint8_t *from = codes + v * WIDTH;
                floats         w = values_of_word(table, from);
                for (size_t m = 0; m < rows; m++) {
                    floats *part = &parts[m][rows == 1 ? v % 2 : 0];
                    *part = fma(w, load_floats(x + m * columns + v * WIDTH), *part);
                }
            }
            for (size_t m = 0; m < rows; m++) totals[m] = fma(parts[m][0] + parts[m][1], (floats)scale, totals[m]);
        }
        if (q->offsets) add_offsets(&known, q, RUN, n, &run->sums, rows, totals);
        for (size_t m = 0; m < rows; m++) put_product(run->job, n, m, totals[m]);
    }
}

static void multiply_codes8_rows(const void *ordered_run, size_t first, size_t last) {
    const struct ordered_run *run = ordered_run;
    switch (run->job->x.rows) {
    case 1: multiply_codes8(run, first, last, 1); break;
    case 2: multiply_codes8(run, first, last, 2); break;
    case 3: multiply_codes8(run, first, last, 3); break;
    default: multiply_codes8(run, first, last, CODES8_ROWS); break;
    }
}

static bnb_status matmul_vector8(const struct matmul_job *job) { return run_ordered(job, RUN, multiply_codes8_rows); }
