/* Products of a few rows with weights whose codes are integers, GGUF's and MLX's of 2 to 8 bits but 4: no code is
 * looked up. HIGHEST is in fp32; MEDIUM in int8, with x rounded as for 4 bits and codes as they are. */
#include <stdlib.h>

#include "simd.h"

enum { CODES_ROWS = 4 /* the most rows of x in fp32 */ };

/* ── In fp32 ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool takes_codes(const struct matmul_job *job) { return codes_run_length(job) && job->x.rows <= CODES_ROWS; }

INLINE void multiply_codes(const struct ordered_run *run, size_t length, size_t first, size_t last, size_t rows) {
    const struct matmul_job *job = run->job;
    const struct coded       q = job->w.coded;
    size_t                   runs = q.columns / length, columns = q.columns;
    float                    step = q.code->step;
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
                    floats w = floats_of_integers(by, codes + i);
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

static void multiply_codes_rows(const void *ordered_run, size_t first, size_t last) {
    const struct ordered_run *run = ordered_run;
    if (run->job->x.rows > 1 && run->length == SHORTEST_RUN)
        multiply_codes(run, SHORTEST_RUN, first, last, CODES_ROWS);
    else if (run->job->x.rows > 1)
        multiply_codes(run, SHORT_RUN, first, last, CODES_ROWS);
    else if (run->length == SHORTEST_RUN)
        multiply_codes(run, SHORTEST_RUN, first, last, 1);
    else
        multiply_codes(run, SHORT_RUN, first, last, 1);
}

static bnb_status matmul_codes(const struct matmul_job *job) {
    return run_ordered(job, least(codes_run_length(job), SHORT_RUN), multiply_codes_rows);
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
