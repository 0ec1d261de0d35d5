/* Products of int8 codes, exact in int32: tiles of dot products along k, as in matmul_panel.c, over the codes of b
 * where they lie. Outlier columns are a second, small product in fp32, and both meet in the output. */
#include <stdlib.h>

#include "simd.h"

/* A factor is a code of a, made ready once for all rows of b.
 *
 * Where dot4 takes one operand unsigned, 128 is added to b's codes by flipping a bit, and 128 · Σk a[m, k] taken off
 * the
 * sums. Where there is no dot4, both sides are widened to int16: a product of bytes into int16 (vpmaddubsw)
 * saturates. */
#if HAS_DOT4
typedef int8_t factor;
typedef words  factors;
enum { FACTORS = 4 * WIDTH };
INLINE factors load_codes(const int8_t *from) { return (words)load_ints(from) ^ DOT4_FLIP; }
INLINE factors load_factors(const factor *from) { return (words)load_ints(from); }
INLINE ints    multiply_add(ints to, factors b, factors a) { return dot4(to, b, a); }
#else
#define DOT4_FLIP 0
typedef int16_t factor;
typedef shorts  factors;
enum { FACTORS = 2 * WIDTH };
INLINE factors load_codes(const int8_t *from) {
    typedef VECTOR(int8_t, 2 * WIDTH) signed_bytes;
    signed_bytes v;
    memcpy(&v, from, sizeof v);
    return __builtin_convertvector(v, shorts);
}
INLINE factors load_factors(const factor *from) { return load_shorts(from); }
INLINE ints    multiply_add(ints to, factors b, factors a) { return dot2(to, b, a); }
#endif

enum {
    INT8_DEPTH = 4096 /
        sizeof(factor),      /* columns that a tile sums before the next tile: its factors stay in the cache */
    SIDE = HAS_MMLA ? 2 : 1, /* rows of a, and of b, in a block: TILE_X and TILE_W are multiples */
    INT8_PANEL = PANEL,      /* rows of b for which outlier columns are gathered at once */
};

struct int8_run {
    const struct int8_matmul_job *job;
    size_t                        first_row, rows; /* of a */
    const factor                 *a;               /* [rows, stride], zeros after the last column */
    size_t                        stride;
    const int32_t                *excess;   /* what dot4 adds to every sum of a row; NULL: nothing */
    const float                  *outliers; /* x's outlier columns, [rows, outlier_stride], zeros after the last */
    size_t                        outlier_stride;
    size_t                        panel;
    char                         *scratch;
    size_t                        slot; /* bytes of scratch for each thread */
    _Atomic size_t               *next; /* panel to take */
};

typedef VECTOR(uint32_t, 4) words4;

/* The lanes of each of four, added up modulo 2^32. */
INLINE words4 sum4_words(words a, words b, words c, words d) {
#if WIDTH == 16
    typedef VECTOR(uint32_t, 8) words8;
    words8 a8 = a.lo + a.hi, b8 = b.lo + b.hi, c8 = c.lo + c.hi, d8 = d.lo + d.hi;
    words4 a4 = a8.lo + a8.hi, b4 = b8.lo + b8.hi, c4 = c8.lo + c8.hi, d4 = d8.lo + d8.hi;
#elif WIDTH == 8
    words4 a4 = a.lo + a.hi, b4 = b.lo + b.hi, c4 = c.lo + c.hi, d4 = d.lo + d.hi;
#else
    words4 a4 = a, b4 = b, c4 = c, d4 = d;
#endif
    words4 ab = __builtin_shufflevector(a4, b4, 0, 2, 4, 6) + __builtin_shufflevector(a4, b4, 1, 3, 5, 7);
    words4 cd = __builtin_shufflevector(c4, d4, 0, 2, 4, 6) + __builtin_shufflevector(c4, d4, 1, 3, 5, 7);
    return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}

INLINE void add_four(uint32_t *sums, words4 four, bool first) {
    words4 before;
    memcpy(&before, sums, sizeof before);
    if (!first) four += before;
    memcpy(sums, &four, sizeof four);
}

/* sums[m, n] of TILE_W rows of b with `rows` rows of a; added to what is there unless these are the first columns. */
INLINE void int8_tile(const int8_t *const b[TILE_W], const factor *a, size_t stride, size_t rows, size_t depth,
                      uint32_t *sums, bool first) {
    ints sum_of[TILE_X][TILE_W] = {0};
    for (size_t k = 0; k < depth; k += FACTORS) {
        factors x[TILE_X];
        for (size_t m = 0; m < rows; m++) x[m] = load_factors(a + m * stride + k);
        for (size_t n = 0; n < TILE_W; n++) {
            factors y = load_codes(b[n] + k);
            for (size_t m = 0; m < rows; m++) sum_of[m][n] = multiply_add(sum_of[m][n], y, x[m]);
        }
    }
    for (size_t m = 0; m < rows; m++, sums += INT8_PANEL)
        add_four(sums, sum4_words((words)sum_of[m][0], (words)sum_of[m][1], (words)sum_of[m][2], (words)sum_of[m][3]),
                 first);
}

#if HAS_MMLA
/* The same for pairs of rows of a, in blocks of 2 × 2. The sum of a block is two: of the first eights of each sixteen
 * codes, and of the second. */
INLINE void int8_blocks(const int8_t *const b[TILE_W], const factor *a, size_t stride, size_t rows, size_t depth,
                        uint32_t *sums, bool first) {
    ints sum_of[TILE_X][TILE_W / 2] = {0}; /* [m + eight, n / 2] */
    for (size_t k = 0; k < depth; k += FACTORS) {
        factors x[TILE_X];
        for (size_t m = 0; m < rows; m++) x[m] = load_factors(a + m * stride + k);
        for (size_t n = 0; n < TILE_W; n += 2) {
            factors y[2] = {load_codes(b[n] + k), load_codes(b[n + 1] + k)};
            unzip(&y[0], &y[1]);
            for (size_t m = 0; m < rows; m++) sum_of[m][n / 2] = mmla(sum_of[m][n / 2], y[m % 2], x[m]);
        }
    }
    for (size_t m = 0; m < rows; m += 2, sums += 2 * INT8_PANEL) {
        words even = (words)(sum_of[m][0] + sum_of[m + 1][0]), odd = (words)(sum_of[m][1] + sum_of[m + 1][1]);
        unzip(&even, &odd);
        add_four(sums, even, first);
        add_four(sums + INT8_PANEL, odd, first);
    }
}

static void run_int8_tile(const int8_t *const b[TILE_W], const factor *a, size_t stride, size_t rows, size_t depth,
                          uint32_t *sums, bool first) {
    size_t paired = rows / 2 * 2;
    switch (paired) {
    case 0: break;
    case 2: int8_blocks(b, a, stride, 2, depth, sums, first); break;
    case 4: int8_blocks(b, a, stride, 4, depth, sums, first); break;
    default: int8_blocks(b, a, stride, TILE_X, depth, sums, first); break;
    }
    if (rows % 2) int8_tile(b, a + paired * stride, stride, 1, depth, sums + paired * INT8_PANEL, first);
}
#else
static void run_int8_tile(const int8_t *const b[TILE_W], const factor *a, size_t stride, size_t rows, size_t depth,
                          uint32_t *sums, bool first) {
    switch (rows) {
    case 1: int8_tile(b, a, stride, 1, depth, sums, first); break;
    case 2: int8_tile(b, a, stride, 2, depth, sums, first); break;
#if REGISTERS == 32
    case 3: int8_tile(b, a, stride, 3, depth, sums, first); break;
    case 4: int8_tile(b, a, stride, 4, depth, sums, first); break;
    case 5: int8_tile(b, a, stride, 5, depth, sums, first); break;
#endif
    default: int8_tile(b, a, stride, TILE_X, depth, sums, first); break;
    }
}
#endif

/* ── The output ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Columns [n, n + count) of row m of the output; `added` may be NULL. */
INLINE void put_run(const struct int8_output *to, bnb_dtype dtype, size_t m, size_t n, size_t count,
                    const int32_t *sums, const float *added) {
    float  row_stats = to->row_stats[m];
    size_t at = m * to->columns + n, i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        floats value = __builtin_convertvector(load_ints(sums + i), floats) *
                       (row_stats * load_floats(to->column_stats + n + i)) * INT8_UNIT;
        if (added) value += load_floats(added + i);
        if (to->bias) value += load_floats(to->bias + n + i);
        store(to->y, dtype, at + i, value);
    }
    for (; i < count; i++) {
        float value = int8_value(sums[i], row_stats, to->column_stats[n + i]);
        if (added) value += added[i];
        put_element(to->y, dtype, at + i, to->bias ? value + to->bias[n + i] : value);
    }
}

static void put_int8_run(const struct int8_output *to, size_t m, size_t n, size_t count, const int32_t *sums,
                         const float *added) {
    if (!to->row_stats) {
        memcpy((int32_t *)to->y + m * to->columns + n, sums, count * sizeof *sums);
        return;
    }
    switch (to->dtype) {
    case BNB_F16: put_run(to, BNB_F16, m, n, count, sums, added); break;
    case BNB_BF16: put_run(to, BNB_BF16, m, n, count, sums, added); break;
    default: put_run(to, BNB_F32, m, n, count, sums, added); break;
    }
}

static void int8_mm_dequant(const void *int8_mm_dequant_job, size_t first_row, size_t last_row) {
    const struct int8_mm_dequant_job *job = int8_mm_dequant_job;
    for (size_t m = first_row; m < last_row; m++)
        put_int8_run(&job->to, m, 0, job->to.columns, job->sums + m * job->to.columns, NULL);
}

/* ── Panels ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* added[m, i] = what outlier columns give row n + i of b: a product of gathered columns, `gathered` their panel. */
static void add_outliers(const struct int8_run *run, size_t n, size_t rows, float *gathered, float *added) {
    const struct int8_matmul_job *job = run->job;
    for (size_t o = 0; o < job->outlier_count; o += DEPTH) {
        size_t depth = least(DEPTH, job->outlier_count - o);
        for (size_t i = 0; i < rows; i++) {
            float        *to = gathered + i * PANEL_STRIDE;
            const int8_t *from = job->b + (n + i) * job->columns;
            for (size_t j = 0; j < depth; j++)
                to[j] = int8_weight(from[job->outliers[o + j]], job->to.column_stats[n + i]);
            memset(to + depth, 0, (round_up(depth, WIDTH) - depth) * sizeof *to);
        }
        for (size_t i = 0; i < rows; i += TILE_W) {
            const float *w[TILE_W]; /* past the last row, that row again */
            for (size_t j = 0; j < TILE_W; j++) w[j] = gathered + least(i + j, rows - 1) * PANEL_STRIDE;
            for (size_t m = 0; m < run->rows; m += TILE_X)
                run_tile(w, run->outliers + m * run->outlier_stride + o, run->outlier_stride,
                         least(TILE_X, run->rows - m), round_up(depth, WIDTH), added + m * PANEL + i, o == 0);
        }
    }
}

/* Takes panels until there are none left, in the scratch memory that is this slot's alone. */
static void run_int8_panels(const struct int8_run *run, char *scratch) {
    const struct int8_matmul_job *job = run->job;
    size_t                        columns = job->columns, outputs = job->to.columns, n;
    uint32_t                     *sums = (uint32_t *)scratch;
    float                        *added = (float *)(sums + run->rows * INT8_PANEL),
          *gathered = added + run->rows * PANEL; /* where there are outliers */
    while ((n = atomic_fetch_add_explicit(run->next, 1, memory_order_relaxed) * run->panel) < outputs) {
        size_t rows = least(run->panel, outputs - n);
        for (size_t k = 0; k < columns; k += INT8_DEPTH)
            for (size_t m = 0; m < run->rows; m += TILE_X)
                for (size_t i = 0; i < rows; i += TILE_W) {
                    const int8_t *b[TILE_W]; /* past the last row, that row again */
                    for (size_t j = 0; j < TILE_W; j++) b[j] = job->b + (n + least(i + j, rows - 1)) * columns + k;
                    run_int8_tile(b, run->a + m * run->stride + k, run->stride, least(TILE_X, run->rows - m),
                                  least(INT8_DEPTH, columns - k), sums + m * INT8_PANEL + i, k == 0);
                }
        if (job->outlier_count) add_outliers(run, n, rows, gathered, added);
        for (size_t m = 0; m < run->rows; m++) {
            uint32_t *row = sums + m * INT8_PANEL;
            for (size_t i = 0; run->excess && i < rows; i++) row[i] -= (uint32_t)run->excess[m];
            put_int8_run(&job->to, run->first_row + m, n, rows, (int32_t *)row,
                         job->outlier_count ? added + m * PANEL : NULL);
        }
    }
}

static void run_int8_slots(const void *int8_run, size_t first, size_t last) {
    const struct int8_run *run = int8_run;
    for (size_t slot = first; slot < last; slot++) run_int8_panels(run, run->scratch + slot * run->slot);
}

/* ── Making a's rows ready ──────────────────────────────────────────────────────────────────────────────────────── */

struct prepare_job {
    const struct int8_run *run;
    factor                *a;
    int32_t               *excess;
    float                 *outliers;
};

/* A pair of rows as blocks take them: eight codes of each side by side, those which unzip leaves so of rows of b. */
static void pair_rows(factor *even, factor *odd, size_t count) {
    for (size_t k = 0; k < count; k += FACTORS) {
        words first = (words)load_factors(even + k), second = (words)load_factors(odd + k);
        unzip(&first, &second);
        memcpy(even + k, &first, sizeof first);
        memcpy(odd + k, &second, sizeof second);
    }
}

static void prepare_rows(const void *prepare_job, size_t first, size_t last) {
    const struct prepare_job     *to = prepare_job;
    const struct int8_run        *run = to->run;
    const struct int8_matmul_job *job = run->job;
    for (size_t m = first * SIDE; m < least(last * SIDE, run->rows); m++) {
        const int8_t *from = job->a + (run->first_row + m) * job->columns;
        factor       *row = to->a + m * run->stride;
        int32_t       sum = 0;
        for (size_t k = 0; k < job->columns; k++) row[k] = from[k], sum += from[k];
        memset(row + job->columns, 0, (run->stride - job->columns) * sizeof *row);
        if (m % SIDE == 1) pair_rows(row - run->stride, row, run->stride);
        if (to->excess) to->excess[m] = sum * 128;
        if (!job->outlier_count) continue;
        float *outliers = to->outliers + m * run->outlier_stride;
        for (size_t o = 0; o < run->outlier_stride; o++)
            outliers[o] = o < job->outlier_count
                              ? element_of(&job->x, (run->first_row + m) * job->columns + (size_t)job->outliers[o])
                              : 0;
    }
}

static bnb_status int8_matmul(const struct int8_matmul_job *job) {
    size_t rows = job->rows, columns = job->columns, outputs = job->to.columns;
    size_t threads = thread_count(), block = least(rows, BLOCK_X), share = (outputs + threads - 1) / threads;
    size_t panel = least(rows <= GROUP_X ? 8 : INT8_PANEL, round_up(share, TILE_W));
    threads = least(threads, (outputs + panel - 1) / panel);

    size_t stride = round_up(columns, FACTORS), outlier_stride = round_up(job->outlier_count, WIDTH);
    size_t factor_bytes = round_up(block * stride * sizeof(factor), 64),
           outlier_bytes = round_up(block * outlier_stride * sizeof(float), 64);
    size_t excess_bytes = DOT4_FLIP ? round_up(block * sizeof(int32_t), 64) : 0;
    size_t slot = block * INT8_PANEL * sizeof(int32_t);
    if (job->outlier_count) slot += (block * PANEL + panel * PANEL_STRIDE) * sizeof(float);
    slot = round_up(slot, 64);
    size_t bytes = factor_bytes + outlier_bytes + excess_bytes + threads * slot;
    char  *scratch = aligned_alloc(64, bytes);
    if (!scratch) return no_working_space("int8_matmul", bytes);

    for (size_t row = 0; row < rows; row += block) {
        _Atomic size_t     next = 0;
        struct int8_run    run = {.job = job,
                                  .first_row = row,
                                  .rows = least(block, rows - row),
                                  .stride = stride,
                                  .outlier_stride = outlier_stride,
                                  .panel = panel,
                                  .scratch = scratch + factor_bytes + outlier_bytes + excess_bytes,
                                  .slot = slot,
                                  .next = &next};
        struct prepare_job prepare = {.run = &run,
                                      .a = (factor *)scratch,
                                      .outliers = (float *)(scratch + factor_bytes)};
        if (DOT4_FLIP) prepare.excess = (int32_t *)(scratch + factor_bytes + outlier_bytes);
        run.a = prepare.a, run.outliers = prepare.outliers, run.excess = prepare.excess;
        parallel_for((run.rows + SIDE - 1) / SIDE, (1 << 16) / stride / SIDE + 1, prepare_rows, &prepare);
        parallel_for(threads, 1, run_int8_slots, &run);
    }
    free(scratch);
    return BNB_OK;
}
