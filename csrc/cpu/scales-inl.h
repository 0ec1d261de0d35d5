/* The scales of least squared error. A block is brought to fp32 once, for all the scales that are tried on it. */
#include "simd.h"

#include "scales.h"

enum { SCALES_STAGED = 4096 };

/* A block, or a part of one that is larger: filled up to whole vectors with what weighs nothing. */
struct scales_stage {
    float  x[SCALES_STAGED], weights[SCALES_STAGED];
    size_t count;   /* a multiple of SCALES_LANES */
    bool   weighed; /* else every weight is 1 */
};

/* The codebook in the order of its values. */
struct ranked {
    const struct codebook *code;
    struct levels          levels; /* of less than 256 values */
    float                  values[256];
};

/* The sums that a trial is made of, SCALES_LANES lanes of each. */
struct sums {
    floats errors[VECTORS_OF_32], products[VECTORS_OF_32], squares[VECTORS_OF_32];
};

INLINE float sum_lanes(const floats lanes[VECTORS_OF_32]) {
    floats v[VECTORS_OF_32];
    memcpy(v, lanes, sizeof v);
    for (int half = VECTORS_OF_32 / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
#if WIDTH == 16
    typedef VECTOR(float, 8) floats8;
    floats8 eight = v[0].lo + v[0].hi;
    floats4 four = eight.lo + eight.hi;
#elif WIDTH == 8
    floats4 four = v[0].lo + v[0].hi;
#else
    floats4 four = v[0];
#endif
    return (four.x + four.z) + (four.y + four.w);
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
    if (bits < 8) return lookup_bits(codes->values, bits, below_in_levels(&codes->levels, bits, x));
    int32_t shift = (int32_t)codes->code->entry_shift;
    return gather(codes->values, shift ? below_in_entries(codes->code, shift, x) : below_in_buckets(codes->code, x));
}

INLINE void add_part(const struct scales_stage *stage, const struct ranked *codes, uint32_t bits, bool weighed,
                     float scale, struct sums *sums) {
    float inverse = inverse_of(scale);
    for (int v = 0; v < VECTORS_OF_32; v++) {
        floats errors = sums->errors[v], products = sums->products[v], squares = sums->squares[v];
        for (size_t i = (size_t)v * WIDTH; i < stage->count; i += SCALES_LANES) {
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
        sums->errors[v] = errors, sums->products[v] = products, sums->squares[v] = squares;
    }
}

INLINE trial try_scale(const struct scales_job *job, struct span span, struct scales_stage *stage,
                       const struct ranked *codes, uint32_t bits, float scale) {
    struct sums sums = {0};
    for (size_t at = span.begin; at < span.end; at += SCALES_STAGED) {
        if (span.end - span.begin > SCALES_STAGED)
            stage_part(job, at, least(SCALES_STAGED, span.end - at), span.unit, stage);
        if (stage->weighed)
            add_part(stage, codes, bits, true, scale, &sums);
        else
            add_part(stage, codes, bits, false, scale, &sums);
    }
    return trial_of(scale, sum_lanes(sums.errors), sum_lanes(sums.products), sum_lanes(sums.squares));
}

INLINE void search_blocks(const struct scales_job *job, size_t first, size_t last, uint32_t bits) {
    const struct codebook *code = job->code;
    struct ranked          codes = {.code = code};
    for (uint32_t rank = 0; rank < code->size; rank++) codes.values[rank] = code->values[code->order[rank]];
    if (bits < 8) fill_levels(&codes.levels, code);

    struct scales_stage stage;
    for (size_t block = first; block < last; block++) {
        struct span span = span_of(job, block);
        job->absmax[block] = span.largest;
        if (!is_searched(span.largest, span.magnitude)) continue;

        float unit_largest = span.largest * span.unit, next = span.magnitude * span.unit * job->args.first;
        if (span.end - span.begin <= SCALES_STAGED)
            stage_part(job, span.begin, span.end - span.begin, span.unit, &stage);
        search best = {0};
        for (int i = 0; i <= SCALES_TRIED + SCALES_REFINED; i++) { /* one call, because it is inlined at each width */
            float scale = i == 0 ? unit_largest : i <= SCALES_TRIED ? next : best.refined;
            trial tried = try_scale(job, span, &stage, &codes, bits, scale);
            best = i == 0 ? begin_search(tried) : consider(best, tried);
            if (i > 0) next *= job->args.ratio;
        }
        job->absmax[block] = scale_back(best.scale, unit_largest, span.largest, span.power);
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
