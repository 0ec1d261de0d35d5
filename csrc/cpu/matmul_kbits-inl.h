/* Products of a few rows with weights of 2, 3, 5, 6 or 7 bits, straight from the codes, in fp32: the weights, which are
 * most of what is read, are read once and in order. */
#include "simd.h"

enum { KBITS_ROWS = 4 /* the most rows of x */, KBITS_RUN = 32 };

/* Rows are whole thirty-twos, and so is every block: no 32 elements have two scales. */
static bool takes_kbits(const struct matmul_job *job) {
    return job->w.coded.code && is_kbits(job->w.coded.code) && job->x.rows <= KBITS_ROWS &&
           job->x.columns % KBITS_RUN == 0 && job->w.coded.block % KBITS_RUN == 0;
}

/* sums[m] += x[m, k…] · `count` weights from `codes` on, before their scale. */
INLINE void multiply_run(const struct ordered_run *run, const uint8_t *codes, uint32_t bits, size_t k, size_t count,
                         size_t rows, floats sums[KBITS_ROWS]) {
    const float *values = run->job->w.coded.code->values, *x[KBITS_ROWS]; /* past the last row, that row again */
    for (size_t m = 0; m < rows; m++) x[m] = run->x + least(m, run->job->x.rows - 1) * run->job->x.columns + k;
    floats other[KBITS_ROWS] = {0}; /* so that a sum does not wait for the one before */
    for (size_t i = 0; i < count; i += 32)
        for (size_t group = 0; group < 32 / GROUP; group++, codes += GROUP / 8 * bits) {
            floats w[GROUP_VECTORS];
            load_values(codes, bits, values, w);
            for (size_t v = 0; v < GROUP_VECTORS; v++)
                for (size_t m = 0; m < rows; m++) {
                    floats *sum_of = (group + v) % 2 ? &other[m] : &sums[m];
                    *sum_of = fma(w[v], load_floats(x[m] + i + group * GROUP + v * WIDTH), *sum_of);
                }
        }
    for (size_t m = 0; m < rows; m++) sums[m] += other[m];
}

INLINE void multiply_kbits(const struct ordered_run *run, size_t first, size_t last, uint32_t bits, size_t rows) {
    const struct matmul_job *job = run->job;
    const struct coded      *q = &job->w.coded;
    struct known_runs        known;
    know_none(&known);
    for (size_t n = first; n < last; n++) {
        floats totals[KBITS_ROWS] = {0};
        for (size_t at = n * q->columns, end = at + q->columns, count; at < end; at += count) {
            size_t block = at / q->block;
            floats sums[KBITS_ROWS] = {0};
            count = least((block + 1) * q->block, end) - at;
            multiply_run(run, q->codes + at / 8 * bits, bits, at - n * q->columns, count, rows, sums);
            float scale = scale_of(q, block);
            for (size_t m = 0; m < rows; m++) totals[m] = fma(sums[m], (floats)scale, totals[m]);
        }
        if (q->offsets) add_offsets(&known, q, run->length, n, &run->sums, job->x.rows, totals);
        for (size_t m = 0; m < job->x.rows; m++) put_product(job, n, m, totals[m]);
    }
}

/* Three and two rows are as fast as four. */
INLINE void multiply_kbits_rows(const struct ordered_run *run, size_t first, size_t last, uint32_t bits) {
    if (run->job->x.rows == 1)
        multiply_kbits(run, first, last, bits, 1);
    else
        multiply_kbits(run, first, last, bits, KBITS_ROWS);
}

static void multiply_kbits_of(const void *ordered_run, size_t first, size_t last) {
    const struct ordered_run *run = ordered_run;
    switch (run->job->w.coded.code->bits) {
    case 2: multiply_kbits_rows(run, first, last, 2); break;
    case 3: multiply_kbits_rows(run, first, last, 3); break;
    case 5: multiply_kbits_rows(run, first, last, 5); break;
    case 6: multiply_kbits_rows(run, first, last, 6); break;
    default: multiply_kbits_rows(run, first, last, 7); break;
    }
}

static bnb_status matmul_kbits(const struct matmul_job *job) { return run_ordered(job, KBITS_RUN, multiply_kbits_of); }
