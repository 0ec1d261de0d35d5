/* Matrix products of every shape and format: the weights become a panel of fp32 rows that stays in the cache, and tiles
 * of dot products run over it. Both matrices are read along k, so nothing is transposed. */
#include <stdlib.h>

#include "simd.h"

enum {
    TILE_W = 4,                       /* weight rows of a register tile, */
    TILE_X = REGISTERS == 32 ? 6 : 3, /* and rows of x: with a row of each, they fill the registers */
    GROUP_X = 12,                     /* rows of x that stay in the first cache while a panel passes */
    BLOCK_X = 512,                    /* rows of x for which a panel's weights are decoded once */
    PANEL = 64,                       /* the most weight rows of a panel */
    DEPTH = 512,                      /* the columns of a panel */
    PADDING = 16,                     /* after each row, so that rows of 2^n floats share no cache sets */
    PANEL_STRIDE = DEPTH + PADDING,
};

struct panel_run {
    const struct matmul_job *job;
    const float             *x; /* fp32, each row padded with zeros to whole vectors */
    size_t                   stride, first_row, rows;
    size_t                   panel; /* weight rows of a panel */
    float                   *scratch;
    size_t                   slot; /* floats of scratch for each thread */
    _Atomic size_t          *next; /* panel to take */
};

/* Elements [first, last) of a weight. */
static void widen_weights(const struct weight *w, size_t first, size_t last, float *y) {
    const struct coded *q = &w->coded;
    if (!q->code)
        widen(&w->dense, first, last, y);
    else if (is_kbits(q->code))
        decode_kbits(q, first, last, y);
    else if (q->code->bits == 4)
        decode(q, 4, first, last, y, BNB_F32, false);
    else
        decode(q, 8, first, last, y, BNB_F32, false);
}

/* sums[m, n] of TILE_W weight rows with `rows` rows of x; added to what is there unless these are the first columns. */
INLINE void tile(const float *const w[TILE_W], const float *x, size_t stride, size_t rows, size_t depth, float *sums,
                 bool first) {
    floats sum_of[TILE_X][TILE_W] = {0};
    for (size_t k = 0; k < depth; k += WIDTH) {
        floats b[TILE_X];
        for (size_t m = 0; m < rows; m++) b[m] = load_floats(x + m * stride + k);
        for (size_t n = 0; n < TILE_W; n++) {
            floats a = load_floats(w[n] + k);
            for (size_t m = 0; m < rows; m++) sum_of[m][n] = fma(a, b[m], sum_of[m][n]);
        }
    }
    for (size_t m = 0; m < rows; m++, sums += PANEL) {
        floats4 four = sum4(sum_of[m][0], sum_of[m][1], sum_of[m][2], sum_of[m][3]), before;
        memcpy(&before, sums, sizeof before);
        if (!first) four += before;
        memcpy(sums, &four, sizeof four);
    }
}

static void run_tile(const float *const w[TILE_W], const float *x, size_t stride, size_t rows, size_t depth,
                     float *sums, bool first) {
    switch (rows) {
    case 1: tile(w, x, stride, 1, depth, sums, first); break;
    case 2: tile(w, x, stride, 2, depth, sums, first); break;
#if REGISTERS == 32
    case 3: tile(w, x, stride, 3, depth, sums, first); break;
    case 4: tile(w, x, stride, 4, depth, sums, first); break;
    case 5: tile(w, x, stride, 5, depth, sums, first); break;
#endif
    default: tile(w, x, stride, TILE_X, depth, sums, first); break;
    }
}

/* Weight rows [n, n + rows), columns [k, k + depth) as fp32 rows of whole vectors: in place where they are that and not
 * read often. */
static const float *weights_at(const struct panel_run *run, size_t n, size_t rows, size_t k, size_t depth, float *panel,
                               size_t *stride) {
    const struct matmul_job *job = run->job;
    size_t                   columns = job->x.columns;
    if (!job->w.coded.code && job->w.dense.dtype == BNB_F32 && depth % WIDTH == 0 && run->rows <= GROUP_X) {
        *stride = columns;
        return (const float *)job->w.dense.data + n * columns + k;
    }
    *stride = PANEL_STRIDE;
    for (size_t row = 0; row < rows; row++) {
        float *to = panel + row * PANEL_STRIDE;
        size_t first = (n + row) * columns + k;
        widen_weights(&job->w, first, first + depth, to);
        memset(to + depth, 0, (round_up(depth, WIDTH) - depth) * sizeof *to);
    }
    return panel;
}

static void put_sums(const struct panel_run *run, const float *sums, size_t n, size_t count) {
    const struct matmul_job *job = run->job;
    size_t                   columns = weight_rows(&job->w);
    for (size_t m = 0; m < run->rows; m++, sums += PANEL) {
        size_t at = (run->first_row + m) * columns + n;
        for (size_t i = 0; i < count; i++)
            put_element(job->y, job->x.dtype, at + i, job->bias ? sums[i] + job->bias[n + i] : sums[i]);
    }
}

/* Takes panels until there are none left, in the scratch memory that is this slot's alone. */
static void run_panels(const struct panel_run *run, float *scratch) {
    const struct matmul_job *job = run->job;
    size_t                   columns = job->x.columns, outputs = weight_rows(&job->w);
    float                   *panel = scratch, *sums = scratch + run->panel * PANEL_STRIDE;
    size_t                   n;
    while ((n = atomic_fetch_add_explicit(run->next, 1, memory_order_relaxed) * run->panel) < outputs) {
        size_t rows = least(run->panel, outputs - n);
        for (size_t k = 0; k < columns; k += DEPTH) {
            size_t       depth = least(DEPTH, columns - k), stride;
            const float *weights = weights_at(run, n, rows, k, depth, panel, &stride);
            for (size_t group = 0; group < run->rows; group += GROUP_X)
                for (size_t i = 0; i < rows; i += TILE_W) {
                    const float *w[TILE_W]; /* past the last row, that row again */
                    for (size_t j = 0; j < TILE_W; j++) w[j] = weights + least(i + j, rows - 1) * stride;
                    size_t end = least(group + GROUP_X, run->rows);
                    for (size_t m = group; m < end; m += TILE_X)
                        run_tile(w, run->x + m * run->stride + k, run->stride, least(TILE_X, end - m),
                                 round_up(depth, WIDTH), sums + m * PANEL + i, k == 0);
                }
        }
        put_sums(run, sums, n, rows);
    }
}

static void run_slots(const void *panel_run, size_t first, size_t last) {
    const struct panel_run *run = panel_run;
    for (size_t slot = first; slot < last; slot++) run_panels(run, run->scratch + slot * run->slot);
}

struct widen_job {
    struct dense x; /* the rows to widen */
    size_t       first_row, stride;
    float       *y;
};

static void widen_rows(const void *widen_job, size_t first, size_t last) {
    const struct widen_job *job = widen_job;
    size_t                  columns = job->x.columns;
    for (size_t row = first; row < last; row++) {
        float *to = job->y + row * job->stride;
        size_t from = (job->first_row + row) * columns;
        widen(&job->x, from, from + columns, to);
        memset(to + columns, 0, (job->stride - columns) * sizeof *to);
    }
}

static bnb_status matmul_panel(const struct matmul_job *job) {
    size_t rows = job->x.rows, columns = job->x.columns, outputs = weight_rows(&job->w);
    size_t threads = thread_count(), block = least(rows, BLOCK_X);
    size_t share = (outputs + threads - 1) / threads;
    size_t panel = least(rows <= GROUP_X ? 8 : PANEL, round_up(share, TILE_W));
    threads = least(threads, (outputs + panel - 1) / panel);
    bool   in_place = job->x.dtype == BNB_F32 && columns % WIDTH == 0 && rows <= TILE_X;
    size_t stride = in_place ? columns : round_up(columns, WIDTH) + PADDING;
    size_t widened = in_place ? 0 : round_up(block * stride, 16);
    size_t slot = round_up(panel * PANEL_STRIDE + block * PANEL, 16);
    float *scratch = aligned_alloc(64, (widened + threads * slot) * sizeof *scratch);
    if (!scratch) return no_working_space("matmul", (widened + threads * slot) * sizeof *scratch);
    for (size_t row = 0; row < rows; row += block) {
        _Atomic size_t   next = 0;
        struct panel_run run = {
            .job = job,
            .x = scratch,
            .stride = stride,
            .first_row = row,
            .rows = least(block, rows - row),
            .panel = panel,
            .scratch = scratch + widened,
            .slot = slot,
            .next = &next,
        };
        if (in_place) {
            run.x = (const float *)job->x.data + row * columns;
        } else {
            struct widen_job widening = {job->x, row, stride, scratch};
            parallel_for(run.rows, (1 << 16) / stride + 1, widen_rows, &widening);
        }
        parallel_for(threads, 1, run_slots, &run);
    }
    free(scratch);
    return BNB_OK;
}
