/* Products along the rows of w, y = a · w: w becomes a panel of fp32 rows as for matmul, but a tile of y is a sum of
 * outer products, of a column of a with a piece of a row of w, so that w is read as it lies. */
#include "simd.h"

/* With a row of w and an element of a, a register tile fills the registers. */
enum {
    OUTER_ROWS = 6, /* rows of a register tile, */
    OUTER_VECTORS = REGISTERS == 32 ? 4 : 2,
    OUTER_COLUMNS = OUTER_VECTORS * WIDTH, /* and its columns */
    OUTER_DEPTH = 64,                      /* rows of w in a panel, */
    OUTER_PANEL = 256,                     /* and the most columns of it */
    OUTER_STRIDE = OUTER_PANEL + 16,       /* not a power of two, so that its rows meet in no cache set */
    OUTER_BLOCK = 32 * OUTER_ROWS,         /* rows of y for which a panel is decoded once */
};

struct outer_run {
    const struct matmul_backward_job *job;
    size_t                            rows, depth, columns; /* y[rows, columns] = a[rows, depth] · w[depth, columns] */
    size_t                            panel, panels;        /* columns of a panel, and how many there are */
    float                            *scratch;
    _Atomic size_t                   *next; /* part of y to take: a block of rows by a panel */
};

/* What a thread works in. */
struct outer_slot {
    float panel[OUTER_DEPTH * OUTER_STRIDE];
    float sums[OUTER_BLOCK * OUTER_PANEL];
    float a[OUTER_BLOCK * OUTER_DEPTH]; /* [OUTER_ROWS of a][column][row of those] */
    float line[OUTER_BLOCK];            /* a row of what is stored, before it is dealt out */
};

/* sums[m, k] += Σn a[n, m] · w[n, k] over a register tile. */
INLINE void outer_tile(const float *a, const float *w, size_t depth, size_t rows, float *sums) {
    floats sum_of[OUTER_ROWS][OUTER_VECTORS] = {0};
    for (size_t n = 0; n < depth; n++, a += OUTER_ROWS, w += OUTER_STRIDE) {
        floats piece[OUTER_VECTORS];
        for (size_t v = 0; v < OUTER_VECTORS; v++) piece[v] = load_floats(w + v * WIDTH);
        for (size_t m = 0; m < rows; m++)
            for (size_t v = 0; v < OUTER_VECTORS; v++) sum_of[m][v] = fma((floats)a[m], piece[v], sum_of[m][v]);
    }
    for (size_t m = 0; m < rows; m++, sums += OUTER_PANEL)
        for (size_t v = 0; v < OUTER_VECTORS; v++)
            store(sums, BNB_F32, v * WIDTH, load_floats(sums + v * WIDTH) + sum_of[m][v]);
}

static void run_outer_tile(const float *a, const float *w, size_t depth, size_t rows, float *sums) {
    switch (rows) {
    case 1: outer_tile(a, w, depth, 1, sums); break;
    case 2: outer_tile(a, w, depth, 2, sums); break;
    case 3: outer_tile(a, w, depth, 3, sums); break;
    case 4: outer_tile(a, w, depth, 4, sums); break;
    case 5: outer_tile(a, w, depth, 5, sums); break;
    default: outer_tile(a, w, depth, OUTER_ROWS, sums); break;
    }
}

/* Deals a[m, n], m in [first, first + rows), n in [from, from + depth), out to tiles, each read straight through. */
static void pack_tiles(const struct outer_run *run, struct outer_slot *slot, size_t first, size_t rows, size_t from,
                       size_t depth) {
    const struct dense *a = &run->job->a;
    if (run->job->transposed) {
        for (size_t n = 0; n < depth; n++) {
            size_t start = (from + n) * a->columns + first;
            widen(a, start, start + rows, slot->line);
            for (size_t m = 0; m < rows; m++)
                slot->a[(m / OUTER_ROWS * OUTER_DEPTH + n) * OUTER_ROWS + m % OUTER_ROWS] = slot->line[m];
        }
    } else {
        for (size_t m = 0; m < rows; m++) {
            size_t start = (first + m) * a->columns + from;
            float *tile = slot->a + m / OUTER_ROWS * OUTER_DEPTH * OUTER_ROWS + m % OUTER_ROWS;
            widen(a, start, start + depth, slot->line);
            for (size_t n = 0; n < depth; n++) tile[n * OUTER_ROWS] = slot->line[n];
        }
    }
}

/* Rows [from, from + depth) and columns [k, k + width) of w, padded with zeros to whole tiles. */
static void unpack_panel(const struct outer_run *run, size_t from, size_t depth, size_t k, size_t width, float *panel) {
    size_t padded = round_up(width, OUTER_COLUMNS);
    for (size_t n = 0; n < depth; n++, panel += OUTER_STRIDE) {
        size_t start = (from + n) * run->columns + k;
        widen_weights(&run->job->w, start, start + width, panel);
        memset(panel + width, 0, (padded - width) * sizeof *panel);
    }
}

/* sums = a · w over a block of rows by a panel of columns. */
static void sum_part(const struct outer_run *run, struct outer_slot *slot, size_t first, size_t rows, size_t k,
                     size_t width) {
    memset(slot->sums, 0, rows * OUTER_PANEL * sizeof *slot->sums);
    for (size_t from = 0; from < run->depth; from += OUTER_DEPTH) {
        size_t depth = least(OUTER_DEPTH, run->depth - from);
        pack_tiles(run, slot, first, rows, from, depth);
        unpack_panel(run, from, depth, k, width, slot->panel);
        for (size_t column = 0; column < width; column += OUTER_COLUMNS)
            for (size_t m = 0; m < rows; m += OUTER_ROWS)
                run_outer_tile(slot->a + m * OUTER_DEPTH, slot->panel + column, depth, least(OUTER_ROWS, rows - m),
                               slot->sums + m * OUTER_PANEL + column);
    }
}

/* Takes parts of y until there are none left. */
static void run_outer_slots(const void *outer_run, size_t first, size_t last) {
    const struct outer_run *run = outer_run;
    size_t                  blocks = (run->rows + OUTER_BLOCK - 1) / OUTER_BLOCK, part;
    for (struct outer_slot *slot = (struct outer_slot *)run->scratch + first; first < last; first++, slot++)
        while ((part = atomic_fetch_add_explicit(run->next, 1, memory_order_relaxed)) < blocks * run->panels) {
            size_t m = part / run->panels * OUTER_BLOCK, rows = least(OUTER_BLOCK, run->rows - m);
            size_t k = part % run->panels * run->panel, width = least(run->panel, run->columns - k);
            sum_part(run, slot, m, rows, k, width);
            for (size_t row = 0; row < rows; row++)
                narrow_run(slot->sums + row * OUTER_PANEL, width, run->job->y, run->job->dtype,
                           (m + row) * run->columns + k);
        }
}

static bnb_status matmul_backward(const struct matmul_backward_job *job) {
    struct outer_run run = {
        .job = job,
        .rows = job->transposed ? job->a.columns : job->a.rows,
        .depth = job->transposed ? job->a.rows : job->a.columns,
        .columns = weight_columns(&job->w),
    };
    size_t threads = thread_count(), blocks = (run.rows + OUTER_BLOCK - 1) / OUTER_BLOCK;
    size_t share = (run.columns * blocks + threads - 1) / threads; /* panels narrow until each thread has one */
    run.panel = least(OUTER_PANEL, round_up(most(1, least(share, run.columns)), OUTER_COLUMNS));
    run.panels = (run.columns + run.panel - 1) / run.panel;
    threads = least(threads, blocks * run.panels);

    size_t bytes = round_up(threads * sizeof(struct outer_slot), 64);
    run.scratch = aligned_alloc(64, bytes);
    if (!run.scratch) return no_working_space("matmul_backward", bytes);
    _Atomic size_t next = 0;
    run.next = &next;
    parallel_for(threads, 1, run_outer_slots, &run);
    free(run.scratch);
    return BNB_OK;
}
