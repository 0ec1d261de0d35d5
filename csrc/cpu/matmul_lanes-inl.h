/* Products of many rows of x, in every precision: a lane is a row of the weights. A strip of them is decoded once into
 * vectors of 32-bit factors (one float, two int16, four int8), and each such vector is multiplied with one factor of x
 * at a time, so that nothing is ever added up across lanes. Only mmla crosses them: its blocks are of two lanes and two
 * rows of x. */
#include <stdlib.h>

#include "simd.h"

static bool takes_lanes(const struct matmul_job *job) {
    return job->x.rows > (job->w.coded.code && job->w.coded.code->bits == 4 ? FEW_ROWS : 2 * TILE_ROWS);
}

static bool takes_lanes_shorts(const struct matmul_job *job) { return takes_lanes(job) && run_length(job, 4); }
static bool takes_lanes_bytes(const struct matmul_job *job) { return HAS_BYTES && takes_lanes_shorts(job); }

/* Codes that are integers, of every width but 4 bits. */
static bool takes_lanes_integers(const struct matmul_job *job) {
    return HAS_BYTES && codes_run_length(job) && job->x.rows > VECTOR_ROWS;
}

/* ── Tiles ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* What a tile multiplies: a strip of weights with rows of x, over the columns of a panel. */
struct lanes_tile {
    const uint32_t *w,
        *x; /* [step, lane] and [step, row]; for mmla, [two steps, half of the lanes of a vector, lane, step]
                            * and [two steps, row, step] */
    size_t         steps;
    const float   *w_scales, *w_rests; /* [run, lane], the latter NULL for none; as what follows for integers alone */
    const float   *x_scales, *x_means; /* [row, scaled] */
    const int32_t *excess;
    size_t         scaled;
    float         *sums; /* [row, sums_stride], added to */
    size_t         sums_stride;
};

INLINE ints multiply_add_factors(enum factor_kind kind, ints to, words w, const uint32_t *x) {
    if (kind == FLOATS) return (ints)fma((floats)w, (floats)bits_float(*x), (floats)to);
    if (kind == SHORTS) return dot2(to, (shorts)w, pair_of((const int16_t *)x));
    return dot_bytes(to, w, (words)*x);
}

/* sum_of[m, v] += the products of `steps` factors. */
INLINE void multiply_steps(enum factor_kind kind, const struct lanes_tile *tile, size_t rows, size_t first,
                           size_t steps, ints sum_of[TILE_ROWS][TILE_VECTORS]) {
    const uint32_t *w = tile->w + first * LANES, *x = tile->x + first * rows;
    for (size_t step = 0; step < steps; step++, w += LANES, x += rows) {
        words b[TILE_VECTORS];
        for (size_t v = 0; v < TILE_VECTORS; v++) b[v] = (words)load_ints(w + v * WIDTH);
        for (size_t m = 0; m < rows; m++)
            for (size_t v = 0; v < TILE_VECTORS; v++)
                sum_of[m][v] = multiply_add_factors(kind, sum_of[m][v], b[v], x + m);
    }
}

/* The same by blocks, for BYTES alone. An odd row is paired with whatever follows it in memory, for nothing. */
INLINE void multiply_blocks(const struct lanes_tile *tile, size_t rows, size_t first, size_t steps,
                            ints sum_of[TILE_ROWS][TILE_VECTORS]) {
    ints block_of[TILE_ROWS][TILE_VECTORS] = {0}; /* [m + half, v]: rows m and m + 1 with half the lanes of v */
    const uint32_t *w = tile->w + first * LANES, *x = tile->x + first * rows;
#pragma clang loop unroll(disable) /* unrolled, it would hold so many loads at once that they spill */
    for (size_t step = 0; step < steps; step += 2, w += 2 * LANES, x += 2 * rows) {
        words b[2][TILE_VECTORS];
        for (size_t half = 0; half < 2; half++)
            for (size_t v = 0; v < TILE_VECTORS; v++) b[half][v] = (words)load_ints(w + half * LANES + v * WIDTH);
        for (size_t m = 0; m < rows; m += 2)
            for (size_t half = 0; half < 2; half++)
                for (size_t v = 0; v < TILE_VECTORS; v++)
                    block_of[m + half][v] = mmla(block_of[m + half][v], b[half][v], (words)load_ints(x + 2 * m));
    }
    for (size_t m = 0; m < rows; m += 2)
        for (size_t v = 0; v < TILE_VECTORS; v++) {
            words row = (words)block_of[m][v], next = (words)block_of[m + 1][v];
            unzip(&row, &next);
            sum_of[m][v] += (ints)row;
            if (m + 1 < rows) sum_of[m + 1][v] += (ints)next;
        }
}

INLINE void multiply_tile(enum factor_kind kind, const struct lanes_tile *tile, size_t length, size_t rows) {
    size_t run_steps = kind == FLOATS ? tile->steps : length / factor_elements(kind);
    for (size_t m = 0; m < rows; m++)
        for (size_t v = 0; v < TILE_VECTORS; v++) __builtin_prefetch(tile->sums + m * tile->sums_stride + v * WIDTH);
    for (size_t run = 0; run * run_steps < tile->steps; run++) {
        ints sum_of[TILE_ROWS][TILE_VECTORS] = {0};
        if (kind == BYTES)
            for (size_t m = 0; m < rows; m++)
                for (size_t v = 0; v < TILE_VECTORS; v++) sum_of[m][v] = (ints)tile->excess[m * tile->scaled + run];
        if (kind == BYTES && HAS_MMLA)
            multiply_blocks(tile, rows, run * run_steps, run_steps, sum_of);
        else
            multiply_steps(kind, tile, rows, run * run_steps, run_steps, sum_of);
        for (size_t m = 0; m < rows; m++)
            for (size_t v = 0; v < TILE_VECTORS; v++) {
                float *sums = tile->sums + m * tile->sums_stride + v * WIDTH;
                floats before = load_floats(sums), after;
                if (kind == FLOATS) {
                    after = before + (floats)sum_of[m][v];
                } else {
                    floats scale = load_floats(tile->w_scales + run * LANES + v * WIDTH);
                    scale *= tile->x_scales[m * tile->scaled + run];
                    after = fma(__builtin_convertvector(sum_of[m][v], floats), scale, before);
                    floats mean = tile->w_rests ? tile->x_means[m * tile->scaled + run] : 0;
                    if (tile->w_rests) after = fma(load_floats(tile->w_rests + run * LANES + v * WIDTH), mean, after);
                }
                store(sums, BNB_F32, 0, after);
            }
    }
}

/* More rows than a tile has are shared evenly, so that fewer than half of the most is never asked for. */
INLINE void multiply_tile_of(enum factor_kind kind, const struct lanes_tile *tile, size_t length, size_t rows) {
    switch (rows) {
    case 3: multiply_tile(kind, tile, length, 3); break;
    case 4: multiply_tile(kind, tile, length, 4); break;
    case 5: multiply_tile(kind, tile, length, 5); break;
#if REGISTERS == 32
    case 6: multiply_tile(kind, tile, length, 6); break;
    case 7: multiply_tile(kind, tile, length, 7); break;
#endif
    default: multiply_tile(kind, tile, length, TILE_ROWS); break;
    }
}

static void lanes_tile(enum factor_kind kind, const struct lanes_tile *tile, size_t length, size_t rows) {
    if (kind == FLOATS)
        multiply_tile_of(FLOATS, tile, RUN, rows);
    else if (kind == SHORTS && length == RUN)
        multiply_tile_of(SHORTS, tile, RUN, rows);
    else if (kind == SHORTS)
        multiply_tile_of(SHORTS, tile, SHORT_RUN, rows);
    else if (length == RUN)
        multiply_tile_of(BYTES, tile, RUN, rows);
    else if (length == SHORTEST_RUN)
        multiply_tile_of(BYTES, tile, SHORTEST_RUN, rows);
    else
        multiply_tile_of(BYTES, tile, SHORT_RUN, rows);
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Adds the products of columns [k, k + depth) with a panel to the sums. */
static void multiply_panel(const struct lanes_pass *pass, struct lanes_slot *slot, size_t k, size_t depth,
                           size_t strips) {
    size_t elements = factor_elements(pass->kind), width = pass->strips * LANES;
    size_t scaled = pass->rounded ? pass->rounded->scaled : 0;
    bool   has_rests = pass->rounded && (!pass->rounded->to.in_order || pass->job->w.coded.offsets);
    for (size_t group = 0; group < pass->x.count; group += GROUP_TILES)
        for (size_t strip = 0; strip < strips; strip++)
            for (size_t i = group; i < least(group + GROUP_TILES, pass->x.count); i++) {
                size_t            m = tile_row(&pass->x, i), rows = tile_row(&pass->x, i + 1) - m;
                struct lanes_tile tile = {
                    .w = slot->panel[strip],
                    .x = pass->x.factors + m * pass->x.stride + k / elements * rows,
                    .steps = depth / elements,
                    .w_scales = slot->scales[strip],
                    .w_rests = has_rests ? slot->rests[strip] : NULL,
                    .scaled = scaled,
                    .sums = slot->sums + m * width + strip * LANES,
                    .sums_stride = width,
                };
                if (pass->rounded) tile.x_scales = pass->rounded->scales + m * scaled + k / pass->length;
                if (pass->rounded) tile.x_means = pass->rounded->means + m * scaled + k / pass->length;
                if (pass->kind == BYTES) tile.excess = pass->rounded->excess + m * scaled + k / pass->length;
                lanes_tile(pass->kind, &tile, pass->length, rows);
            }
}

INLINE void put_lanes(const struct lanes_pass *pass, bnb_dtype dtype, const float *sums, size_t n, size_t count) {
    const struct matmul_job *job = pass->job;
    size_t                   outputs = weight_rows(&job->w);
    for (size_t m = 0; m < pass->x.rows; m++, sums += pass->strips * LANES) {
        size_t at = (pass->first_row + m) * outputs + n, i = 0;
        for (; i + WIDTH <= count; i += WIDTH) {
            floats v = load_floats(sums + i);
            store(job->y, dtype, at + i, job->bias ? v + load_floats(job->bias + n + i) : v);
        }
        for (; i < count; i++) put_element(job->y, dtype, at + i, job->bias ? sums[i] + job->bias[n + i] : sums[i]);
    }
}

/* Takes panels until there are none left, in the scratch memory that is this slot's alone. */
static void lanes_panels(const struct lanes_pass *pass, struct lanes_slot *slot) {
    const struct matmul_job *job = pass->job;
    size_t                   columns = job->x.columns, outputs = weight_rows(&job->w);
    size_t                   width = pass->strips * LANES, n;
    while ((n = atomic_fetch_add_explicit(pass->next, 1, memory_order_relaxed) * width) < outputs) {
        size_t count = least(width, outputs - n), strips = (count + LANES - 1) / LANES;
        memset(slot->sums, 0, pass->x.rows * width * sizeof *slot->sums);
        for (size_t k = 0; k < columns; k += STEPS * factor_elements(pass->kind)) {
            size_t depth = least(STEPS * factor_elements(pass->kind), columns - k);
            for (size_t strip = 0; strip < strips; strip++)
                unpack_strip(pass, n + strip * LANES, k, depth, slot, strip);
            multiply_panel(pass, slot, k, depth, strips);
        }
        switch (job->x.dtype) {
        case BNB_F16: put_lanes(pass, BNB_F16, slot->sums, n, count); break;
        case BNB_BF16: put_lanes(pass, BNB_BF16, slot->sums, n, count); break;
        default: put_lanes(pass, BNB_F32, slot->sums, n, count); break;
        }
    }
}

static void lanes_slots(const void *lanes_pass, size_t first, size_t last) {
    const struct lanes_pass *pass = lanes_pass;
    for (size_t slot = first; slot < last; slot++)
        lanes_panels(pass, (struct lanes_slot *)(pass->scratch + slot * pass->slot));
}

/* Rows [first, last) of x's block as floats. */
static void deal_floats(const void *lanes_pass, size_t first, size_t last) {
    const struct lanes_pass *pass = lanes_pass;
    size_t                   columns = pass->job->x.columns;
    float                    line[STEPS];
    for (size_t m = first; m < last; m++) {
        size_t    step, from = (pass->first_row + m) * columns;
        uint32_t *to = row_in_tile(&pass->x, 1, m, &step);
        for (size_t k = 0; k < columns; k += STEPS) {
            size_t count = least(STEPS, columns - k);
            widen(&pass->job->x, from + k, from + k + count, line);
            for (size_t i = 0; i < count; i++, to += step) *to = float_bits(line[i]);
        }
    }
}

/* Makes a block of x ready; false where integers can't stand for it. */
static bool prepare_block(const struct lanes_pass *pass) {
    if (pass->rounded) return round_x(&pass->job->x, pass->first_row, pass->rounded);
    parallel_for(pass->x.rows, (1 << 16) / pass->job->x.columns + 1, deal_floats, pass);
    return true;
}

/* What x and the codes are rounded to; in_order where these are integers. */
static struct rounding lanes_rounding(const struct matmul_job *job, enum factor_kind kind, bool in_order) {
    if (kind == FLOATS) return (struct rounding){};
    if (in_order) return rounding_of_integers(job->w.coded.code, LANES_BYTE);
    if (kind == BYTES) return rounding_of(job->w.coded.code, BYTES, FIT_127, LANES_BYTE);
    return rounding_of(job->w.coded.code, SHORTS, FIT_4095, LANES_SHORT_X);
}

static bnb_status lanes_product(const struct matmul_job *job, enum factor_kind kind, bool in_order) {
    size_t rows = job->x.rows, columns = job->x.columns, outputs = weight_rows(&job->w);
    size_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS, block = (rows + blocks - 1) / blocks;
    size_t threads = thread_count(), all_strips = (outputs + LANES - 1) / LANES;
    size_t strips = rows <= GROUP_TILES * TILE_ROWS ? 1 : most(1, least(STRIPS, all_strips / (2 * threads)));
    threads = least(threads, (all_strips + strips - 1) / strips);

    size_t    stride = columns / factor_elements(kind), factors = round_up(block * stride, 16);
    size_t    length = in_order ? codes_run_length(job) : run_length(job, 4),
              scaled = kind == FLOATS ? 0 : columns / length, scales = round_up(block * scaled, 16);
    size_t    slot = round_up(sizeof(struct lanes_slot) + block * strips * LANES * sizeof(float), 64);
    size_t    bytes = (factors + 3 * scales) * sizeof(uint32_t) + threads * slot;
    uint32_t *scratch = aligned_alloc(64, bytes);
    if (!scratch) return no_working_space("matmul", bytes);
    struct rounded rounded = {.to = lanes_rounding(job, kind, in_order), .length = length, .scaled = scaled};
    rounded.scales = (float *)(scratch + factors), rounded.means = (float *)(scratch + factors + scales);
    rounded.excess = (int32_t *)(scratch + factors + 2 * scales);
    bool fit = true;
    for (size_t i = 0; i < blocks && fit; i++) {
        _Atomic size_t    next = 0;
        size_t            first = rows * i / blocks, count = rows * (i + 1) / blocks - first;
        struct lanes_pass pass = {
            .job = job,
            .kind = kind,
            .length = length,
            .rounded = kind == FLOATS ? NULL : &rounded,
            .x = {scratch, count, (count + TILE_ROWS - 1) / TILE_ROWS, stride},
            .first_row = first,
            .strips = strips,
            .scratch = (char *)(scratch + factors + 3 * scales),
            .slot = slot,
            .next = &next,
        };
        rounded.x = pass.x;
        fit = prepare_block(&pass);
        if (fit) parallel_for(threads, 1, lanes_slots, &pass);
    }
    free(scratch);
    return fit ? BNB_OK : BNB_UNSUPPORTED;
}

static bnb_status matmul_lanes(const struct matmul_job *job) { return lanes_product(job, FLOATS, false); }
static bnb_status matmul_lanes_shorts(const struct matmul_job *job) { return lanes_product(job, SHORTS, false); }
static bnb_status matmul_lanes_bytes(const struct matmul_job *job) { return lanes_product(job, BYTES, false); }
static bnb_status matmul_lanes_integers(const struct matmul_job *job) { return lanes_product(job, BYTES, true); }
