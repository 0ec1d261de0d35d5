/* Products of a few rows with 4-bit weights, straight from the codes: a register of them is decoded nibble by nibble,
 * and x lies in the order that this gives. The weights, which are most of what is read, are read once and in order. */
#include <stdlib.h>

#include "simd.h"

enum {
    VECTOR_ROWS = 8,       /* the most rows of x, */
    FEW_ROWS    = 6,       /* and up to which decoding the weights first is no faster, unless they become bytes */
    SEGMENT     = 64,      /* runs of SCALED weights whose scales are worked out at once */
    VECTOR_WORK = 1 << 17, /* products for which a thread is worth calling: some ten microseconds */
    AHEAD       = 4096,    /* bytes to prefetch ahead */
    STACK       = 4096,    /* floats of working space that the stack has room for: no call of malloc where x is short */
};

struct vector_run {
    const struct matmul_job *job;
    size_t       stride; /* elements of a prepared row of x: whole chunks */
    const float *x;      /* [rows, stride] */
};

/* Whether w has codes of so many bits, and nothing but one scale for SCALED elements of each row. */
static bool is_in_runs(const struct matmul_job *job, uint32_t bits) {
    return job->q.code && job->q.code->bits == bits && !job->q.offsets && job->x.columns % SCALED == 0 && job->q.block % SCALED == 0;
}

static bool takes_vector_of(const struct matmul_job *job, size_t rows) {
    return is_in_runs(job, 4) && job->x.rows <= rows;
}

static bool takes_vector(const struct matmul_job *job) { return takes_vector_of(job, FEW_ROWS); }

/* The scales of runs [first, first + count) of SCALED weights, with zeros up to a multiple of `whole`, a constant. */
INLINE const float *scales_at(const struct coded *q, size_t first, size_t count, size_t whole, float local[SEGMENT]) {
    if (q->absmax && q->block == SCALED && count % whole == 0) return q->absmax + first;
    size_t runs = q->block / SCALED, block = runs == 1 ? first : first / runs, next = (block + 1) * runs - first;
    size_t group = group_of(q, block), end = (group + 1) * q->nested_block;
    for (size_t i = 0; i < count; i++) {
        if (i == next) {
            next += runs;
            if (++block == end) group++, end += q->nested_block;
        }
        local[i] = scale_in(q, block, group);
    }
    for (size_t i = count; i % whole; i++) local[i] = 0;
    return local;
}

/* The scales of a chunk: a lane's eight nibbles are neighbours, so there may be two. */
enum { CHUNK_SCALES = CHUNK > SCALED ? CHUNK / SCALED : 1 };

/* They, lane by lane. */
INLINE floats chunk_scale(const float *scales, size_t chunk) {
#if WIDTH == 16
    typedef VECTOR(float, 2) floats2;
    floats2 both = {scales[chunk * 2], scales[chunk * 2 + 1]};
    return __builtin_shufflevector(both, both, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
#else
    return scales[chunk * CHUNK / SCALED];
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
    put_element(job->y, job->x.dtype, m * job->q.rows + n, job->bias ? product + job->bias[n] : product);
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

INLINE void multiply_floats(const struct vector_run *run, size_t first, size_t last, size_t rows) {
    const struct coded q = run->job->q; /* a copy, which no store can change */
    size_t runs = q.columns / SCALED;
    float_table table = float_table_of(q.code->values);
    for (size_t n = first; n < last; n++) {
        floats totals[2][VECTOR_ROWS] = {0};
        for (size_t begin = 0; begin < runs; begin += SEGMENT) {
            size_t count = least(SEGMENT, runs - begin), chunks = (count * SCALED + CHUNK - 1) / CHUNK, chunk = 0;
            float local[SEGMENT];
            const float *scales = scales_at(&q, n * runs + begin, count, CHUNK_SCALES, local);
            const float *x = run->x + begin * SCALED;
            const uint8_t *codes = q.codes + (n * runs + begin) * (SCALED / 2);
            for (; chunk + 2 <= chunks; chunk += 2, codes += CHUNK, x += 2 * CHUNK) {
                fetch_ahead(codes, CHUNK);
                multiply_floats_chunk(run, table, codes, x, rows, chunk_scale(scales, chunk), totals[0]);
                multiply_floats_chunk(run, table, codes + CHUNK / 2, x + CHUNK, rows, chunk_scale(scales, chunk + 1),
                                      totals[TURNS(rows)]);
            }
            if (chunk < chunks)
                multiply_floats_chunk(run, table, codes, x, rows, chunk_scale(scales, chunk), totals[0]);
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
    case 4: multiply_floats(run, first, last, 4); break;
    case 5: multiply_floats(run, first, last, 5); break;
    default: multiply_floats(run, first, last, FEW_ROWS); break;
    }
}

/* x in the order in which a chunk is decoded: the first elements of all lanes, then the second ones. */
static void order_floats(const struct dense *x, size_t stride, float *to) {
    ints lanes;
    for (int lane = 0; lane < WIDTH; lane++) lanes[lane] = lane * 8;
    for (size_t m = 0; m < x->rows; m++)
        for (size_t chunk = 0; chunk < stride; chunk += CHUNK, to += CHUNK) {
            size_t at = m * x->columns + chunk, count = least(CHUNK, x->columns - chunk);
            const float *from = (const float *)x->data + at;
            float local[CHUNK];
            if (x->dtype != BNB_F32 || count < CHUNK) {
                widen(x, at, at + count, local);
                memset(local + count, 0, (CHUNK - count) * sizeof *local);
                from = local;
            }
            for (size_t i = 0; i < 8; i++) store(to, BNB_F32, i * WIDTH, gather(from + i, lanes));
        }
}

static bnb_status matmul_vector(const struct matmul_job *job) {
    size_t rows = job->x.rows, columns = job->x.columns, stride = round_up(columns, CHUNK);
    size_t bytes = round_up(rows * stride * sizeof(float), 64);
    alignas(64) float local[STACK];
    float *x = bytes <= sizeof local ? local : aligned_alloc(64, bytes);
    if (!x) return no_working_space("matmul", bytes);
    order_floats(&job->x, stride, x);
    struct vector_run run = {job, stride, x};
    parallel_for(job->q.rows, VECTOR_WORK / (columns * rows) + 1, multiply_floats_rows, &run);
    if (x != local) free(x);
    return BNB_OK;
}

/* ── Rows of x in order, for codes of other widths ──────────────────────────────────────────────────────────────── */

struct ordered_run {
    const struct matmul_job *job;
    const float *x; /* [rows, columns] */
};

/* Calls `body` with rows [first, last) of w and an ordered_run. */
static bnb_status run_ordered(const struct matmul_job *job, void (*body)(const void *run, size_t first, size_t last)) {
    size_t count = job->x.rows * job->x.columns, bytes = round_up(count * sizeof(float), 64);
    alignas(64) float local[STACK];
    float *wide = job->x.dtype == BNB_F32 ? NULL : bytes <= sizeof local ? local : aligned_alloc(64, bytes);
    if (job->x.dtype != BNB_F32 && !wide) return no_working_space("matmul", bytes);
    if (wide) widen(&job->x, 0, count, wide);
    struct ordered_run run = {job, wide ? wide : job->x.data};
    parallel_for(job->q.rows, VECTOR_WORK / count + 1, body, &run);
    if (wide != local) free(wide);
    return BNB_OK;
}
