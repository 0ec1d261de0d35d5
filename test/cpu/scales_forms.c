/* The part of forms_test.c that holds the search for scales to metal/scales_rule.h, an element at a time. */
#include "../../metal/scales_rule.h"

static float add_lanes(float sums[SCALES_LANES]) {
    for (size_t half = SCALES_LANES / 2; half; half /= 2)
        for (size_t lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}

static trial try_one_scale(const struct codebook *code, const float *x, const float *weights, size_t count,
                           float scale) {
    float sums[3][SCALES_LANES] = {0}, inverse = inverse_of(scale);
    for (size_t i = 0; i < count; i++) {
        float value = code->values[nearest_code(code, x[i] * inverse)], error = x[i] - value * scale;
        sums[0][i % SCALES_LANES] += weights[i] * error * error;
        sums[1][i % SCALES_LANES] += weights[i] * error * value;
        sums[2][i % SCALES_LANES] += weights[i] * value * value;
    }
    return trial_of(scale, add_lanes(sums[0]), add_lanes(sums[1]), add_lanes(sums[2]));
}

/* The scale of a block's elements and weights; x is brought to a magnitude of about 1 in place. */
static float right_scale(const struct scales_job *job, float *x, const float *weights, size_t count) {
    float absmax = 0, magnitude = 0;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) return x[i];
        absmax = fmaxf(absmax, fabsf(x[i]));
        if (weights[i] > 0) magnitude = fmaxf(magnitude, fabsf(x[i]));
    }
    if (!is_searched(absmax, magnitude)) return absmax;
    uint32_t exponent = exponent_of(magnitude);
    float    unit = power_of(254 - exponent), next = magnitude * unit * job->args.first;
    for (size_t i = 0; i < count; i++) x[i] = weights[i] > 0 ? x[i] * unit : 0;
    search best = begin_search(try_one_scale(job->code, x, weights, count, absmax * unit));
    for (int i = 0; i < SCALES_TRIED; i++, next *= job->args.ratio)
        best = consider(best, try_one_scale(job->code, x, weights, count, next));
    for (int i = 0; i < SCALES_REFINED; i++)
        best = consider(best, try_one_scale(job->code, x, weights, count, best.refined));
    return scale_back(best.scale, absmax * unit, absmax, power_of(exponent));
}

static void check_scales(const struct codebook *code, struct dense x, const float *importance, size_t block) {
    static float      part[9001], weights[9001], right[9001];
    size_t            count = x.rows * x.columns, blocks = (count + block - 1) / block;
    struct scales_job job = {
        .x = x,
        .code = code,
        .block = block,
        .importance = importance,
        .args = {.columns = (uint32_t)x.columns, .first = 0.5f, .ratio = 1.04f},
        .absmax = guarded(blocks * sizeof(float), 0),
    };
    for (size_t b = 0; b < blocks; b++) {
        size_t length = count - b * block < block ? count - b * block : block;
        for (size_t i = 0; i < length; i++) {
            part[i] = element_of(&x, b * block + i);
            weights[i] = importance ? importance[(b * block + i) % x.columns] : 1;
        }
        right[b] = right_scale(&job, part, weights, length);
    }
    EACH_FORM {
        untouched(job.absmax, blocks * sizeof(float));
        forms->scales(&job, 0, blocks / 2);
        forms->scales(&job, blocks / 2, blocks);
        for (size_t b = 0; b < blocks; b++)
            EXPECT(isfinite(right[b]) ? job.absmax[b] == right[b] : !isfinite(job.absmax[b]),
                   "scale %zu is %a, not %a (dtype %d, block %zu of %zu by %zu, %s)", b, (double)job.absmax[b],
                   (double)right[b], x.dtype, block, x.rows, x.columns, importance ? "weighed" : "alike");
    }
    release_all();
}

static const float *random_importance(size_t columns) {
    float *importance = guarded(columns * sizeof *importance, 0);
    for (size_t c = 0; c < columns; c++) importance[c] = c % 5 == 3 ? 0 : fabsf(normal());
    return importance;
}

static void test_scales(void) {
    static const struct {
        size_t rows, columns, block4, block8;
    } cases[] = {{1, 1, 32, 1}, {3, 33, 32, 7}, {2, 64, 64, 64}, {5, 77, 128, 100}, {1, 9001, 4096, 9001}};
    static const float bad[] = {NAN, INFINITY, -INFINITY},
                       sizes[] = {0, 1e-45f, 9e-39f, 1.2e-38f, 1e-20f, 1e30f, 3.4e38f};
    EACH (b, books)
        EACH (c, cases)
            EACH (d, dtypes) {
                size_t block = books[b]->bits == 8 ? cases[c].block8 : cases[c].block4;
                check_scales(books[b], dense_random(dtypes[d], cases[c].rows, cases[c].columns), NULL, block);
                check_scales(books[b], dense_random(dtypes[d], cases[c].rows, cases[c].columns),
                             random_importance(cases[c].columns), block);
            }
    EACH (s, sizes) {
        float values[70];
        for (int i = 0; i < 70; i++) values[i] = uniform() * sizes[s];
        check_scales(books[0], dense_from(values, BNB_F32, 1, 70), NULL, 32);
    }
    EACH (v, bad) {
        struct dense x = dense_random(BNB_F32, 1, 70);
        put_element((void *)x.data, BNB_F32, 40, bad[v]);
        check_scales(books[0], x, NULL, 32);
    }
}
