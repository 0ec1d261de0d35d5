/* Factors rounded to integers: the codebook once for all weights, and x in runs of elements, each with a scale
 * of its own. What integers can't stand for is found here, and left to the exact kernels.
 *
 * What rounding takes from a code, its rest, is the same wherever the code stands, so that rests do not cancel where x
 * has one sign: they would add up to an error that grows with the square root of the columns. So a run's rests are
 * added up, and that sum times the run's mean of x belongs to the product. What is left out is rests times what x is
 * off its mean. Few rows of x do
 * without where none leans to one side: then it would cost half as much as the rest, for nothing. */
#include <float.h>

#include "simd.h"

/* Elements of a row of weights that surely have one scale: a block is a multiple of a run's length. Short ones are for
 * blocks of 32, and for rows that are no multiple of 64; the shortest are GGUF's, and of codes that become bytes. */
enum { RUN = 64, SHORT_RUN = 32, SHORTEST_RUN = 16 };

/* What a kernel multiplies: 32 bits hold one float, two int16 or four int8. */
enum factor_kind { FLOATS, SHORTS, BYTES };

#if HAS_DOT4
enum { HAS_BYTES = 1, BYTES_OFFSET = DOT4_FLIP != 0 }; /* whether the codebook's bytes are unsigned */
INLINE ints dot_bytes(ints to, words w, words x) { return dot4(to, w, x); }
#elif HAS_SMALL_DOT4
enum { HAS_BYTES = 1, BYTES_OFFSET = 1 };
INLINE ints dot_bytes(ints to, words w, words x) { return small_dot4(to, w, x); }
#else
enum { HAS_BYTES = 0, BYTES_OFFSET = 0 };
INLINE ints dot_bytes(ints to, words, words) { return to; } /* for the compiler: no kernel is chosen that calls it */
#endif

INLINE size_t factor_elements(enum factor_kind kind) { return kind == FLOATS ? 1 : kind == SHORTS ? 2 : 4; }

/* How many of a row's factors one multiplication takes: mmla two, of each of two rows. */
INLINE size_t factors_at_once(enum factor_kind kind) { return kind == BYTES && HAS_MMLA ? 2 : 1; }

/* Rows of x as factors: cut into tiles of rows, as even as can be, each laid out step by step, what is taken at once of
 * each of its rows side by side. A tile of one row is that row. */
struct tiles {
    uint32_t *factors;
    size_t    rows, count;
    size_t    stride; /* factors of a row */
};

/* The first row of tile i. */
INLINE size_t tile_row(const struct tiles *tiles, size_t i) { return tiles->rows * i / tiles->count; }

/* A row's first factor or two; *step is how far the next are. */
INLINE uint32_t *row_in_tile(const struct tiles *tiles, size_t at_once, size_t row, size_t *step) {
    size_t tile = ((row + 1) * tiles->count - 1) / tiles->rows, first = tile_row(tiles, tile);
    *step = (tile_row(tiles, tile + 1) - first) * at_once;
    return tiles->factors + first * tiles->stride + (row - first) * at_once;
}

/* A step is so many rests; and the byte of a rest of none. */
enum { RESTS = 254, NO_REST = BYTES_OFFSET ? RESTS / 2 : 0 };

/* A codebook as integers of at most code_most, for an x of at most x_most. */
struct rounding {
    enum factor_kind kind;
    float            x_most;
    float pair_most; /* what the magnitudes of two elements of x that are added up first may be together; 0: anything */
    float step;      /* a code's value is its integer, less the offset, times this */
    int32_t  offset;
    bool     in_order; /* x's bytes; else as eight 4-bit codes are decoded */
    uint32_t flip;     /* in_order: what to change in codes as bytes for a dot product's first operand */
    int16_t  shorts[16];
    uint8_t  bytes[16];
    int16_t  rests[16];      /* of codes, in units of step / RESTS, */
    uint8_t  rest_bytes[16]; /* and more by NO_REST */
};

/* to + the rests of the eight codes of each lane + eight times NO_REST. */
INLINE ints add_rests(ints to, const struct rounding *rounding, words codes) {
#if HAS_DOT4 || HAS_SMALL_DOT4
    const words ones = 0x01010101;
    to = dot_bytes(to, decode_bytes(rounding->rest_bytes, codes), ones);
    return dot_bytes(to, decode_bytes(rounding->rest_bytes, codes >> 4), ones);
#else
    shorts rests[4];
    decode_shorts(code_table_of(rounding->rests), regroup(codes), rests);
    for (int i = 0; i < 4; i++) to = dot2(to, rests[i], (shorts)1);
    return to;
#endif
}

INLINE floats round_to_integers(floats v) { return v + 0x1.8p23f - 0x1.8p23f; } /* exact below 2^22; ties to even */

static struct rounding rounding_of(const struct codebook *code, enum factor_kind kind, enum fit fit, float x_most) {
    struct rounding to = {.kind = kind, .x_most = x_most, .step = code->fits[fit].step};
    memcpy(to.shorts, code->fits[fit].codes, sizeof to.shorts);
    for (int i = 0; i < 16; i++) {
        to.rests[i] = (int16_t)__builtin_rintf((code->values[i] / to.step - to.shorts[i]) * RESTS);
        to.rest_bytes[i] = (uint8_t)(to.rests[i] + NO_REST);
    }
    if (kind == SHORTS) return to;
    int32_t lowest = 0, highest = 0;
    for (int i = 0; i < 16; i++) {
        lowest = to.shorts[i] < lowest ? to.shorts[i] : lowest;
        highest = to.shorts[i] > highest ? to.shorts[i] : highest;
    }
    if (BYTES_OFFSET) to.offset = -lowest;
    for (int i = 0; i < 16; i++) to.bytes[i] = (uint8_t)(to.shorts[i] + to.offset);
    /* Rounding may add a half to each of the two. */
    if (HAS_SMALL_DOT4 && highest > lowest) to.pair_most = (float)(INT16_MAX / (highest - lowest) - 1);
    return to;
}

/* The same of codes that are integers, for bytes. */
static struct rounding rounding_of_integers(const struct codebook *code, float x_most) {
    bool            flipped = code->bits == 8 && code->is_signed == BYTES_OFFSET;
    int32_t         added = !flipped ? 0 : code->is_signed ? 128 : -128;
    struct rounding to = {.kind = BYTES, .x_most = x_most, .step = code->step, .offset = code->zero + added};
    to.in_order = true;
    to.flip = flipped ? 0x80808080 : 0;
    if (HAS_SMALL_DOT4) to.pair_most = (float)(INT16_MAX / (int32_t)(code->size - 1) - 1);
    return to;
}

/* ── x ──────────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* x as integers, eight by eight elements in the order of LANE_ORDER (SHORTS) or OCTET_ORDER (BYTES). */
#define OCTET_ORDER 1, 3, 5, 7, 0, 2, 4, 6

struct rounded {
    struct rounding to;
    struct tiles    x;
    size_t          length; /* of runs */
    size_t          scaled; /* runs of a row: zeros stand after the last of x */
    float          *scales; /* [rows, scaled], times the codebook's step */
    float          *means;  /* [rows, scaled], times the unit of rests */
    bool            leans;  /* one of the rows does */
    int32_t        *excess; /* [rows, scaled], what the codebook's offset adds to a run's sum, negative; BYTES only */
};

/* What a run's mean is to be multiplied with for what x, as it is rounded, adds up to in that run. */
INLINE float unit_of_sums(const struct rounded *x) { return (float)(x->length * RESTS) / x->to.step; }

struct round_job {
    struct dense          x;
    const struct rounded *rounded;
    size_t                first_row;
    _Atomic bool *unfit; /* set where an element is infinite or NaN, or a run's largest too small for a scale, */
    _Atomic bool *leans; /* and where a row leans to one side */
};

/* What a row's elements add up to. It leans where that is more than those of a mean of zero would hardly ever come to,
 * over the row or within runs. */
struct row_sums {
    double all, squares, squares_of_runs;
};

INLINE bool does_lean(struct row_sums row) {
    return row.all * row.all > 36 * row.squares || row.squares_of_runs > 4 * row.squares;
}

/* To each, the one added that stands next to it among bytes: its neighbour where they are in order, else the one
 * that is two apart. */
INLINE floats pair_sums(floats magnitudes, bool in_order) {
#if WIDTH == 16
#define NEIGHBOURS 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#define TWO_APART  2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13
#elif WIDTH == 8
#define NEIGHBOURS 1, 0, 3, 2, 5, 4, 7, 6
#define TWO_APART  2, 3, 0, 1, 6, 7, 4, 5
#else
#define NEIGHBOURS 1, 0, 3, 2
#define TWO_APART  2, 3, 0, 1
#endif
    return magnitudes + (in_order ? __builtin_shufflevector(magnitudes, magnitudes, NEIGHBOURS)
                                  : __builtin_shufflevector(magnitudes, magnitudes, TWO_APART));
}

typedef VECTOR(int16_t, 8) shorts8;
typedef VECTOR(int8_t, 8) bytes8;

/* Puts eight integers at `to` in the kernels' order. */
INLINE void put_eight(enum factor_kind kind, bool in_order, const int16_t from[8], uint32_t *to) {
    shorts8 v;
    memcpy(&v, from, sizeof v);
    if (kind == SHORTS) {
        v = __builtin_shufflevector(v, v, LANE_ORDER);
        memcpy(to, &v, sizeof v);
    } else {
        if (!in_order) v = __builtin_shufflevector(v, v, OCTET_ORDER);
        bytes8 narrowed = __builtin_convertvector(v, bytes8);
        memcpy(to, &narrowed, sizeof narrowed);
    }
}

/* One run, from element i of x on; false where it is unfit. */
INLINE bool round_run(const struct round_job *job, bnb_dtype dtype, enum factor_kind kind, size_t length, size_t i,
                      uint32_t *to, float *scale, float *mean, int32_t *excess, struct row_sums *row) {
    const struct rounding *rounding = &job->rounded->to;
    floats                 v[RUN / WIDTH], pairs = 0;
    ints                   largest = 0; /* magnitudes as integers, in which a NaN is larger than all numbers */
    for (size_t j = 0; j < length / WIDTH; j++) {
        v[j] = load(job->x.data, dtype, i + j * WIDTH);
        ints magnitude = (ints)v[j] & 0x7fffffff;
        largest = __builtin_elementwise_max(largest, magnitude);
        if (kind == BYTES && HAS_SMALL_DOT4)
            pairs = __builtin_elementwise_max(pairs, pair_sums((floats)magnitude, rounding->in_order));
    }
    float absmax = bits_float((uint32_t)__builtin_reduce_max(largest)), step = absmax / rounding->x_most;
    if (absmax == 0)
        step = 0;
    else if (!(absmax >= 1e-25f && absmax <= FLT_MAX / 4))
        return false;
    if (kind == BYTES && rounding->pair_most) {
        float pair = bits_float((uint32_t)__builtin_reduce_max((ints)pairs)) / rounding->pair_most;
        step = __builtin_fmaxf(step, pair);
    }
    float   inverse = step ? 1 / step : 0;
    int16_t integers[RUN];
    ints    total = 0;
    floats  squares = 0;
    for (size_t j = 0; j < length / WIDTH; j++) {
        typedef VECTOR(int16_t, WIDTH) half_shorts;
        ints        rounded = __builtin_convertvector(round_to_integers(v[j] * inverse), ints);
        half_shorts narrowed = __builtin_convertvector(rounded, half_shorts);
        memcpy(integers + j * WIDTH, &narrowed, sizeof narrowed);
        total += rounded;
        squares = fma(v[j] * inverse, v[j] * inverse, squares);
    }
    for (size_t j = 0; j < length; j += 8)
        put_eight(kind, rounding->in_order, integers + j, to + j / factor_elements(kind));
    int32_t sum_of_run = __builtin_reduce_add(total);
    double  element_sum = (double)step * sum_of_run;
    row->all += element_sum;
    row->squares += (double)step * step * sum(squares);
    row->squares_of_runs += element_sum * element_sum;
    *scale = step * rounding->step;
    *mean = (float)sum_of_run * *scale * (1.0f / (float)(length * RESTS));
    if (kind == BYTES) *excess = -rounding->offset * sum_of_run;
    return true;
}

INLINE void round_rows(const struct round_job *job, bnb_dtype dtype, enum factor_kind kind, size_t length, size_t first,
                       size_t last) {
    const struct rounded *rounded = job->rounded;
    size_t                factors = length / factor_elements(kind), at_once = factors_at_once(kind);
    size_t                runs = job->x.columns / length;
    for (size_t m = first; m < last; m++) {
        size_t          step, from = (job->first_row + m) * job->x.columns;
        uint32_t       *to = row_in_tile(&rounded->x, at_once, m, &step), run_factors[RUN];
        float          *scales = rounded->scales + m * rounded->scaled, *means = rounded->means + m * rounded->scaled;
        int32_t        *excess = kind == BYTES ? rounded->excess + m * rounded->scaled : NULL;
        struct row_sums row = {0};
        for (size_t run = 0; run < runs; run++) {
            int32_t *run_excess = kind == BYTES ? excess + run : NULL;
            if (!round_run(job, dtype, kind, length, from + run * length, run_factors, scales + run, means + run,
                           run_excess, &row)) {
                atomic_store_explicit(job->unfit, true, memory_order_relaxed);
                return;
            }
            for (size_t i = 0; i < factors; i += at_once, to += step)
                for (size_t j = 0; j < at_once; j++) to[j] = run_factors[i + j];
        }
        if (does_lean(row)) atomic_store_explicit(job->leans, true, memory_order_relaxed);
        for (size_t i = runs * factors; i < rounded->x.stride; i += at_once, to += step)
            for (size_t j = 0; j < at_once; j++) to[j] = 0;
        for (size_t run = runs; run < rounded->scaled; run++) {
            scales[run] = means[run] = 0;
            if (kind == BYTES) excess[run] = 0;
        }
    }
}

INLINE void round_rows_of(const struct round_job *job, bnb_dtype dtype, size_t first, size_t last) {
    bool is_short = job->rounded->length == SHORT_RUN;
    if (job->rounded->to.kind == SHORTS && is_short)
        round_rows(job, dtype, SHORTS, SHORT_RUN, first, last);
    else if (job->rounded->to.kind == SHORTS)
        round_rows(job, dtype, SHORTS, RUN, first, last);
    else if (job->rounded->length == SHORTEST_RUN)
        round_rows(job, dtype, BYTES, SHORTEST_RUN, first, last);
    else if (is_short)
        round_rows(job, dtype, BYTES, SHORT_RUN, first, last);
    else
        round_rows(job, dtype, BYTES, RUN, first, last);
}

static void round_rows_part(const void *round_job, size_t first, size_t last) {
    const struct round_job *job = round_job;
    switch (job->x.dtype) {
    case BNB_F16: round_rows_of(job, BNB_F16, first, last); break;
    case BNB_BF16: round_rows_of(job, BNB_BF16, first, last); break;
    default: round_rows_of(job, BNB_F32, first, last); break;
    }
}

/* Rounds rows of x from first_row on, as many as `to` has; false where integers can't stand for one. */
static bool round_x(const struct dense *x, size_t first_row, struct rounded *to) {
    _Atomic bool     unfit = false, leans = false;
    struct round_job job = {*x, to, first_row, &unfit, &leans};
    parallel_for(to->x.rows, (1 << 15) / x->columns + 1, round_rows_part, &job);
    to->leans = atomic_load_explicit(&leans, memory_order_relaxed);
    return !atomic_load_explicit(&unfit, memory_order_relaxed);
}
