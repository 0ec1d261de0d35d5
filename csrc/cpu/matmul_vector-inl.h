/* Products of a few rows with 4-bit weights, straight from the codes: a register of them is decoded nibble by nibble,
 * and x lies in the order that this gives. The weights, which are most of what is read, are read once and in order. */
#include <stdlib.h>

#include "simd.h"

enum {
    VECTOR_ROWS = 8,       /* the most rows of x, */
    FEW_ROWS = 6,          /* and up to which decoding the weights first is no faster, unless they become bytes */
    SEGMENT = 64,          /* runs of weights whose scales are worked out at once */
    VECTOR_WORK = 1 << 17, /* products for which a thread is worth calling: some ten microseconds */
    AHEAD = 4096,          /* bytes to prefetch ahead */
    STACK = 4096,          /* floats of working space that the stack has room for: no call of malloc where x is short */
};

struct vector_run {
    const struct matmul_job *job;
    size_t                   stride; /* elements of a prepared row of x: whole chunks */
    const float             *x;      /* [rows, stride] */
};

/* The length of runs of w where it has codes of so many bits, and each run of a row nothing but one scale; else 0. */
static size_t run_length(const struct matmul_job *job, uint32_t bits) {
    if (!job->w.coded.code || job->w.coded.code->bits != bits || job->w.coded.offsets) return 0;
    size_t both = job->x.columns | job->w.coded.block; /* a multiple of what both are multiples of */
    return both % RUN == 0 ? RUN : both % SHORT_RUN == 0 ? SHORT_RUN : 0;
}

static bool takes_vector_of(const struct matmul_job *job, size_t rows) {
    return run_length(job, 4) && job->x.rows <= rows;
}

static bool takes_vector(const struct matmul_job *job) { return takes_vector_of(job, FEW_ROWS); }

/* What WIDTH nested codes from a block on stand for. */
INLINE floats nested_values(const struct coded *q, size_t block) {
    const struct codebook *code = q->nested_code;
    if (code->bits == 8) return values_of(code->values, q->absmax_codes + block);
    uint8_t codes[WIDTH];
    for (size_t i = 0; i < WIDTH; i++) codes[i] = code_in(q->absmax_codes, code->bits, block + i);
    return values_of(code->values, codes);
}

/* WIDTH scales from a block on, which lies in a group of nested scales; those past the last block may be anything. */
INLINE floats block_scales(const struct coded *q, size_t block, size_t group) {
    if (q->absmax) return load_floats(q->absmax + block);
    if (q->absmax_halves && q->absmax_dtype == BNB_F16) return load(q->absmax_halves, BNB_F16, block);
    if (q->absmax_halves) return load(q->absmax_halves, BNB_BF16, block);
    floats value = nested_values(q, block), factor = float_at(q->nested_absmax, q->nested_dtype, group);
    floats offset = q->nested_offsets ? q->nested_offsets[group] : q->offset;
    size_t end = (group + 1) * q->nested_block;
    if (block + WIDTH > end) {
        size_t last = (q->rows * q->columns - 1) / q->block / q->nested_block;
        for (size_t i = end - block; i < WIDTH; i++) {
            size_t next = least((block + i) / q->nested_block, last);
            factor[i] = float_at(q->nested_absmax, q->nested_dtype, next);
            if (q->nested_offsets) offset[i] = q->nested_offsets[next];
        }
    }
    floats product = value * factor;
    return product + offset;
}

/* The scales of runs [first, first + count) of the weights, with zeros up to a multiple of `whole`, a constant. */
INLINE const float *scales_at(const struct coded *q, size_t length, size_t first, size_t count, size_t whole,
                              float local[SEGMENT]) {
    uint32_t shift =
        (uint32_t)__builtin_ctzll(q->block / length); /* runs of a block: a power of two, as 4 bits have it */
    if (q->absmax && shift == 0 && count % whole == 0) return q->absmax + first;
    ints lane;
    for (int i = 0; i < WIDTH; i++) lane[i] = i;
    size_t group = group_of(q, first >> shift);
    for (size_t i = 0; i < count; i += WIDTH) {
        size_t block = (first + i) >> shift;
        while (q->nested_code && block >= (group + 1) * q->nested_block) group++;
        floats scales = block_scales(q, block, group);
        if (shift) { /* no more than half of them are used, and one */
            float of_blocks[16] = {0};
            memcpy(of_blocks, &scales, sizeof scales);
            ints index = ((int32_t)((first + i) & ((1u << shift) - 1)) + lane) >> (int32_t)shift;
            scales = WIDTH == 16 ? lookup16(table16_of(of_blocks), index) : lookup8(table8_of(of_blocks), index);
        }
        store(local, BNB_F32, i, lane < (int32_t)(count - i) ? scales : (floats)0);
    }
    return local;
}

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
    for (size_t n = first; n < last; n++) {
        floats totals[2][VECTOR_ROWS] = {0};
        for (size_t begin = 0; begin < runs; begin += SEGMENT) {
            size_t       count = least(SEGMENT, runs - begin), chunks = (count * length + CHUNK - 1) / CHUNK, chunk = 0;
            float        local[SEGMENT];
            const float *scales = scales_at(&q, length, n * runs + begin, count, chunk_scales(length), local);
            const float *x = run->x + begin * length;
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
    size_t            bytes = round_up(rows * stride * sizeof(float), 64);
    alignas(64) float local[STACK];
    float            *x = bytes <= sizeof local ? local : aligned_alloc(64, bytes);
    if (!x) return no_working_space("matmul", bytes);
    order_floats(&job->x, stride, x);
    struct vector_run run = {job, stride, x};
    parallel_for(job->w.coded.rows, VECTOR_WORK / (columns * rows) + 1, multiply_floats_rows, &run);
    if (x != local) free(x);
    return BNB_OK;
}

/* ── Rows of x in order, for codes of other widths ──────────────────────────────────────────────────────────────── */

struct ordered_run {
    const struct matmul_job *job;
    const float             *x; /* [rows, columns] */
};

/* Calls `body` with rows [first, last) of w and an ordered_run. */
static bnb_status run_ordered(const struct matmul_job *job, void (*body)(const void *run, size_t first, size_t last)) {
    size_t            count = job->x.rows * job->x.columns, bytes = round_up(count * sizeof(float), 64);
    alignas(64) float local[STACK];
    float            *wide = job->x.dtype == BNB_F32 ? NULL : bytes <= sizeof local ? local : aligned_alloc(64, bytes);
    if (job->x.dtype != BNB_F32 && !wide) return no_working_space("matmul", bytes);
    if (wide) widen(&job->x, 0, count, wide);
    struct ordered_run run = {job, wide ? wide : job->x.data};
    parallel_for(job->w.coded.rows, VECTOR_WORK / count + 1, body, &run);
    if (wide != local) free(wide);
    return BNB_OK;
}
