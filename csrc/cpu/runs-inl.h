/* Runs of weights, of which each has one scale and one offset: how long they are, and those as floats, many at once. */
#include "simd.h"

enum {
    SEGMENT = 64, /* runs that are multiplied under scales that lie side by side */
    KNOWN = 256,  /* runs whose scales are worked out at once */
};

/* The length of runs, at least so many codes, if each run of a row has nothing but one scale; else 0. */
static size_t run_length_of(const struct matmul_job *job, size_t shortest) {
    size_t both = job->x.columns | job->w.coded.block; /* a multiple of what both are multiples of */
    for (size_t length = RUN; length >= shortest; length /= 2)
        if (both % length == 0) return length;
    return 0;
}

/* The same of w where it has codes of so many bits; else 0. */
static size_t run_length(const struct matmul_job *job, uint32_t bits) {
    const struct codebook *code = job->w.coded.code;
    return code && code->bits == bits ? run_length_of(job, SHORT_RUN) : 0;
}

/* The same of w where its codes are integers; else 0. */
static size_t codes_run_length(const struct matmul_job *job) {
    const struct codebook *code = job->w.coded.code;
    return code && code->step && code->bits != 4 ? run_length_of(job, SHORTEST_RUN) : 0;
}

/* ── Scales and offsets ─────────────────────────────────────────────────────────────────────────────────────────── */

enum block_part { SCALES, OFFSETS };

/* Lane i's is the index'th of what follows; a lane's index is less than WIDTH. */
INLINE floats spread(floats values, ints index) {
    float of_lanes[16] = {0};
    memcpy(of_lanes, &values, sizeof values);
    return WIDTH == 16 ? lookup16(table16_of(of_lanes), index) : lookup8(table8_of(of_lanes), index);
}

INLINE ints lanes_from(size_t first) {
    ints lanes;
    for (int i = 0; i < WIDTH; i++) lanes[i] = i;
    return lanes + (int32_t)first;
}

/* What is past so many lanes may be of any kind, and must not count. */
INLINE floats first_lanes(floats values, size_t count) {
    return lanes_from(0) < (int32_t)least(count, WIDTH) ? values : (floats)0;
}

/* WIDTH floats from the ith on, of a dtype that is no constant. */
INLINE floats load_any(const void *data, bnb_dtype dtype, size_t i) {
    switch (dtype) {
    case BNB_F16: return load(data, BNB_F16, i);
    case BNB_BF16: return load(data, BNB_BF16, i);
    default: return load(data, BNB_F32, i);
    }
}

/* How many groups after its own those of WIDTH blocks from `block` on are. */
INLINE ints groups_after(const struct coded *q, size_t block, size_t group) {
    size_t in_group = block - group * q->nested_block;
    if ((q->nested_block & (q->nested_block - 1)) == 0)
        return lanes_from(in_group) >> (int32_t)__builtin_ctzll(q->nested_block);
    int32_t after[WIDTH];
#pragma clang loop unroll(disable)
    for (size_t i = 0; i < WIDTH; i++) after[i] = (int32_t)((in_group + i) / q->nested_block);
    return load_ints(after);
}

/* How the codes of scales or offsets become these. */
struct coded_part {
    const struct coded *q;
    table256            table;
    const void         *absmax;
    const float        *offsets; /* of groups, or NULL */
    float               offset;
};

INLINE struct coded_part coded_part_of(const struct coded *q, enum block_part part) {
    bool scales = part == SCALES;
    return (struct coded_part){
        .q = q,
        .table = table256_of(q->nested_code->values),
        .absmax = scales ? q->nested_absmax : q->offsets_absmax,
        .offsets = scales ? q->nested_offsets : NULL,
        .offset = scales ? q->offset : 0,
    };
}

/* WIDTH of them, by their codes as bytes, from a block on, which lies in a group. Those past the last block may be
 * anything. */
INLINE floats coded_values(struct coded_part part, const uint8_t *codes, size_t block, size_t group) {
    ints   after = groups_after(part.q, block, group);
    floats factor = spread(load_any(part.absmax, part.q->nested_dtype, group), after);
    floats offset = part.offsets ? spread(load_floats(part.offsets + group), after) : (floats)part.offset;
    floats product = values_of_bytes(part.q->nested_code, part.table, codes) * factor;
    return product + offset;
}

/* `count` of them, whole vectors, that lie in one group. */
INLINE void coded_values_of_group(struct coded_part part, const uint8_t *codes, size_t group, size_t count, float *to) {
    float factor = float_at(part.absmax, part.q->nested_dtype, group);
    float offset = part.offsets ? part.offsets[group] : part.offset;
    for (size_t i = 0; i < count; i += WIDTH) {
        floats product = values_of_bytes(part.q->nested_code, part.table, codes + i) * factor;
        store(to, BNB_F32, i, product + offset);
    }
}

/* Scales or offsets that are no codes: these, or NULL. */
INLINE const void *plain_values(const struct coded *q, enum block_part part, bnb_dtype *dtype) {
    *dtype = part == OFFSETS ? q->offsets_dtype : q->absmax ? BNB_F32 : q->absmax_dtype;
    if (part == OFFSETS) return q->offsets_absmax ? NULL : q->offsets;
    return q->absmax ? (const void *)q->absmax : q->absmax_halves;
}

/* The scales or offsets of runs [first, first + count) of the weights, with zeros up to whole vectors, where a block is
 * any number of runs. */
static void values_of_runs(const struct coded *q, enum block_part part, size_t length, size_t first, size_t count,
                           float to[KNOWN]) {
    size_t block = first * length / q->block, next = (block + 1) * q->block / length;
    for (size_t i = 0; i < count; next += q->block / length, block++) {
        float value = part == SCALES ? scale_of(q, block) : offset_of(q, block);
        while (i < least(count, next - first)) to[i++] = value;
    }
    for (size_t i = count; i % WIDTH; i++) to[i] = 0;
}

/* Values of WIDTH blocks as those of as many runs, `first` being the first run; of a block there are 2^shift. */
INLINE floats values_by_run(floats values, size_t first, uint32_t shift) {
    return shift ? spread(values, lanes_from(first & (((size_t)1 << shift) - 1)) >> (int32_t)shift) : values;
}

/* The same by vectors where they are codes; not inlined, for it is long, and is called for many runs at once. */
static __attribute__((noinline)) void coded_values_at(const struct coded *q, enum block_part part, uint32_t shift,
                                                      size_t first, size_t count, float to[KNOWN]) {
    size_t         start = (first >> shift) / 16 * 16, last = (first + count - 1) >> shift;
    uint8_t        local[KNOWN + 16 + BYTE_CHUNK];
    const uint8_t *codes = part == SCALES ? q->absmax_codes : q->offsets;
    codes = bytes_of_codes(codes, q->nested_code->bits, start, last + 1 - start, local);

    const struct coded_part coded = coded_part_of(q, part);
    size_t                  group = group_of(q, first >> shift);
    for (size_t i = 0, whole; i < count; i += most(whole, WIDTH)) {
        size_t block = (first + i) >> shift;
        while (block >= (group + 1) * q->nested_block) group++;
        whole = shift ? 0 : least(count - i, (group + 1) * q->nested_block - block) / WIDTH * WIDTH;
        coded_values_of_group(coded, codes + block - start, group, whole, to + i);
        if (whole) continue;
        floats values = values_by_run(coded_values(coded, codes + block - start, block, group), first + i, shift);
        store(to, BNB_F32, i, first_lanes(values, count - i));
    }
}

/* The same, mostly by vectors. */
static void values_at(const struct coded *q, enum block_part part, size_t length, size_t first, size_t count,
                      float to[KNOWN]) {
    size_t      runs = q->block >> __builtin_ctzll(length); /* of a block: a power of two, but with 8 bits */
    uint32_t    shift = (uint32_t)__builtin_ctzll(runs);
    bnb_dtype   dtype;
    const void *plain = plain_values(q, part, &dtype);
    if (runs >> shift != 1) {
        values_of_runs(q, part, length, first, count, to);
    } else if (!plain) {
        coded_values_at(q, part, shift, first, count, to);
    } else {
        for (size_t i = 0; i < count; i += WIDTH) {
            floats values = values_by_run(load_any(plain, dtype, (first + i) >> shift), first + i, shift);
            store(to, BNB_F32, i, first_lanes(values, count - i));
        }
    }
}

/* Scales or offsets that are known: who goes from row to row has those of the next ones too, where rows are short. */
struct known_runs {
    size_t first, count;
    float  values[KNOWN + 16], row[SEGMENT + 4];
};

INLINE void know_none(struct known_runs *known) { known->first = known->count = 0; }

/* What follows from run `first` on, of its row at least `count`. */
static __attribute__((noinline)) void learn_runs(struct known_runs *known, const struct coded *q, enum block_part part,
                                                 size_t length, size_t first, size_t count) {
    size_t runs = q->columns / length, some = KNOWN / runs * runs;
    known->first = first;
    known->count = some ? least(some, q->rows * runs - first) : count;
    values_at(q, part, length, first, known->count, known->values);
}

/* Those of runs [first, first + count), all in one row of w, with zeros up to a multiple of `whole`, a constant. */
INLINE const float *runs_at(struct known_runs *known, const struct coded *q, enum block_part part, size_t length,
                            size_t first, size_t count, size_t whole) {
    const float *values;
    if (part == SCALES && q->absmax && q->block == length) {
        values = q->absmax + first;
    } else {
        if (first < known->first || first + count > known->first + known->count)
            learn_runs(known, q, part, length, first, count);
        values = known->values + (first - known->first);
    }
    if (count % whole == 0) return values;
    for (size_t i = 0; i < count; i += WIDTH)
        store(known->row, BNB_F32, i, first_lanes(load_floats(values + i), count - i));
    return known->row;
}

/* Which of the runs of a chunk of so many codes each lane's are. */
INLINE ints runs_of_lanes(size_t chunk, size_t length) {
    ints runs;
    for (size_t lane = 0; lane < WIDTH; lane++) runs[lane] = (int32_t)(lane * (chunk / WIDTH) / length);
    return runs;
}

/* Their scales, the first run's being the first of at least four. */
INLINE floats lane_scales(const float *scales, ints runs) {
    return WIDTH == 4 ? (floats)*scales : lookup4(table4_of(scales), runs);
}

/* ── Products of offsets ────────────────────────────────────────────────────────────────────────────────────────── */

/* What x adds up to in each run of the weights, where these have offsets: an offset times that is all that it adds to a
 * product. */
struct run_sums {
    const float *sums; /* [rows, stride]: zeros stand after a row's last */
    size_t       stride;
};

/* What the offsets of w's row n make of row m of x; not inlined, for a row asks for it once. */
static __attribute__((noinline)) float offsets_product(struct known_runs *known, const struct coded *q, size_t length,
                                                       size_t n, const struct run_sums *x, size_t m) {
    size_t runs = q->columns / length;
    floats total = 0;
    for (size_t begin = 0; begin < runs; begin += SEGMENT) {
        size_t       count = least(SEGMENT, runs - begin);
        const float *offsets = runs_at(known, q, OFFSETS, length, n * runs + begin, count, 1);
        for (size_t i = 0; i < count; i += WIDTH) {
            floats sums = load_floats(x->sums + m * x->stride + begin + i);
            total = fma(first_lanes(load_floats(offsets + i), count - i), sums, total);
        }
    }
    return sum(total);
}

/* Adds them to what the lanes of totals add up to. */
INLINE void add_offsets(struct known_runs *known, const struct coded *q, size_t length, size_t n,
                        const struct run_sums *x, size_t rows, floats totals[]) {
    for (size_t m = 0; m < rows; m++) totals[m][0] += offsets_product(known, q, length, n, x, m);
}

/* What each row of x adds up to run by run, to [rows, stride]. */
static void sum_runs(const struct dense *x, size_t length, size_t stride, float *to) {
    size_t runs = x->columns / length;
    for (size_t m = 0; m < x->rows; m++)
        for (size_t run = 0; run < stride; run++) {
            size_t at = m * x->columns + run * length;
            float  local[RUN];
            floats total = 0;
            if (run < runs) widen(x, at, at + length, local);
            for (size_t i = 0; run < runs && i < length; i += WIDTH) total += load_floats(local + i);
            *to++ = sum(total);
        }
}

/* Floats of a row's sums of runs: none where there are no offsets. */
static size_t sums_stride(const struct matmul_job *job, size_t length) {
    return job->w.coded.offsets ? round_up(job->x.columns / length, WIDTH) : 0;
}
