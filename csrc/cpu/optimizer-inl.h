/* An optimizer's step: each block's states are decoded, updated and coded again while they are in registers and L1. */
#include "simd.h"

#define REAL    floats
#define ROOT(x) __builtin_elementwise_sqrt(x)
#define RULE    INLINE
#include "../../metal/optimizer_rule.h"

enum { STAGED = 8 * OPTIMIZER_BLOCK };

/* Moments as they were, then as they are before they are coded, of a few blocks, so that they stay in L1. Where sums of
 * squares are asked for p and the direction take the places of the first two. A last vector that is not full counts for
 * what is in it only. */
struct stage {
    float first[STAGED], second[STAGED], slow[STAGED];
};

/* Codes that are looked up in registers are decoded ahead, so that these are loaded once for all of a few blocks; from
 * memory they are decoded here, while a division goes on. */
INLINE floats load_state(const struct optimizer_state *state, bool coded, size_t i, float absmax, const float *staged) {
    if (!coded) return load_floats(state->values + i);
    if (HAS_TABLE256) return load_floats(staged);
    return values_of(table256_of(state->code->values), state->codes + i) * absmax;
}

/* The first `count` lanes. */
INLINE void store_some(void *data, bnb_dtype dtype, size_t i, floats v, size_t count) {
    if (count >= WIDTH) {
        store(data, dtype, i, v);
    } else {
        float rest[WIDTH];
        memcpy(rest, &v, sizeof v);
        for (size_t j = 0; j < count; j++) put_element(data, dtype, i + j, rest[j]);
    }
}

INLINE void save_state(const struct optimizer_state *state, bool coded, size_t i, floats v, float *staged,
                       size_t count) {
    if (coded)
        memcpy(staged, &v, sizeof v);
    else
        store_some(state->values, BNB_F32, i, v, count);
}

/* The moments of `count` elements from a block on, from codes to where they are staged. */
static void decode_moments(const struct optimizer_state *state, size_t block, size_t count, float *staged) {
    const struct weight states = {.coded = {
                                      .code = state->code,
                                      .codes = state->codes + block * OPTIMIZER_BLOCK,
                                      .rows = 1,
                                      .columns = count,
                                      .block = OPTIMIZER_BLOCK,
                                      .absmax = state->absmax + block,
                                  }};
    widen_weights(&states, 0, count, staged);
}

/* Those staged as codes. */
static void code_moments(const struct optimizer_state *state, size_t block, const float *staged, size_t count) {
    const struct quantize_job job = {
        .x = {staged, BNB_F32, 1, count},
        .code = state->code,
        .block = OPTIMIZER_BLOCK,
        .codes = state->codes + block * OPTIMIZER_BLOCK,
        .absmax = state->absmax + block,
    };
    quantize_floats(&job, 0, (count + OPTIMIZER_BLOCK - 1) / OPTIMIZER_BLOCK);
}

INLINE float square_sum(const float *values, size_t count) {
    floats sums = 0;
    size_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) sums += load_floats(values + i) * load_floats(values + i);
    float total = sum(sums);
    for (; i < count; i++) total += values[i] * values[i];
    return total;
}

/* Block b of those that are staged, which is the job's `block`. */
INLINE void step_block(const struct optimizer_job *job, size_t block, size_t b, struct stage *stage, uint32_t kind,
                       bool coded) {
    const bool   has_second = kind == RULE_ADAM || kind == RULE_ADEMAMIX, has_slow = kind == RULE_ADEMAMIX;
    const size_t begin = block * OPTIMIZER_BLOCK, count = least(OPTIMIZER_BLOCK, job->count - begin);
    const float  absmax_first = coded ? job->first.absmax[block] : 0;
    const float  absmax_second = coded && has_second ? job->second.absmax[block] : 0;
    const float  absmax_slow = coded && has_slow ? job->slow.absmax[block] : 0;
    for (size_t j = 0; j < count; j += WIDTH) {
        const size_t i = begin + j, at = b * OPTIMIZER_BLOCK + j;
        const floats p = load(job->p, job->p_dtype, i), g = load(job->g, job->g_dtype, i);
        moments      m = {.first = load_state(&job->first, coded, i, absmax_first, stage->first + at)};
        if (has_second) m.second = load_state(&job->second, coded, i, absmax_second, stage->second + at);
        if (has_slow) m.slow = load_state(&job->slow, coded, i, absmax_slow, stage->slow + at);

        stepped to = step_element(kind, job->rule, job->rate, p, g, m);
        if (job->squares) {
            memcpy(stage->first + at, &p, sizeof p);
            memcpy(stage->second + at, &to.direction, sizeof p);
            continue;
        }
        store_some(job->p, job->p_dtype, i, to.p, count - j);
        save_state(&job->first, coded, i, to.m.first, stage->first + at, count - j);
        if (has_second) save_state(&job->second, coded, i, to.m.second, stage->second + at, count - j);
        if (has_slow) save_state(&job->slow, coded, i, to.m.slow, stage->slow + at, count - j);
    }
    if (job->squares) {
        const float *p = stage->first + b * OPTIMIZER_BLOCK, *direction = stage->second + b * OPTIMIZER_BLOCK;
        job->squares[block] = (struct squares){square_sum(p, count), square_sum(direction, count)};
    }
}

INLINE void step_blocks(const struct optimizer_job *job, size_t first, size_t last, uint32_t kind, bool coded) {
    const bool   has_second = kind == RULE_ADAM || kind == RULE_ADEMAMIX, has_slow = kind == RULE_ADEMAMIX;
    const bool   ahead = coded && HAS_TABLE256;
    struct stage stage;
    for (size_t block = first; block < last; block += STAGED / OPTIMIZER_BLOCK) {
        const size_t blocks = least(STAGED / OPTIMIZER_BLOCK, last - block);
        const size_t count = least(blocks * OPTIMIZER_BLOCK, job->count - block * OPTIMIZER_BLOCK);
        if (ahead) decode_moments(&job->first, block, count, stage.first);
        if (ahead && has_second) decode_moments(&job->second, block, count, stage.second);
        if (ahead && has_slow) decode_moments(&job->slow, block, count, stage.slow);
        for (size_t b = 0; b < blocks; b++) step_block(job, block + b, b, &stage, kind, coded);
        if (!coded || job->squares) continue;
        code_moments(&job->first, block, stage.first, count);
        if (has_second) code_moments(&job->second, block, stage.second, count);
        if (has_slow) code_moments(&job->slow, block, stage.slow, count);
    }
}

INLINE void step_kind(const struct optimizer_job *job, size_t first, size_t last, uint32_t kind) {
    if (job->coded)
        step_blocks(job, first, last, kind, true);
    else
        step_blocks(job, first, last, kind, false);
}

static void optimizer(const void *optimizer_job, size_t first_block, size_t last_block) {
    const struct optimizer_job *job = optimizer_job;
    switch (job->kind) {
    case RULE_ADAM: step_kind(job, first_block, last_block, RULE_ADAM); break;
    case RULE_ADEMAMIX: step_kind(job, first_block, last_block, RULE_ADEMAMIX); break;
    case RULE_MOMENTUM: step_kind(job, first_block, last_block, RULE_MOMENTUM); break;
    case RULE_LION: step_kind(job, first_block, last_block, RULE_LION); break;
    default: step_kind(job, first_block, last_block, RULE_RMSPROP); break; /* Adagrad's differs in its numbers only */
    }
}
