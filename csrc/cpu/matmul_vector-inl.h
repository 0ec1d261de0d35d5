/* Products of a few rows with 4-bit weights, straight from the codes: a register of them is decoded nibble by nibble,
 * and x lies in the order that this gives. The weights, which are most of what is read, are read once and in order. */
#include <stdlib.h>

#include "simd.h"

enum {
    VECTOR_ROWS = 8,       /* the most rows of x, */
    FEW_ROWS = 6,          /* and up to which decoding the weights first is no faster, unless they become bytes */
    VECTOR_WORK = 1 << 17, /* products for which a thread is worth calling: some ten microseconds */
    STACK = 4096,          /* floats of working space that the stack has room for: no call of malloc where x is short */
};

struct vector_run {
    const struct matmul_job *job;
    size_t                   stride; /* elements of a prepared row of x: whole chunks */
    const float             *x;      /* [rows, stride] */
    struct run_sums          sums;
};

static bool takes_vector_of(const struct matmul_job *job, size_t rows) {
    return run_length(job, 4) && job->x.rows <= rows;
}

static bool takes_vector(const struct matmul_job *job) { return takes_vector_of(job, FEW_ROWS); }

/* The most scales of a chunk: a lane's eight nibbles are neighbours, so there may be up to four. */
INLINE size_t chunk_scales(size_t length) { return CHUNK > length ? CHUNK / length : 1; }

/* They, lane by lane. */
INLINE floats chunk_scale(const float *scales, size_t length, size_t chunk) {
    const float *from = scales + chunk * CHUNK / length;
#if WIDTH == 16
    floats4 four = {from[0], from[1]};
    if (length == RUN) return __builtin_shufflevector(four, four, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    memcpy(&four, from, sizeof four);
    return __builtin_shufflevector(four, four, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
#elif WIDTH == 8
    floats4 first = *from, second = length == RUN ? first : (floats4)from[1];
    return __builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7);
#else
    return (floats)*from;
#endif
}

/* Fetches what follows the next `bytes` of codes by AHEAD. */
INLINE void fetch_ahead(const uint8_t *codes, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(codes + AHEAD + i);
}

/* With few rows of x, chunks take turns at two totals for each, so that no sum waits for the one before. */
#define TURNS(rows) ((rows) < 4)

/* Row n of w with row m of x: what the lanes of a total add up to. */
INLINE void put_product(const struct matmul_job *job, size_t n, size_t m, floats total) {
    float product = sum(total);
    put_element(job->y, job->x.dtype, m * job->w.coded.rows + n, job->bias ? product + job->bias[n] : product);
}

/* Row n of w with all rows of x. */
INLINE void put_row(const struct matmul_job *job, size_t n, size_t rows, floats totals[2][VECTOR_ROWS]) {
    for (size_t m = 0; m < rows; m++) put_product(job, n, m, totals[0][m] + totals[1][m]);
}

INLINE void multiply_floats_chunk(const struct vector_run *run, float_table table, const uint8_t *codes, const float *x,
                                  size_t rows, floats scale, floats totals[VECTOR_ROWS]) {
    floats w[8];
    decode_floats(table, (words)load_ints(codes), w);
    for (size_t m = 0; m < rows; m++) {
        floats parts[2] = {0};
        for (size_t i = 0; i < 8; i++)
            parts[i % 2] = fma(w[i], load_floats(x + m * run->stride + i * WIDTH), parts[i % 2]);
        totals[m] = fma(parts[0] + parts[1], scale, totals[m]);
    }
}

INLINE void multiply_floats(const struct vector_run *run, size_t length, size_t first, size_t last, size_t rows) {
    const struct coded q = run->job->w.coded; /* a copy, which no store can change */
    size_t             runs = q.columns / length;
    float_table        table = float_table_of(q.code->values);
    struct known_runs  scales_known, offsets_known;
    know_none(&scales_known), know_none(&offsets_known);
    for (size_t n = first; n < last; n++) {
        floats totals[2][VECTOR_ROWS] = {0};
        for (size_t begin = 0; begin < runs; begin += SEGMENT) {
            size_t       count = least(SEGMENT, runs - begin), chunks = (count * length + CHUNK - 1) / CHUNK, chunk = 0;
            const float *scales =
                runs_at(&scales_known, &q, SCALES, length, n * runs + begin, count, chunk_scales(length));
            const float   *x = run->x + begin * length;
            const uint8_t *codes = q.codes + (n * runs + begin) * (length / 2);
            for (; chunk + 2 <= chunks; chunk += 2, codes += CHUNK, x += 2 * CHUNK) {
                fetch_ahead(codes, CHUNK);
                multiply_floats_chunk(run, table, codes, x, rows, chunk_scale(scales, length, chunk), totals[0]);
                multiply_floats_chunk(run, table, codes + CHUNK / 2, x + CHUNK, rows,
                                      chunk_scale(scales, length, chunk + 1), totals[TURNS(rows)]);
            }
            if (chunk < chunks)
                multiply_floats_chunk(run, table, codes, x, rows, chunk_scale(scales, length, chunk), totals[0]);
        }
        if (q.offsets) add_offsets(&offsets_known, &q, length, n, &run->sums, rows, totals[0]);
        put_row(run->job, n, rows, totals);
    }
}

INLINE void multiply_floats_by(const struct vector_run *run, size_t length, size_t first, size_t last) {
    switch (run->job->x.rows) {
    case 1: multiply_floats(run, length, first, last, 1); break;
    case 2: multiply_floats(run, length, first, last, 2); break;
    case 3: multiply_floats(run, length, first, last, 3); break;
    case 4: multiply_floats(run, length, first, last, 4); break;
    case 5: multiply_floats(run, length, first, last, 5); break;
    default: multiply_floats(run, length, first, last, FEW_ROWS); break;
    }
}

static void multiply_floats_rows(const void *vector_run, size_t first, size_t last) {
    const struct vector_run *run = vector_run;
    if (run_length(run->job, 4) == RUN)
        multiply_floats_by(run, RUN, first, last);
    else
        multiply_floats_by(run, SHORT_RUN, first, last);
}

/* x in the order in which a chunk is decoded: the first elements of all lanes, then the second ones. */
static void order_floats(const struct dense *x, size_t stride, float *to) {
    ints lanes;
    for (int lane = 0; lane < WIDTH; lane++) lanes[lane] = lane * 8;
    for (size_t m = 0; m < x->rows; m++)
        for (size_t chunk = 0; chunk < stride; chunk += CHUNK, to += CHUNK) {
            size_t       at = m * x->columns + chunk, count = least(CHUNK, x->columns - chunk);
            const float *from = (const float *)x->data + at;
            float        local[CHUNK];
            if (x->dtype != BNB_F32 || count < CHUNK) {
                widen(x, at, at + count, local);
                memset(local + count, 0, (CHUNK - count) * sizeof *local);
                from = local;
            }
            for (size_t i = 0; i < 8; i++) store(to, BNB_F32, i * WIDTH, gather(from + i, lanes));
        }
}

static bnb_status matmul_vector(const struct matmul_job *job) {
    size_t            rows = job->x.rows, columns = job->x.columns, stride = round_up(columns, CHUNK);
    size_t            length = run_length(job, 4), summed = sums_stride(job, length);
    size_t            bytes = round_up(rows * (stride + summed) * sizeof(float), 64);
    alignas(64) float local[STACK];
    float            *x = bytes <= sizeof local ? local : aligned_alloc(64, bytes);
    if (!x) return no_working_space("matmul", bytes);
    float *sums = x + rows * stride;
    order_floats(&job->x, stride, x);
    if (summed) sum_runs(&job->x, length, summed, sums);
    struct vector_run run = {job, stride, x, {sums, summed}};
    parallel_for(job->w.coded.rows, VECTOR_WORK / (columns * rows) + 1, multiply_floats_rows, &run);
    if (x != local) free(x);
    return BNB_OK;
}

/* ── Rows of x in order, for codes of other widths ──────────────────────────────────────────────────────────────── */

struct ordered_run {
    const struct matmul_job *job;
    const float             *x; /* [rows, columns] */
    size_t                   length;
    struct run_sums          sums;
};

/* Calls `body` with rows [first, last) of w, whose runs are of that length, and an ordered_run. */
static bnb_status run_ordered(const struct matmul_job *job, size_t length,
                              void (*body)(const void *run, size_t first, size_t last)) {
    size_t count = job->x.rows * job->x.columns, summed = sums_stride(job, length), wide = round_up(count, 16);
    if (job->x.dtype == BNB_F32) wide = 0;
    size_t            bytes = round_up((wide + job->x.rows * summed) * sizeof(float), 64);
    alignas(64) float local[STACK];
    float            *scratch = bytes <= sizeof local ? local : aligned_alloc(64, bytes), *sums = scratch + wide;
    if (!scratch) return no_working_space("matmul", bytes);
    if (wide) widen(&job->x, 0, count, scratch);
    if (summed) sum_runs(&job->x, length, summed, sums);
    struct ordered_run run = {job, wide ? scratch : job->x.data, length, {sums, summed}};
    parallel_for(job->w.coded.rows, VECTOR_WORK / count + 1, body, &run);
    if (scratch != local) free(scratch);
    return BNB_OK;
}
