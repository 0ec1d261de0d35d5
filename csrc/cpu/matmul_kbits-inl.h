/* Products of a few rows with weights of 2, 3, 5, 6 or 7 bits whose codes are no integers, in fp32: they become bytes,
 * and are looked up. */
#include "simd.h"

enum { KBITS_ROWS = 4 /* the most rows of x */ };

static size_t kbits_run_length(const struct matmul_job *job) {
    const struct codebook *code = job->w.coded.code;
    return code && is_kbits(code) ? run_length_of(job, SHORTEST_RUN) : 0;
}

static bool takes_kbits(const struct matmul_job *job) { return kbits_run_length(job) && job->x.rows <= KBITS_ROWS; }

INLINE void multiply_kbits(const struct ordered_run *run, size_t first, size_t last, uint32_t bits, size_t rows) {
    const struct matmul_job *job = run->job;
    const struct coded       q = job->w.coded;
    size_t                   length = run->length, runs = q.columns / length;
    struct known_runs        scales_known, offsets_known;
    know_none(&scales_known), know_none(&offsets_known);
    for (size_t n = first; n < last; n++) {
        floats totals[KBITS_ROWS] = {0};
        for (size_t begin = 0; begin < runs; begin += SEGMENT) {
            size_t         count = least(SEGMENT, runs - begin), at = (n * runs + begin) * length;
            uint8_t        unpacked[SEGMENT * RUN + BYTE_CHUNK];
            const float   *scales = runs_at(&scales_known, &q, SCALES, length, n * runs + begin, count, 1);
            const uint8_t *codes = bytes_of_codes(q.codes, bits, at, count * length, unpacked);
            for (size_t r = 0; r < count; r++, codes += length) {
                floats parts[KBITS_ROWS] = {0};
                for (size_t i = 0; i < length; i += WIDTH) {
                    floats w = lookup_bits(q.code->values, bits, load_bytes(codes + i));
                    for (size_t m = 0; m < rows; m++) { /* past the last row of x, that row again */
                        const float *x = run->x + least(m, job->x.rows - 1) * q.columns + (begin + r) * length + i;
                        parts[m] = fma(w, load_floats(x), parts[m]);
                    }
                }
                for (size_t m = 0; m < rows; m++) totals[m] = fma(parts[m], (floats)scales[r], totals[m]);
            }
        }
        if (q.offsets) add_offsets(&offsets_known, &q, length, n, &run->sums, job->x.rows, totals);
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

static bnb_status matmul_kbits(const struct matmul_job *job) {
    return run_ordered(job, kbits_run_length(job), multiply_kbits_of);
}
