/* Products of a few rows with 4-bit weights, straight from the codes: a register of them is decoded nibble by nibble,
 * and x lies in the order that this gives. The weights, which are most of what is read, are read once and in order. */
#include <float.h>
#include <stdlib.h>

#include "simd.h"

enum {
    VECTOR_ROWS = 4,  /* the most rows of x */
    SCALED      = 64, /* elements that surely have one scale: a block is a multiple */
    SEGMENT     = 64, /* runs of that many whose scales are worked out at once */
    LEVELS      = 16383, /* int16 magnitudes: eight products of two such add up in an int32 */
    AHEAD       = 4096,  /* bytes to prefetch ahead */
};

struct vector_run {
    const struct matmul_job *job;
    size_t         stride;   /* elements of a prepared row of x: whole chunks */
    size_t         scaled;   /* scales of a row of x: whole chunks' worth */
    const float   *x;        /* one of the two: [rows, stride] */
    const int16_t *x16;      /* what x[k] / x_scales[k / SCALED] rounds to */
    const float   *x_scales; /* [rows, scaled], times a step of the codebook's int16 values */
    int16_t        values[16];
};

static bool takes_vector(const struct matmul_job *job) {
    return job->q.code && job->q.code->bits == 4 && job->x.rows <= VECTOR_ROWS && job->x.columns % SCALED == 0 &&
           job->q.block % SCALED == 0;
}

/* The scales of runs [first, first + count) of SCALED weights, with a zero after an odd count. */
INLINE const float *scales_at(const struct coded *q, size_t first, size_t count, float local[SEGMENT]) {
    if (q->absmax && q->block == SCALED && count % 2 == 0) return q->absmax + first;
    size_t runs = q->block / SCALED;
    for (size_t i = 0; i < count; i++) local[i] = scale_of(q, (first + i) / runs);
    if (count % 2) local[count] = 0;
    return local;
}

/* A chunk's scale, lane by lane: a lane's eight nibbles are neighbours, so a chunk may have two. */
INLINE floats chunk_scale(const float *scales, size_t chunk) {
#if WIDTH == 16
    typedef VECTOR(float, 2) floats2;
    floats2 both = {scales[chunk * 2], scales[chunk * 2 + 1]};
    return __builtin_shufflevector(both, both, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
#else
    return scales[chunk * CHUNK / SCALED];
#endif
}

INLINE void put_row(const struct matmul_job *job, size_t n, size_t rows, const floats totals[VECTOR_ROWS]) {
    for (size_t m = 0; m < rows; m++) {
        float total = sum(totals[m]);
        put_element(job->y, job->x.dtype, m * job->q.rows + n, job->bias ? total + job->bias[n] : total);
    }
}

/* ── HIGHEST: products in fp32 ──────────────────────────────────────────────────────────────────────────────────── */

INLINE void multiply_floats(const struct vector_run *run, size_t first, size_t last, size_t rows) {
    const struct coded *q = &run->job->q;
    size_t runs = q->columns / SCALED;
    table16 table = table16_of(q->code->values);
    for (size_t n = first; n < last; n++) {
        floats totals[VECTOR_ROWS] = {0};
        for (size_t begin = 0; begin < runs; begin += SEGMENT) {
            size_t count = least(SEGMENT, runs - begin), chunks = (count * SCALED + CHUNK - 1) / CHUNK;
            float local[SEGMENT];
            const float *scales = scales_at(q, n * runs + begin, count, local), *x = run->x + begin * SCALED;
            const uint8_t *codes = q->codes + (n * runs + begin) * (SCALED / 2);
            for (size_t chunk = 0; chunk < chunks; chunk++, codes += CHUNK / 2, x += CHUNK) {
                words packed = (words)load_ints(codes);
                __builtin_prefetch(codes + AHEAD);
                floats parts[VECTOR_ROWS][2] = {0}; /* of one row two, so that a sum does not wait for the one before */
                for (size_t nibble = 0; nibble < 8; nibble++) {
                    floats w = lookup16(table, (ints)(packed >> (uint32_t)(4 * nibble)));
                    for (size_t m = 0; m < rows; m++) {
                        floats *part = &parts[m][rows == 1 ? nibble % 2 : 0];
                        *part = fma(w, load_floats(x + m * run->stride + nibble * WIDTH), *part);
                    }
                }
                floats scale = chunk_scale(scales, chunk);
                for (size_t m = 0; m < rows; m++) totals[m] = fma(parts[m][0] + parts[m][1], scale, totals[m]);
            }
        }
        put_row(run->job, n, rows, totals);
    }
}

static void multiply_floats_rows(const void *vector_run, size_t first, size_t last) {
    const struct vector_run *run = vector_run;
    switch (run->job->x.rows) {
    case 1: multiply_floats(run, first, last, 1); break;
    case 2: multiply_floats(run, first, last, 2); break;
    case 3: multiply_floats(run, first, last, 3); break;
    default: multiply_floats(run, first, last, 4); break;
    }
}

/* x in the order in which nibbles come: nibble k of lane i is element 8i + (k ^ 1), the high one being first. */
static void order_floats(const struct dense *x, size_t stride, float *to) {
    for (size_t m = 0; m < x->rows; m++)
        for (size_t chunk = 0; chunk < stride; chunk += CHUNK)
            for (size_t nibble = 0; nibble < 8; nibble++)
                for (size_t lane = 0; lane < WIDTH; lane++) {
                    size_t k = chunk + lane * 8 + (nibble ^ 1);
                    *to++ = k < x->columns ? element_of(x, m * x->columns + k) : 0;
                }
}

/* ── HIGH: products of int16, a scale for each SCALED elements of x ─────────────────────────────────────────────── */

/* Whether int16 can stand for x: not where a number is infinite or NaN, or a run's largest too small for a scale. */
static bool takes_vector_int16(const struct matmul_job *job) {
    if (!takes_vector(job)) return false;
    size_t count = job->x.rows * job->x.columns;
    for (size_t i = 0; i < count; i += SCALED) {
        float absmax = 0;
        switch (job->x.dtype) {
        case BNB_F16: absmax = absmax_of(&job->x, BNB_F16, i, SCALED); break;
        case BNB_BF16: absmax = absmax_of(&job->x, BNB_BF16, i, SCALED); break;
        default: absmax = absmax_of(&job->x, BNB_F32, i, SCALED); break;
        }
        if (absmax != 0 && !(absmax >= 1e-30f && absmax <= FLT_MAX)) return false;
    }
    return true;
}

INLINE void multiply_shorts(const struct vector_run *run, size_t first, size_t last, size_t rows) {
    const struct coded *q = &run->job->q;
    size_t runs = q->columns / SCALED;
    code_table table = code_table_of(run->values);
    for (size_t n = first; n < last; n++) {
        floats totals[VECTOR_ROWS] = {0};
        for (size_t begin = 0; begin < runs; begin += SEGMENT) {
            size_t count = least(SEGMENT, runs - begin), chunks = (count * SCALED + CHUNK - 1) / CHUNK;
            float local[SEGMENT], products[VECTOR_ROWS][SEGMENT];
            const float *scales = scales_at(q, n * runs + begin, count, local);
            for (size_t m = 0; m < rows; m++)
                for (size_t i = 0; i < count + count % 2; i++)
                    products[m][i] = scales[i] * run->x_scales[m * run->scaled + begin + i];
            const uint8_t *codes = q->codes + (n * runs + begin) * (SCALED / 2);
            const int16_t *x = run->x16 + begin * SCALED;
            for (size_t chunk = 0; chunk < chunks; chunk++, codes += CHUNK / 2, x += CHUNK) {
                shorts w[4];
                decode_shorts(table, codes, w);
                __builtin_prefetch(codes + AHEAD);
                for (size_t m = 0; m < rows; m++) {
                    ints part = 0;
                    for (size_t v = 0; v < 4; v++)
                        part = dot2(part, w[v], load_shorts(x + m * run->stride + v * 2 * WIDTH));
                    totals[m] = fma(__builtin_convertvector(part, floats), chunk_scale(products[m], chunk), totals[m]);
                }
            }
        }
        put_row(run->job, n, rows, totals);
    }
}

static void multiply_shorts_rows(const void *vector_run, size_t first, size_t last) {
    const struct vector_run *run = vector_run;
    switch (run->job->x.rows) {
    case 1: multiply_shorts(run, first, last, 1); break;
    case 2: multiply_shorts(run, first, last, 2); break;
    case 3: multiply_shorts(run, first, last, 3); break;
    default: multiply_shorts(run, first, last, 4); break;
    }
}

/* To the nearest integer, ties to even; exact for magnitudes below 2^22. */
INLINE int16_t round_to_short(float v) { return (int16_t)(v + 0x1.8p23f - 0x1.8p23f); }

static void order_shorts(const struct dense *x, float step, size_t stride, int16_t *to, size_t scaled, float *scales) {
    for (size_t m = 0; m < x->rows; m++) {
        for (size_t run = 0; run < scaled; run++) {
            float absmax = 0;
            for (size_t k = run * SCALED; k < least((run + 1) * SCALED, x->columns); k++)
                absmax = __builtin_fmaxf(absmax, __builtin_fabsf(element_of(x, m * x->columns + k)));
            scales[m * scaled + run] = absmax / LEVELS;
        }
        for (size_t slot = 0; slot < stride; slot++) {
            size_t k = slot / CHUNK * CHUNK + element_in_slot(slot % CHUNK);
            float scale = scales[m * scaled + k / SCALED];
            *to++ = scale ? round_to_short(element_of(x, m * x->columns + k) / scale) : 0;
        }
        for (size_t run = 0; run < scaled; run++) scales[m * scaled + run] *= step;
    }
}

/* The codebook as int16; gives the value of a step. */
static float shorts_of(const struct codes *code, int16_t values[16]) {
    float largest = 0;
    for (int i = 0; i < 16; i++) largest = __builtin_fmaxf(largest, __builtin_fabsf(code->values[i]));
    for (int i = 0; i < 16; i++) values[i] = largest ? round_to_short(code->values[i] / largest * LEVELS) : 0;
    return largest / LEVELS;
}

/* ── Running either ─────────────────────────────────────────────────────────────────────────────────────────────── */

static bnb_status run_vector(const struct matmul_job *job, bool floating) {
    size_t rows = job->x.rows, columns = job->x.columns;
    size_t stride = round_up(columns, CHUNK), scaled = round_up(stride / SCALED, 2);
    size_t elements = rows * stride * (floating ? sizeof(float) : sizeof(int16_t));
    size_t bytes = elements + rows * scaled * sizeof(float);
    char *scratch = aligned_alloc(64, round_up(bytes, 64));
    if (!scratch)
        return fail(BNB_OUT_OF_MEMORY, "matmul: no memory for %zu bytes of working space; free something and try again",
                    bytes);
    struct vector_run run = {.job = job, .stride = stride, .scaled = scaled};
    size_t grain = (1 << 17) / (columns * rows) + 1; /* some ten microseconds */
    if (floating) {
        order_floats(&job->x, stride, (float *)scratch);
        run.x = (float *)scratch;
        parallel_for(job->q.rows, grain, multiply_floats_rows, &run);
    } else {
        float step = shorts_of(job->q.code, run.values);
        run.x16 = (int16_t *)scratch, run.x_scales = (float *)(scratch + elements);
        order_shorts(&job->x, step, stride, (int16_t *)scratch, scaled, (float *)(scratch + elements));
        parallel_for(job->q.rows, grain, multiply_shorts_rows, &run);
    }
    free(scratch);
    return BNB_OK;
}

static bnb_status matmul_vector(const struct matmul_job *job) { return run_vector(job, true); }
static bnb_status matmul_vector_int16(const struct matmul_job *job) { return run_vector(job, false); }
