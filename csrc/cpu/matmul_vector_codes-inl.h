/* Products of a few rows with weights of 2 to 8 bits but 4, whose codes become bytes. In fp32 they are looked up, or
 * not even that where they are integers, as GGUF's and MLX's are; MEDIUM multiplies such in int8 as they are, with x
 * rounded as for 4 bits. */
#include <stdlib.h>

#include "simd.h"

enum { CODES_ROWS = 4 /* the most rows of x in fp32 */ };

/* ── In fp32 ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* The length of runs of w where its codes are integers, or of so few bits that bytes can be looked up; else 0. */
static size_t bytes_run_length(const struct matmul_job *job) {
    const struct codebook *code = job->w.coded.code;
    if (code && !code->step) return is_kbits(code) ? run_length_of(job, SHORTEST_RUN) : 0;
    return least(codes_run_length(job), SHORT_RUN);
}

static bool takes_codes(const struct matmul_job *job) { return bytes_run_length(job) && job->x.rows <= CODES_ROWS; }

/* `bits`, a constant, is 0 for codes that are integers: these are not looked up. */
INLINE void multiply_codes(const struct ordered_run *run, uint32_t bits, size_t length, size_t first, size_t last,
                           size_t rows) {
    const struct matmul_job *job = run->job;
    const struct coded       q = job->w.coded;
    size_t                   runs = q.columns / length, columns = q.columns;
    float                    step = bits ? 1 : q.code->step;
    struct integers          by = integers_of(q.code);
    struct known_runs        scales_known, offsets_known;
    know_none(&scales_known), know_none(&offsets_known);
    for (size_t n = first; n < last; n++) {
        floats totals[CODES_ROWS] = {0};
        for (size_t begin = 0; begin < runs; begin += SEGMENT) {
            size_t         count = least(SEGMENT, runs - begin), at = (n * runs + begin) * length;
            uint8_t        unpacked[SEGMENT * RUN + BYTE_CHUNK];
            const float   *scales = runs_at(&scales_known, &q, SCALES, length, n * runs + begin, count, 1);
            const uint8_t *codes = bytes_of_codes(q.codes, q.code->bits, at, count * length, unpacked);
            for (size_t r = 0; r < count; r++, codes += length) {
                floats parts[CODES_ROWS] = {0};
                for (size_t i = 0; i < length; i += WIDTH) {
                    floats w = bits ? lookup_bits(q.code->values, bits, load_bytes(codes + i))
                                    : floats_of_integers(by, codes + i);
                    for (size_t m = 0; m < rows; m++) { /* past the last row of x, that row again */
                        const float *x = run->x + least(m, job->x.rows - 1) * columns + (begin + r) * length + i;
                        parts[m] = fma(w, load_floats(x), parts[m]);
                    }
                }
                floats scale = scales[r] * step;
                for (size_t m = 0; m < rows; m++) totals[m] = fma(parts[m], scale, totals[m]);
            }
        }
        if (q.offsets) add_offsets(&offsets_known, &q, length, n, &run->sums, job->x.rows, totals);
        for (size_t m = 0; m < job->x.rows; m++) put_product(job, n, m, totals[m]);
    }
}

/* Three and two rows are as fast as four. */
INLINE void multiply_codes_by(const struct ordered_run *run, uint32_t bits, size_t length, size_t first, size_t last) {
    if (run->job->x.rows == 1)
        multiply_codes(run, bits, length, first, last, 1);
    else
        multiply_codes(run, bits, length, first, last, CODES_ROWS);
}

static void multiply_codes_rows(const void *ordered_run, size_t first, size_t last) {
    const struct ordered_run *run = ordered_run;
    const struct codebook    *code = run->job->w.coded.code;
    if (code->step && run->length == SHORTEST_RUN)
        multiply_codes_by(run, 0, SHORTEST_RUN, first, last);
    else if (code->step)
        multiply_codes_by(run, 0, SHORT_RUN, first, last);
    else if (code->bits == 2)
        multiply_codes_by(run, 2, run->length, first, last);
    else if (code->bits == 3)
        multiply_codes_by(run, 3, run->length, first, last);
    else if (code->bits == 5)
        multiply_codes_by(run, 5, run->length, first, last);
    else if (code->bits == 6)
        multiply_codes_by(run, 6, run->length, first, last);
    else
        multiply_codes_by(run, 7, run->length, first, last);
}

static bnb_status matmul_codes(const struct matmul_job *job) {
    return run_ordered(job, bytes_run_length(job), multiply_codes_rows);
}

/* ── In int8 ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool takes_codes_bytes(const struct matmul_job *job) {
    return HAS_BYTES && codes_run_length(job) && job->x.rows <= VECTOR_ROWS;
}

INLINE void multiply_code_bytes(const struct vector_int_run *run, size_t first, size_t last, size_t rows) {
    const struct coded   q = run->job->w.coded;
    const struct rounded x = run->x;
    size_t               length = x.length, runs = q.columns / length;
    size_t               shift = (size_t)__builtin_ctzll(length);
    ints                 lane_run = runs_of_lanes(BYTE_CHUNK, length);
    struct known_runs    scales_known, offsets_known;
    know_none(&scales_known), know_none(&offsets_known);
    for (size_t n = first; n < last; n++) {
        floats totals[2][VECTOR_ROWS] = {0};
        for (size_t begin = 0; begin < runs; begin += SEGMENT) {
            size_t            count = least(SEGMENT, runs - begin), elements = count * length;
            uint8_t           unpacked[SEGMENT * RUN + BYTE_CHUNK];
            struct run_scales products;
            const float      *scales = runs_at(&scales_known, &q, SCALES, length, n * runs + begin, count, 1);
            multiply_scales(run, BYTES, scales, begin, count, rows, &products, totals[0]);
            const uint8_t *codes =
                bytes_of_codes(q.codes, q.code->bits, (n * runs + begin) * length, elements, unpacked);
            const uint8_t  *ahead = q.code->bits == 8 ? codes + AHEAD : codes;
            const uint32_t *factors = x.x.factors + begin * length / 4;
            for (size_t chunk = 0; chunk * BYTE_CHUNK < elements; chunk++, factors += WIDTH) {
                words w = (words)load_ints(codes + chunk * BYTE_CHUNK) ^ x.to.flip;
                __builtin_prefetch(ahead + chunk * BYTE_CHUNK);
                for (size_t m = 0; m < rows; m++) {
                    ints part = dot_bytes((ints)0, w, (words)load_ints(factors + m * x.x.stride));
                    totals[chunk % 2][m] =
                        fma(__builtin_convertvector(part, floats),
                            lane_scales(products.integers[m] + (chunk * BYTE_CHUNK >> shift), lane_run),
                            totals[chunk % 2][m]);
                }
            }
        }
        if (q.offsets) add_offsets(&offsets_known, &q, length, n, &run->sums, rows, totals[0]);
        put_row(run->job, n, rows, totals);
    }
}

static void multiply_code_bytes_rows(const void *vector_int_run, size_t first, size_t last) {
    const struct vector_int_run *run = vector_int_run;
    switch (run->job->x.rows) {
    case 1: multiply_code_bytes(run, first, last, 1); break;
    case 2: multiply_code_bytes(run, first, last, 2); break;
    case 3: multiply_code_bytes(run, first, last, 3); break;
    case 4: multiply_code_bytes(run, first, last, 4); break;
    default: multiply_code_bytes(run, first, last, run->job->x.rows); break;
    }
}

static bnb_status matmul_codes_bytes(const struct matmul_job *job) {
    struct rounding to = rounding_of_integers(job->w.coded.code, VECTOR_BYTES_MOST);
    return run_vector_int(job, &to, codes_run_length(job), multiply_code_bytes_rows);
}
