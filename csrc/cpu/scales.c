/* The scales of least squared error. A block is brought to fp32 once, for all the scales that are tried on it. */
#include "simd.h"

#include "../../metal/scales_rule.h"

enum { SCALES_STAGED = 4096 };

/* A block, or a part of one that is larger: filled up to whole vectors with what weighs nothing. */
struct scales_stage {
    float  x[SCALES_STAGED], weights[SCALES_STAGED];
    size_t count;   /* a multiple of SCALES_LANES */
    bool   weighed; /* else every weight is 1 */
};

/* The codebook in the order of its values. With 16 of them the thresholds are a heap too: below a node are 2 · node and
 * 2 · node + 1, the root is 1, and past the leaves a node's low 4 bits are the rank. */
struct ranked {
    const struct codes *code;
    float               values[256], heap[16];
    struct levels       levels; /* of any other number up to 128 */
};

typedef VECTOR(float, SCALES_LANES) lanes;

INLINE float sum_lanes(lanes v) {
    VECTOR(float, 16) half = v.lo + v.hi;
    VECTOR(float, 8) quarter = half.lo + half.hi;
    floats4 four = quarter.lo + quarter.hi;
    VECTOR(float, 2) two = four.lo + four.hi;
    return two.x + two.y;
}

static void stage_part(const struct scales_job *job, size_t first, size_t count, float unit, struct scales_stage *to) {
    size_t column = job->importance ? first % job->args.columns : 0;
    to->count = round_up(count, SCALES_LANES);
    to->weighed = job->importance || to->count != count;
    for (size_t j = 0; j < to->count; j++) {
        to->weights[j] = j >= count ? 0 : job->importance ? job->importance[column] : 1;
        to->x[j] = to->weights[j] > 0 ? element_of(&job->x, first + j) * unit : 0;
        if (++column == job->args.columns) column = 0;
    }
}

INLINE floats value_near(const struct ranked *codes, uint32_t bits, floats x) {
    if (bits == 4) {
        table8 above = table8_of(codes->heap), leaves = table8_of(codes->heap + 8);
        ints node = 2 - (ints)(x > codes->heap[1]);
        node += node - (ints)(x > lookup8(above, node));
        node += node - (ints)(x > lookup8(above, node));
        node += node - (ints)(x > lookup8(leaves, node));
        return lookup16(table16_of(codes->values), node);
    }
    if (bits < 8) return lookup_bits(codes->values, bits, below_in_levels(&codes->levels, bits, x));
    int32_t shift = (int32_t)codes->code->entry_shift;
    return gather(codes->values, shift ? below_in_entries(codes->code, shift, x) : below_in_buckets(codes->code, x));
}

/* The three sums that a trial is made of, a vector of lanes at a time. */
INLINE void add_part(const struct scales_stage *stage, const struct ranked *codes, uint32_t bits, bool weighed, float scale, float sums[3][SCALES_LANES]) {
    float inverse = inverse_of(scale);
    for (size_t lane = 0; lane < SCALES_LANES; lane += WIDTH) {
        floats errors = load_floats(sums[0] + lane), products = load_floats(sums[1] + lane), squares = load_floats(sums[2] + lane);
        for (size_t i = lane; i < stage->count; i += SCALES_LANES) {
            floats x = load_floats(stage->x + i), value = value_near(codes, bits, clamp(x * inverse));
            floats error = x - value * scale, weighed_error = error, weighed_value = value;
            if (weighed) {
                floats weight = load_floats(stage->weights + i);
                weighed_error = weight * error, weighed_value = weight * value;
            }
            errors += weighed_error * error;
            products += weighed_error * value;
            squares += weighed_value * value;
        }
        memcpy(sums[0] + lane, &errors, sizeof errors);
        memcpy(sums[1] + lane, &products, sizeof products);
        memcpy(sums[2] + lane, &squares, sizeof squares);
    }
}

struct span {
    size_t begin, end;
    float  unit;
};

INLINE trial try_scale(const struct scales_job *job, struct span span, struct scales_stage *stage, const struct ranked *codes, uint32_t bits, float scale) {
    float sums[3][SCALES_LANES] = {0};
    for (size_t at = span.begin; at < span.end; at += SCALES_STAGED) {
        if (span.end - span.begin > SCALES_STAGED) stage_part(job, at, least(SCALES_STAGED, span.end - at), span.unit, stage);
        if (stage->weighed) add_part(stage, codes, bits, true, scale, sums);
        else add_part(stage, codes, bits, false, scale, sums);
    }
    lanes errors, products, squares;
    memcpy(&errors, sums[0], sizeof errors);
    memcpy(&products, sums[1], sizeof products);
    memcpy(&squares, sums[2], sizeof squares);
    return trial_of(scale, sum_lanes(errors), sum_lanes(products), sum_lanes(squares));
}

/* The block's largest magnitudes, of all and of what weighs anything, as bits. */
static void find_magnitudes(const struct scales_job *job, size_t begin, size_t end, uint32_t *all, uint32_t *weighed) {
    for (size_t i = begin; i < end; i++) {
        uint32_t magnitude = float_bits(element_of(&job->x, i)) & 0x7fffffff;
        if (magnitude > *all) *all = magnitude;
        if (magnitude > *weighed && (!job->importance || job->importance[i % job->args.columns] > 0)) *weighed = magnitude;
    }
}

INLINE void search_blocks(const struct scales_job *job, size_t first, size_t last, uint32_t bits) {
    const struct codes *code = job->code;
    struct ranked codes = {.code = code};
    for (uint32_t rank = 0; rank < code->size; rank++) codes.values[rank] = code->values[code->order[rank]];
    for (uint32_t node = 1, step = 16; bits == 4 && node < 16; node++) {
        if ((node & (node - 1)) == 0) step /= 2;
        codes.heap[node] = code->thresholds[(2 * node + 1) * step - 17];
    }
    if (bits != 4 && bits != 8) fill_levels(&codes.levels, code);

    struct scales_stage stage;
    size_t total = job->x.rows * job->x.columns;
    for (size_t block = first; block < last; block++) {
        struct span span = {.begin = block * job->block, .end = least((block + 1) * job->block, total)};
        uint32_t all = 0, weighed = 0;
        find_magnitudes(job, span.begin, span.end, &all, &weighed);
        float largest = bits_float(all), magnitude = bits_float(weighed);
        job->absmax[block] = largest;
        if (!is_searched(largest, magnitude)) continue;

        uint32_t exponent = exponent_of(magnitude);
        span.unit = power_of(254 - exponent);
        float unit_largest = largest * span.unit, next = magnitude * span.unit * job->args.first;
        if (span.end - span.begin <= SCALES_STAGED) stage_part(job, span.begin, span.end - span.begin, span.unit, &stage);
        search best = begin_search(try_scale(job, span, &stage, &codes, bits, unit_largest));
        for (int i = 0; i < SCALES_TRIED + SCALES_REFINED; i++) {
            best = consider(best, try_scale(job, span, &stage, &codes, bits, i < SCALES_TRIED ? next : best.refined));
            next *= job->args.ratio;
        }
        job->absmax[block] = scale_back(best.scale, unit_largest, largest, power_of(exponent));
    }
}

static void scales(const void *scales_job, size_t first_block, size_t last_block) {
    const struct scales_job *job = scales_job;
    switch (job->code->bits) {
    case 2: search_blocks(job, first_block, last_block, 2); break;
    case 3: search_blocks(job, first_block, last_block, 3); break;
    case 4: search_blocks(job, first_block, last_block, 4); break;
    case 5: search_blocks(job, first_block, last_block, 5); break;
    case 6: search_blocks(job, first_block, last_block, 6); break;
    case 7: search_blocks(job, first_block, last_block, 7); break;
    default: search_blocks(job, first_block, last_block, 8); break;
    }
}
