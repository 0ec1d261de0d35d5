/* Products of a few rows with 4-bit weights in integers, straight from the codes as in matmul_vector.c: HIGH in int16,
 * MEDIUM in int8. A run's sum is an integer; what runs give is added up in fp32. */
#include <stdlib.h>

#include "simd.h"

/* Eight products of two int16 add up in a lane. */
enum { VECTOR_SHORTS_MOST = 16383, VECTOR_BYTES_MOST = 127 };

struct vector_int_run {
    const struct matmul_job *job;
    struct rounded  x;      /* its pairs (SHORTS) or fours (BYTES) in the order in which a chunk of codes gives them */
    float          *excess; /* x's, as floats */
    struct run_sums sums;   /* of x as it is rounded: what offsets and codes stand for together is often small */
};

static bool takes_vector_bytes(const struct matmul_job *job) { return HAS_BYTES && takes_vector_of(job, VECTOR_ROWS); }

/* The sums of a chunk of codes with one row of x. */
INLINE ints chunk_of_shorts(const shorts w[4], const int16_t *x) {
    ints part = 0;
    for (size_t v = 0; v < 4; v++) part = dot2(part, w[v], load_shorts(x + v * 2 * WIDTH));
    return part;
}

INLINE ints chunk_of_bytes(const words w[2], const int8_t *x) {
    ints part = dot_bytes((ints)0, w[0], (words)load_ints(x));
    return dot_bytes(part, w[1], (words)load_ints(x + 4 * WIDTH));
}

/* What a sum of run i of the weights counts for in row m's product: its integers, and its rests. */
struct run_scales {
    float integers[VECTOR_ROWS][SEGMENT], rests[VECTOR_ROWS][SEGMENT];
};

/* Of the runs from `begin` on; and what offsets add is taken off. */
INLINE void multiply_scales(const struct vector_int_run *run, enum factor_kind kind, const float *scales, size_t begin,
                            size_t count, size_t rows, struct run_scales *to, floats totals[VECTOR_ROWS]) {
    for (size_t i = 0; i < count; i += WIDTH) {
        floats scale = first_lanes(load_floats(scales + i), count - i);
        for (size_t m = 0; m < rows; m++) {
            size_t at = m * run->x.scaled + begin + i;
            floats product = scale * load_floats(run->x.scales + at);
            store(to->integers[m], BNB_F32, i, product);
            if (run->x.leans) store(to->rests[m], BNB_F32, i, scale * load_floats(run->x.means + at));
            if (kind == BYTES && run->x.to.offset) totals[m] = fma(load_floats(run->excess + at), product, totals[m]);
        }
    }
}

/* A chunk of codes with all rows of x. */
INLINE void multiply_chunk(const struct rounded *x, enum factor_kind kind, ints lane_run, const uint8_t *codes,
                           const uint32_t *factors, size_t rows, const struct run_scales *scales, size_t run,
                           floats totals[VECTOR_ROWS]) {
    words  packed = (words)load_ints(codes), bytes_of[2];
    shorts shorts_of[4];
    if (kind == SHORTS) {
        decode_shorts(code_table_of(x->to.shorts), packed, shorts_of);
    } else {
        bytes_of[0] = decode_bytes(x->to.bytes, packed);
        bytes_of[1] = decode_bytes(x->to.bytes, packed >> 4);
    }
    for (size_t m = 0; m < rows; m++) {
        const void *row = factors + m * x->x.stride;
        ints        part = kind == SHORTS ? chunk_of_shorts(shorts_of, row) : chunk_of_bytes(bytes_of, row);
        totals[m] =
            fma(__builtin_convertvector(part, floats), lane_scales(scales->integers[m] + run, lane_run), totals[m]);
    }
    if (!x->leans) return;
    floats rests = __builtin_convertvector(add_rests((ints)(-8 * NO_REST), &x->to, packed), floats);
    for (size_t m = 0; m < rows; m++) totals[m] = fma(rests, lane_scales(scales->rests[m] + run, lane_run), totals[m]);
}

INLINE void multiply_integers(const struct vector_int_run *run, enum factor_kind kind, size_t length, size_t first,
                              size_t last, size_t rows) {
    const struct coded q = run->job->w.coded;
    struct rounded     x = run->x; /* a copy, which no store can change */
    size_t             runs = q.columns / length, step = CHUNK / factor_elements(kind);
    size_t             shift = (size_t)__builtin_ctzll(length);
    ints               lane_run = runs_of_lanes(CHUNK, length);
    struct known_runs  scales_known, offsets_known;
    know_none(&scales_known), know_none(&offsets_known);
    for (size_t n = first; n < last; n++) {
        floats totals[2][VECTOR_ROWS] = {0};
        for (size_t begin = 0; begin < runs; begin += SEGMENT) {
            size_t count = least(SEGMENT, runs - begin), chunks = (count * length + CHUNK - 1) / CHUNK, chunk = 0;
            struct run_scales products;
            const float      *scales = runs_at(&scales_known, &q, SCALES, length, n * runs + begin, count, 1);
            multiply_scales(run, kind, scales, begin, count, rows, &products, totals[0]);
            const uint8_t  *codes = q.codes + (n * runs + begin) * (length / 2);
            const uint32_t *factors = x.x.factors + begin * length / factor_elements(kind);
            for (; chunk + 2 <= chunks; chunk += 2, codes += CHUNK, factors += 2 * step) {
                fetch_ahead(codes, CHUNK);
                multiply_chunk(&x, kind, lane_run, codes, factors, rows, &products, chunk * CHUNK >> shift, totals[0]);
                multiply_chunk(&x, kind, lane_run, codes + CHUNK / 2, factors + step, rows, &products,
                               (chunk + 1) * CHUNK >> shift, totals[TURNS(rows)]);
            }
            if (chunk < chunks)
                multiply_chunk(&x, kind, lane_run, codes, factors, rows, &products, chunk * CHUNK >> shift, totals[0]);
        }
        if (q.offsets) add_offsets(&offsets_known, &q, length, n, &run->sums, rows, totals[0]);
        put_row(run->job, n, rows, totals);
    }
}

INLINE void multiply_few_integers(const struct vector_int_run *run, enum factor_kind kind, size_t length, size_t first,
                                  size_t last) {
    switch (run->job->x.rows) {
    case 1: multiply_integers(run, kind, length, first, last, 1); break;
    case 2: multiply_integers(run, kind, length, first, last, 2); break;
    case 3: multiply_integers(run, kind, length, first, last, 3); break;
    default: multiply_integers(run, kind, length, first, last, 4); break;
    }
}

/* A constant length is worth its code where rows are few: it saves a tenth of the time. */
INLINE void multiply_integer_rows(const struct vector_int_run *run, enum factor_kind kind, size_t first, size_t last) {
    size_t length = run->x.length;
    switch (run->job->x.rows) {
    case 5: multiply_integers(run, kind, length, first, last, 5); break;
    case 6: multiply_integers(run, kind, length, first, last, FEW_ROWS); break;
    case 7: multiply_integers(run, kind, length, first, last, 7); break;
    case 8: multiply_integers(run, kind, length, first, last, VECTOR_ROWS); break;
    default:
        if (length == RUN)
            multiply_few_integers(run, kind, RUN, first, last);
        else
            multiply_few_integers(run, kind, SHORT_RUN, first, last);
    }
}

static void multiply_shorts_part(const void *vector_int_run, size_t first, size_t last) {
    multiply_integer_rows(vector_int_run, SHORTS, first, last);
}

static void multiply_bytes_part(const void *vector_int_run, size_t first, size_t last) {
    multiply_integer_rows(vector_int_run, BYTES, first, last);
}

/* From the order of rounded rows, lane after lane, to that of chunks, in which lanes lie side by side. */
static void deal_chunks(const uint32_t *from, enum factor_kind kind, size_t elements, uint32_t *to) {
    size_t words_of_chunk = kind == SHORTS ? CHUNK / 2 : CHUNK / 4;
    for (size_t chunk = 0; chunk < elements / CHUNK; chunk++, from += words_of_chunk)
        for (size_t slot = 0; slot < words_of_chunk; slot++)
            *to++ = from[kind == SHORTS ? pair_in_slot(slot) : slot % WIDTH * 2 + slot / WIDTH];
}

/* Calls `body` with rows [first, last) of w and a vector_int_run. */
static bnb_status run_vector_int(const struct matmul_job *job, const struct rounding *to, size_t length,
                                 void (*body)(const void *run, size_t first, size_t last)) {
    size_t               rows = job->x.rows, columns = job->x.columns;
    size_t               elements = round_up(columns, CHUNK), stride = elements / factor_elements(to->kind);
    size_t               scaled = round_up(most(1, elements / length), WIDTH);
    size_t               factors = round_up(rows * stride, 16), scales = round_up(rows * scaled, 16);
    size_t               bytes = (2 * factors + 5 * scales) * sizeof(uint32_t);
    alignas(64) uint32_t local[STACK];
    uint32_t            *scratch = bytes <= sizeof local ? local : aligned_alloc(64, bytes);
    if (!scratch) return no_working_space("matmul", bytes);
    float                *of_runs = (float *)(scratch + 2 * factors), *sums = of_runs + 4 * scales;
    struct vector_int_run run = {.job = job,
                                 .x =
                                     {
                                         .to = *to,
                                         .x = {scratch + factors, rows, rows, stride},
                                         .length = length,
                                         .scaled = scaled,
                                         .scales = of_runs,
                                         .means = of_runs + scales,
                                         .excess = (int32_t *)(of_runs + 2 * scales),
                                     },
                                 .excess = of_runs + 3 * scales,
                                 .sums = {sums, job->w.coded.offsets ? scaled : 0}};
    bool                  fit = round_x(&job->x, 0, &run.x);
    if (fit) {
        if (!to->in_order) {
            deal_chunks(run.x.x.factors, to->kind, rows * elements, scratch);
            run.x.x.factors = scratch;
        }
        for (size_t i = 0; to->kind == BYTES && i < rows * scaled; i++) run.excess[i] = (float)run.x.excess[i];
        float unit = unit_of_sums(&run.x);
        for (size_t i = 0; i < rows * run.sums.stride; i++) sums[i] = run.x.means[i] * unit;
        parallel_for(job->w.coded.rows, VECTOR_WORK / (columns * rows) + 1, body, &run);
    }
    if (scratch != local) free(scratch);
    return fit ? BNB_OK : BNB_UNSUPPORTED;
}

static bnb_status matmul_vector_shorts(const struct matmul_job *job) {
    struct rounding to = rounding_of(job->w.coded.code, SHORTS, FIT_16383, VECTOR_SHORTS_MOST);
    return run_vector_int(job, &to, run_length(job, 4), multiply_shorts_part);
}

static bnb_status matmul_vector_bytes(const struct matmul_job *job) {
    struct rounding to = rounding_of(job->w.coded.code, BYTES, FIT_127, VECTOR_BYTES_MOST);
    return run_vector_int(job, &to, run_length(job, 4), multiply_bytes_part);
}
