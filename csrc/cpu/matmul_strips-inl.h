/* Strips of weights for products of many rows of x: decoded once into vectors of 32-bit factors, a row a lane. */
#include "simd.h"

/* With the vectors of a strip and a factor of x, a register tile fills the registers. */
enum {
    TILE_ROWS = REGISTERS == 32 ? 8 : 6, /* the most rows of x of a register tile, */
    TILE_VECTORS = 2,
    LANES = TILE_VECTORS * WIDTH,         /* and its rows of the weights: a strip */
    GROUP_TILES = 2,                      /* tiles whose x stays in the first cache while a panel passes */
    BLOCK_ROWS = 192,                     /* the most for which a panel is decoded once: their factors for it and their
                                          * sums stay in the second cache too */
    STRIPS = 64 / LANES,                  /* the most of a panel, which stays in the second cache */
    STEPS = 256,                          /* factors of a weight row in a panel */
    MOST_RUNS = STEPS * 4 / SHORTEST_RUN, /* no more than a segment */
    /* All 64 products of a run add up in a lane: with codes of FIT_4095, 64 · 4095 · 8191 is just below 2^31. */
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
    float    rests[STRIPS][MOST_RUNS * LANES]; /* of each run, times its scale, and its offset; of FLOATS that alone */
    float    lines[WIDTH][STEPS + WIDTH];      /* rows of fp32 before they are transposed */
    float    sums[];
};

INLINE void put_words(uint32_t *to, words v) { memcpy(to, &v, sizeof v); }

/* What decodes the codes; a copy each, so that no store can change it. */
struct decoder {
    float_table floats;
    code_table  shorts;
    uint8_t     bytes[16];
};

/* Eight codes of each lane as factors, step after step; scale and offset are of FLOATS alone. */
INLINE void unpack_eight(enum factor_kind kind, const struct decoder *decoder, words codes, floats scale,
                         const floats *offset, uint32_t *to) {
    if (kind == FLOATS) {
        floats out[8];
        decode_floats(decoder->floats, codes, out);
        for (size_t i = 0; i < 8; i++) {
            floats value = out[i] * scale;
            put_words(to + i * LANES, (words)(offset ? value + *offset : value));
        }
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

/* Scales or offsets of weight rows [n, n + LANES) from column k on, by `unit`: [run, lane]. */
static void unpack_values(const struct coded *q, enum block_part part, size_t length, size_t n, size_t k, size_t runs,
                          float unit, float *to) {
    float of_row[SEGMENT];
    for (size_t lane = 0; lane < LANES; lane++) {
        size_t first = (least(n + lane, q->rows - 1) * q->columns + k) / length;
        values_at(q, part, length, first, runs, of_row);
        for (size_t i = 0; i < runs; i++) to[i * LANES + lane] = of_row[i] * unit;
    }
}

/* Both, the scales `ahead` columns on being fetched. */
static void unpack_scales(const struct lanes_pass *pass, size_t n, size_t k, size_t depth, size_t ahead, float *scales,
                          float *offsets) {
    const struct coded *q = &pass->job->w.coded;
    size_t              length = pass->length;
    for (size_t lane = 0; q->absmax && q->block == length && lane < LANES; lane++)
        __builtin_prefetch(q->absmax + (least(n + lane, q->rows - 1) * q->columns + k + ahead) / length);
    unpack_values(q, SCALES, length, n, k, depth / length, 1, scales);
    float unit = pass->rounded ? unit_of_sums(pass->rounded) : 1;
    if (q->offsets) unpack_values(q, OFFSETS, length, n, k, depth / length, unit, offsets);
}

/* The panel after the one at column k: further along the rows or, at their end, the next rows. */
static size_t ahead_of(const struct lanes_pass *pass, size_t k, size_t depth) {
    size_t columns = pass->job->x.columns;
    return k + depth < columns ? depth : pass->strips * LANES * columns - k;
}

/* Rows [n, n + LANES) and columns [k, k + depth) of 4-bit weights; past the last row, that row again. */
INLINE void unpack_codes(enum factor_kind kind, const struct lanes_pass *pass, size_t n, size_t k, size_t depth,
                         uint32_t *panel, float *scales, float *rests) {
    const struct coded *q = &pass->job->w.coded;
    size_t              eight = 8 / factor_elements(kind); /* steps of eight codes */
    size_t              ahead = ahead_of(pass, k, depth), length = pass->length;
    unpack_scales(pass, n, k, depth, ahead, scales, rests);
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
                floats scale = kind == FLOATS ? load_floats(scales + at) : 0, offset = load_floats(rests + at);
                unpack_eight(kind, &decoder, codes[i], scale, q->offsets ? &offset : NULL, to);
                if (kind == FLOATS) continue;
                rest = add_rests(rest, &rounding, codes[i]);
                if ((chunk + i * 8) % length != length - 8) continue;
                floats rests_of_run = __builtin_convertvector(rest, floats) * load_floats(scales + at);
                store(rests, BNB_F32, at, q->offsets ? rests_of_run + offset : rests_of_run);
                rest = no_rest;
            }
        }
    }
}

/* The same of codes that are integers, for bytes; rests are offsets alone. */
static void unpack_integers(const struct lanes_pass *pass, size_t n, size_t k, size_t depth, uint32_t *panel,
                            float *scales, float *rests) {
    const struct coded *q = &pass->job->w.coded;
    uint32_t            bits = q->code->bits, flip = pass->rounded->to.flip;
    size_t              ahead = ahead_of(pass, k, depth) / 8 * bits;
    unpack_scales(pass, n, k, depth, 0, scales, rests);
    for (size_t v = 0; v < TILE_VECTORS; v++) {
        uint32_t      *to = panel + v * WIDTH;
        uint8_t        unpacked[WIDTH][STEPS * 4];
        const uint8_t *rows[WIDTH];
        for (size_t i = 0; i < WIDTH; i++) {
            size_t at = least(n + v * WIDTH + i, q->rows - 1) * q->columns + k;
            rows[i] = bytes_of_codes(q->codes, bits, at, depth, unpacked[i]);
            for (size_t line = 0; line < depth / 8 * bits; line += 64)
                __builtin_prefetch(q->codes + at / 8 * bits + ahead + line);
        }
        for (size_t chunk = 0; chunk < depth; chunk += BYTE_CHUNK) {
            words codes[WIDTH];
            for (size_t i = 0; i < WIDTH; i++) codes[i] = (words)load_ints(rows[i] + chunk) ^ flip;
            transpose(codes);
            size_t steps = least(WIDTH, (depth - chunk) / 4);
            for (size_t i = 0; HAS_MMLA && i < steps; i += 2) zip(&codes[i], &codes[i + 1]);
            for (size_t i = 0; i < steps; i++, to += LANES) put_words(to, codes[i]);
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
    if (pass->rounded && pass->rounded->to.in_order)
        unpack_integers(pass, n, k, depth, panel, scales, rests);
    else if (pass->kind == SHORTS)
        unpack_codes(SHORTS, pass, n, k, depth, panel, scales, rests);
    else if (pass->kind == BYTES)
        unpack_codes(BYTES, pass, n, k, depth, panel, scales, rests);
    else if (pass->length)
        unpack_codes(FLOATS, pass, n, k, depth, panel, scales, rests);
    else
        unpack_any(pass, n, k, depth, slot->lines, panel);
}
