/* The forms of an optimizer's step, held to metal/optimizer_rule.h bit by bit: part of forms_test.c. */

#define REAL    float
#define ROOT(x) sqrtf(x)
#define RULE    static inline
#include "../../metal/optimizer_rule.h"

static const struct optimizer_rule a_rule = {
    .keep_first = 0.9f,
    .take_first = 0.1f,
    .keep_second = 0.99f,
    .take_second = 0.01f,
    .keep_slow = 0.999f,
    .take_slow = 0.001f,
    .mix_first = 0.3f,
    .mix_slow = 2,
    .eps = 1e-6f,
    .rate = -0.1f,
    .shrink = 0.999f,
    .decay = 0.01f,
    .gradient_scale = 0.5f,
    .most = 1e18f,
};

/* A state of `count` elements that ends at memory which can't be touched, and a copy of it as floats. */
static struct optimizer_state state_random(const struct codebook *code, bool coded, size_t count, float *floats) {
    struct optimizer_state state = {.values = coded ? NULL : guarded(count * sizeof(float), READ_SLACK)};
    if (coded) {
        size_t blocks = (count + OPTIMIZER_BLOCK - 1) / OPTIMIZER_BLOCK;
        state.code = code, state.codes = guarded(count, READ_SLACK), state.absmax = guarded(blocks * sizeof(float), 0);
        for (size_t b = 0; b < blocks; b++) state.absmax[b] = fabsf(normal());
    }
    for (size_t i = 0; i < count; i++) {
        if (coded)
            state.codes[i] = (uint8_t)(127 + (random_bits() >> 57)); /* from 0 on in the dynamic map */
        else
            state.values[i] = fabsf(normal());
        floats[i] = coded ? code->values[state.codes[i]] * state.absmax[i / OPTIMIZER_BLOCK] : state.values[i];
    }
    return state;
}

/* The state holds those floats or, block by block, their nearest codes. */
static void expect_state(const struct optimizer_state *state, size_t count, const float *right) {
    for (size_t begin = 0; begin < count; begin += OPTIMIZER_BLOCK) {
        size_t end = begin + OPTIMIZER_BLOCK < count ? begin + OPTIMIZER_BLOCK : count;
        float  absmax = 0;
        for (size_t i = begin; i < end; i++) absmax = fmaxf(absmax, fabsf(right[i]));
        if (state->codes)
            EXPECT(state->absmax[begin / OPTIMIZER_BLOCK] == absmax, "absmax %g, not %g",
                   (double)state->absmax[begin / OPTIMIZER_BLOCK], (double)absmax);
        for (size_t i = begin; i < end; i++) {
            if (state->codes)
                EXPECT(state->codes[i] == nearest_code(state->code, right[i] * inverse_of(absmax)),
                       "code[%zu] of %zu is %d", i, count, state->codes[i]);
            else
                EXPECT(state->values[i] == right[i], "state[%zu] of %zu is %a, not %a", i, count,
                       (double)state->values[i], (double)right[i]);
        }
    }
}

static void check_optimizer_of_one(uint32_t kind, bool coded, size_t count, bnb_dtype p_dtype, bnb_dtype g_dtype) {
    size_t       blocks = (count + OPTIMIZER_BLOCK - 1) / OPTIMIZER_BLOCK;
    struct dense p = dense_random(p_dtype, 1, count), g = dense_random(g_dtype, 1, count);
    float       *first = malloc(count * sizeof *first), *second = malloc(count * sizeof *second),
          *slow = malloc(count * sizeof *slow);
    void *right = malloc(count * size_of(p_dtype));
    put_element((void *)g.data, g_dtype, count / 2, NAN);
    memset((char *)g.data + count * size_of(g_dtype), 0x3c,
           READ_SLACK); /* numbers, so that a step past the end would show */
    struct optimizer_job job = {
        .kind = kind,
        .rule = a_rule,
        .rate = a_rule.rate,
        .count = count,
        .p = (void *)p.data,
        .g = g.data,
        .p_dtype = p_dtype,
        .g_dtype = g_dtype,
        .coded = coded,
        .first = state_random(books[DYNAMIC], coded, count, first),
        .second = state_random(books[UNSIGNED], coded, count, second),
        .slow = state_random(books[SCATTERED8], coded, count, slow),
        .squares = guarded(blocks * sizeof(struct squares), 0),
    };
    forms->optimizer(&job, 0, blocks); /* sums only */
    double squares = 0, sums = 0;
    for (size_t i = 0; i < count; i++) {
        moments m = {first[i], second[i], slow[i]};
        stepped to = step_element(kind, a_rule, a_rule.rate, element_of(&p, i), element_of(&g, i), m);
        put_element(right, p_dtype, i, to.p);
        first[i] = to.m.first, second[i] = to.m.second, slow[i] = to.m.slow;
        squares += (double)(to.direction * to.direction) + (double)(element_of(&p, i) * element_of(&p, i));
    }
    for (size_t b = 0; b < blocks; b++) sums += (double)job.squares[b].p + (double)job.squares[b].direction;
    EXPECT(fabs(sums / squares - 1) < 1e-5, "sums of squares are %g, not %g", sums, squares);
    job.squares = NULL;
    forms->optimizer(&job, 0, blocks / 2);
    forms->optimizer(&job, blocks / 2, blocks);
    for (size_t i = 0; i < count; i++)
        EXPECT(same_element(right, p.data, p_dtype, i), "p[%zu] of %zu differs (kind %u, dtypes %d %d)", i, count, kind,
               p_dtype, g_dtype);
    for (size_t i = 0; i < READ_SLACK; i++)
        EXPECT(((uint8_t *)p.data)[count * size_of(p_dtype) + i] == 0xff, "wrote past the end of p");
    expect_state(&job.first, count, first);
    if (kind == RULE_ADAM || kind == RULE_ADEMAMIX) expect_state(&job.second, count, second);
    if (kind == RULE_ADEMAMIX) expect_state(&job.slow, count, slow);
    free(first), free(second), free(slow), free(right);
    release_all();
}

/* Each works in place, so each gets the same numbers anew. */
static void check_optimizer(uint32_t kind, bool coded, size_t count, bnb_dtype p_dtype, bnb_dtype g_dtype) {
    uint64_t before = state;
    EACH_FORM {
        state = before;
        check_optimizer_of_one(kind, coded, count, p_dtype, g_dtype);
    }
}

static void test_optimizer(void) {
    static const size_t counts[] = {1, 3, 15, 16, 17, 255, 256, 257, 2048, 5003};
    for (uint32_t kind = RULE_ADAM; kind <= RULE_ADAGRAD; kind++)
        EACH (c, counts)
            EACH (d, dtypes)
                EACH (e, dtypes)
                    for (int coded = 0; coded < 2; coded++)
                        check_optimizer(kind, coded, counts[c], dtypes[d], dtypes[e]);
}
