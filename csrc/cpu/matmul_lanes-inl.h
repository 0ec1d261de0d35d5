/* Products of many rows of x, in every precision: a lane is a row of the weights. A strip of them is decoded once into
 * vectors of 32-bit factors (one float, two int16, four int8), and each such vector is multiplied with one factor of x
 * at a time, so that nothing is ever added up across lanes. Only mmla crosses them: its blocks are of two lanes and two
 * rows of x. */
#include <stdlib.h>

#include "simd.h"

/* With the vectors of a strip and a factor of x, a register tile fills the registers. */
enum {
    TILE_ROWS = REGISTERS == 32 ? 8 : 6, /* the most rows of x of a register tile, */
    TILE_VECTORS = 2,
    LANES = TILE_VECTORS * WIDTH, /* and its rows of the weights: a strip */
    GROUP_TILES = 2,              /* tiles whose x stays in the first cache while a panel passes */
    BLOCK_ROWS = 192,             /* the most for which a panel is decoded once: their factors for it and their
                                          * sums stay in the second cache too */
    STRIPS = 64 / LANES,          /* the most of a panel, which stays in the second cache */
    STEPS = 256,                  /* factors of a weight row in a panel */
    MOST_RUNS = STEPS * 4 / SHORT_RUN,
    /* All 64 products of a run add up in a lane: 64 · 4095 · 8191 is just below 2^31. */
    LANES_SHORT_CODE = 4095,
    LANES_SHORT_X = 8191,
    LANES_BYTE = 127,
};

struct lanes_pass {
    const struct matmul_job *job;
    enum factor_kind         kind;
    size_t          length;  /* of the weights' runs: they are decoded lane by lane; 0: they come as rows of fp32 */
    struct rounded *rounded; /* of x's block; NULL: FLOATS */
    struct tiles    x;
    size_t          first_row; /* of x's block */
    size_t          strips;    /* of a panel */
    char           *scratch;
    size_t          slot; /* bytes of scratch for each thread */
    _Atomic size_t *next; /* panel to take */
};

/* What a thread works in; sums[rows, strips · LANES] follow. */
struct lanes_slot {
    uint32_t panel[STRIPS][STEPS * LANES]; /* [step, lane] of each strip */
    float    scales[STRIPS][MOST_RUNS * LANES];
    float    rests[STRIPS][MOST_RUNS * LANES]; /* of each run, times its scale */
    float    lines[WIDTH][STEPS + WIDTH];      /* rows of fp32 before they are transposed */
    float    sums[];
};

static bool takes_lanes(const struct matmul_job *job) {
    return job->x.rows > (job->w.coded.code && job->w.coded.code->bits == 4 ? FEW_ROWS : 2 * TILE_ROWS);
}

static bool takes_lanes_shorts(const struct matmul_job *job) { return takes_lanes(job) && run_length(job, 4); }
static bool takes_lanes_bytes(const struct matmul_job *job) { return HAS_BYTES && takes_lanes_shorts(job); }

/* ── Panels ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

INLINE void put_words(uint32_t *to, words v) { memcpy(to, &v, sizeof v); }

/* What decodes the codes; a copy each, so that no store can change it. */
struct decoder {
    float_table floats;
    code_table  shorts;
    uint8_t     bytes[16];
};

/* Eight codes of each lane as factors, step after step. */
INLINE void unpack_eight(enum factor_kind kind, const struct decoder *decoder, words codes, floats scale,
                         uint32_t *to) {
    if (kind == FLOATS) {
        floats out[8];
        decode_floats(decoder->floats, codes, out);
        for (size_t i = 0; i < 8; i++) put_words(to + i * LANES, (words)(out[i] * scale));
    } else if (kind == SHORTS) {
        shorts out[4];
        decode_shorts(decoder->shorts, regroup(codes), out);
        for (size_t v = 0; v < 4; v++) put_words(to + v * LANES, (words)out[v]);
    } else {
        words first = decode_bytes(decoder->bytes, codes), second = decode_bytes(decoder->bytes, codes >> 4);
        if (HAS_MMLA) zip(&first, &second); /* both steps of the lower half of the lanes, then of the upper one */
        put_words(to, first);
        put_words(to + LANES, second);
    }
}

/* The scales of weight rows [n, n + LANES) from column k on, [run, lane]; those `ahead` columns on are fetched. */
static void unpack_scales(const struct coded *q, size_t length, size_t n, size_t k, size_t runs, size_t ahead,
                          float *scales) {
    uint32_t shift = (uint32_t)__builtin_ctzll(q->block / length); /* runs of a block */
    for (size_t lane = 0; lane < LANES; lane++) {
        size_t first = (least(n + lane, q->rows - 1) * q->columns + k) / length;
        if (q->absmax && !shift) __builtin_prefetch(q->absmax + first + ahead / length);
        for (size_t i = 0; i < runs; i++) scales[i * LANES + lane] = scale_of(q, (first + i) >> shift);
    }
}

/* Rows [n, n + LANES) and columns [k, k + depth) of 4-bit weights; past the last row, that row again. */
INLINE void unpack_codes(enum factor_kind kind, const struct lanes_pass *pass, size_t n, size_t k, size_t depth,
                         uint32_t *panel, float *scales, float *rests) {
    const struct coded *q = &pass->job->w.coded;
    size_t              eight = 8 / factor_elements(kind); /* steps of eight codes */
    /* The panel after this one: further along the rows or, at their end, the next rows. */
    size_t ahead = k + depth < q->columns ? depth : pass->strips * LANES * q->columns - k;
    size_t length = pass->length;
    unpack_scales(q, length, n, k, depth / length, ahead, scales);
    struct decoder  decoder;
    struct rounding rounding = {};
    if (kind != FLOATS) rounding = pass->rounded->to;
    if (kind == FLOATS) decoder.floats = float_table_of(q->code->values);
    if (kind == SHORTS) decoder.shorts = code_table_of(rounding.shorts);
    if (kind == BYTES) memcpy(decoder.bytes, rounding.bytes, sizeof decoder.bytes);
    for (size_t v = 0; v < TILE_VECTORS; v++) {
        const uint8_t *rows[WIDTH];
        uint32_t      *to = panel + v * WIDTH;
        ints           no_rest = (int32_t)length * -NO_REST, rest = no_rest;
        for (size_t i = 0; i < WIDTH; i++)
            rows[i] = q->codes + (least(n + v * WIDTH + i, q->rows - 1) * q->columns + k) / 2;
        for (size_t chunk = 0; chunk < depth; chunk += CHUNK) {
            words codes[WIDTH];
            for (size_t i = 0; i < WIDTH; i++) codes[i] = (words)load_ints(rows[i] + chunk / 2);
            if (chunk % 128 == 0) /* a cache line */
                for (size_t i = 0; i < WIDTH; i++) __builtin_prefetch(rows[i] + (chunk + ahead) / 2);
            transpose(codes);
            for (size_t i = 0; i < least(WIDTH, (depth - chunk) / 8); i++, to += eight * LANES) {
                size_t at = (chunk + i * 8) / length * LANES + v * WIDTH;
                floats scale = kind == FLOATS ? load_floats(scales + at) : 0;
                unpack_eight(kind, &decoder, codes[i], scale, to);
                if (kind == FLOATS) continue;
                rest = add_rests(rest, &rounding, codes[i]);
                if ((chunk + i * 8) % length != length - 8) continue;
                store(rests, BNB_F32, at, __builtin_convertvector(rest, floats) * load_floats(scales + at));
                rest = no_rest;
            }
        }
    }
}

/* The same for weights of every kind, as floats. */
static void unpack_any(const struct lanes_pass *pass, size_t n, size_t k, size_t depth,
                       float lines[WIDTH][STEPS + WIDTH], uint32_t *panel) {
    const struct matmul_job *job = pass->job;
    size_t                   columns = job->x.columns, outputs = weight_rows(&job->w);
    for (size_t v = 0; v < TILE_VECTORS; v++) {
        for (size_t i = 0; i < WIDTH; i++) {
            size_t first = least(n + v * WIDTH + i, outputs - 1) * columns + k;
            widen_weights(&job->w, first, first + depth, lines[i]);
        }
        for (size_t step = 0; step < depth; step += WIDTH) {
            words block[WIDTH];
            for (size_t i = 0; i < WIDTH; i++) block[i] = (words)load_ints(lines[i] + step);
            transpose(block);
            for (size_t i = 0; i < WIDTH; i++) put_words(panel + (step + i) * LANES + v * WIDTH, block[i]);
        }
    }
}

static void unpack_strip(const struct lanes_pass *pass, size_t n, size_t k, size_t depth, struct lanes_slot *slot,
                         size_t strip) {
    uint32_t *panel = slot->panel[strip];
    float    *scales = slot->scales[strip], *rests = slot->rests[strip];
    if (pass->kind == SHORTS)
        unpack_codes(SHORTS, pass, n, k, depth, panel, scales, rests);
    else if (pass->kind == BYTES)
        unpack_codes(BYTES, pass, n, k, depth, panel, scales, rests);
    else if (pass->length)
        unpack_codes(FLOATS, pass, n, k, depth, panel, scales, rests);
    else
        unpack_any(pass, n, k, depth, slot->lines, panel);
}

/* ── Tiles ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* What a tile multiplies: a strip of weights with rows of x, over the columns of a panel. */
struct lanes_tile {
    const uint32_t *w,
        *x; /* [step, lane] and [step, row]; for mmla, [two steps, half of the lanes of a vector, lane, step]
                            * and [two steps, row, step] */
    size_t         steps;
    const float   *w_scales, *w_rests; /* [run, lane]; as what follows for integers alone */
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
        if (kind == BYTES && BYTES_OFFSET)
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
                    floats mean = tile->x_means[m * tile->scaled + run];
                    after = fma(load_floats(tile->w_rests + run * LANES + v * WIDTH), mean, after);
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
    else
        multiply_tile_of(BYTES, tile, SHORT_RUN, rows);
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Adds the products of columns [k, k + depth) with a panel to the sums. */
static void multiply_panel(const struct lanes_pass *pass, struct lanes_slot *slot, size_t k, size_t depth,
                           size_t strips) {
    size_t elements = factor_elements(pass->kind), width = pass->strips * LANES;
    size_t scaled = pass->rounded ? pass->rounded->scaled : 0;
    for (size_t group = 0; group < pass->x.count; group += GROUP_TILES)
        for (size_t strip = 0; strip < strips; strip++)
            for (size_t i = group; i < least(group + GROUP_TILES, pass->x.count); i++) {
                size_t            m = tile_row(&pass->x, i), rows = tile_row(&pass->x, i + 1) - m;
                struct lanes_tile tile = {
                    .w = slot->panel[strip],
                    .x = pass->x.factors + m * pass->x.stride + k / elements * rows,
                    .steps = depth / elements,
                    .w_scales = slot->scales[strip],
                    .w_rests = slot->rests[strip],
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

static bnb_status lanes_product(const struct matmul_job *job, enum factor_kind kind) {
    size_t rows = job->x.rows, columns = job->x.columns, outputs = weight_rows(&job->w);
    size_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS, block = (rows + blocks - 1) / blocks;
    size_t threads = thread_count(), all_strips = (outputs + LANES - 1) / LANES;
    size_t strips = rows <= GROUP_TILES * TILE_ROWS ? 1 : most(1, least(STRIPS, all_strips / (2 * threads)));
    threads = least(threads, (all_strips + strips - 1) / strips);

    size_t    stride = columns / factor_elements(kind), factors = round_up(block * stride, 16);
    size_t    length = run_length(job, 4), scaled = kind == FLOATS ? 0 : columns / length,
              scales = round_up(block * scaled, 16);
    size_t    slot = round_up(sizeof(struct lanes_slot) + block * strips * LANES * sizeof(float), 64);
    size_t    bytes = (factors + 3 * scales) * sizeof(uint32_t) + threads * slot;
    uint32_t *scratch = aligned_alloc(64, bytes);
    if (!scratch) return no_working_space("matmul", bytes);
    struct rounded rounded = {.length = length, .scaled = scaled};
    rounded.scales = (float *)(scratch + factors), rounded.means = (float *)(scratch + factors + scales);
    rounded.excess = (int32_t *)(scratch + factors + 2 * scales);
    if (kind == SHORTS) rounded.to = rounding_of(job->w.coded.code, SHORTS, LANES_SHORT_CODE, LANES_SHORT_X);
    if (kind == BYTES) rounded.to = rounding_of(job->w.coded.code, BYTES, LANES_BYTE, LANES_BYTE);
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

static bnb_status matmul_lanes(const struct matmul_job *job) { return lanes_product(job, FLOATS); }
static bnb_status matmul_lanes_shorts(const struct matmul_job *job) { return lanes_product(job, SHORTS); }
static bnb_status matmul_lanes_bytes(const struct matmul_job *job) { return lanes_product(job, BYTES); }
