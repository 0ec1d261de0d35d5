/* The scales of least squared error: the checks of their weights, the launch and the plain loop. */
#include "scales.h"

#include <math.h>

#include "../cpu/scales.h"
#include "launch.h"

/* ── The plain loop ─────────────────────────────────────────────────────────────────────────────────────────────── */

static float sum_lanes(float lanes[SCALES_LANES]) {
    for (size_t half = SCALES_LANES / 2; half; half /= 2)
        for (size_t lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

static trial try_scale(const struct scales_job *job, struct span span, float scale) {
    float errors[SCALES_LANES] = {0}, products[SCALES_LANES] = {0}, squares[SCALES_LANES] = {0};
    float inverse = inverse_of(scale);
    for (size_t i = span.begin; i < span.end; i++) {
        size_t lane = (i - span.begin) % SCALES_LANES;
        float  weight = weight_at(job, i), x = weight > 0 ? element_of(&job->x, i) * span.unit : 0;
        float  value = job->code->values[nearest_code(job->code, x * inverse)], error = x - value * scale;
        errors[lane] += weight * error * error;
        products[lane] += weight * error * value;
        squares[lane] += weight * value * value;
    }
    return trial_of(scale, sum_lanes(errors), sum_lanes(products), sum_lanes(squares));
}

static void scales_plain(const void *argument, size_t first, size_t last) {
    const struct scales_job *job = argument;
    for (size_t block = first; block < last; block++) {
        struct span span = span_of(job, block);
        job->absmax[block] = span.largest;
        if (!is_searched(span.largest, span.magnitude)) continue;

        float  unit_largest = span.largest * span.unit, next = span.magnitude * span.unit * job->args.first;
        search best = begin_search(try_scale(job, span, unit_largest));
        for (int i = 0; i < SCALES_TRIED; i++, next *= job->args.ratio) best = consider(best, try_scale(job, span, next));
        for (int i = 0; i < SCALES_REFINED; i++) best = consider(best, try_scale(job, span, best.refined));
        job->absmax[block] = scale_back(best.scale, unit_largest, span.largest, span.power);
    }
}

/* ── Weights ────────────────────────────────────────────────────────────────────────────────────────────────────── */

bool is_importance(const bnb_tensor *importance, const bnb_tensor *x, const char *function) {
    if (!importance) return true;
    if (!is_tensor(importance, function, "importance") || !is_float(importance->dtype, function, "importance") ||
        !on_device(importance->buffer, x->buffer->device, function, "importance"))
        return false;
    if (importance->rows * importance->columns == x->columns) return true;
    fail(BNB_INVALID, "%s: importance has %zu elements, expected %zu: one for each column of x", function,
         importance->rows * importance->columns, x->columns);
    return false;
}

/* The weights in fp32, by a power of two at which sums of them can't overflow; NULL and an error where one is none. */
static struct buffer *weights_of(const bnb_tensor *importance) {
    bnb_device *device = importance->buffer->device;
    if (device->gpu && device->gpu->wait() != BNB_OK) return NULL;
    struct buffer *weights = buffer_new(device, importance->rows * importance->columns * sizeof(float));
    if (!weights) return NULL;
    struct dense given = dense_of(importance);
    float       *to = buffer_host(weights), largest = 0;
    size_t       columns = given.rows * given.columns;
    for (size_t c = 0; c < columns; c++) {
        to[c] = element_of(&given, c);
        if (!(to[c] >= 0) || isinf(to[c])) {
            fail(BNB_INVALID, "quantize: importance[%zu] is %g, expected a finite number of at least 0", c, to[c]);
            buffer_release(weights);
            return NULL;
        }
        largest = fmaxf(largest, to[c]);
    }
    float unit = power_of(254 - exponent_of(largest));
    for (size_t c = 0; c < columns; c++) to[c] *= unit;
    return weights;
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Where the error may have its minimum, over the largest magnitude: the fewer bits, and the larger the block, the more is
 * to be had by clipping; with many bits, by any scale that happens to fit. From normal and from real weights in blocks up
 * to 4096: what the row misses of the minimum's error is 0.1 % at 4 bits. */
static void set_range(const struct codebook *code, struct scales_args *args) {
    static const float firsts[] = {[2] = 0.2f, [3] = 0.25f, [4] = 0.3f, [5] = 0.6f, [6] = 0.8f, [7] = 0.9f, [8] = 0.95f};
    float              first = firsts[code->bits], last = code->bits < 5 ? 1.6f : 2.0f;
    args->first = first;
    args->ratio = (float)pow(last / first, 1.0 / (SCALES_TRIED - 1));
}

static bnb_status launch(const bnb_tensor *x, bnb_codebook *code, const struct scales_args *args, const struct buffer *weights,
                         const struct buffer *absmax) {
    struct launch launch = {
        .family = "scales",
        .kernel = "scales",
        .constants = {x->dtype, weights != NULL},
        .constant_count = 2,
        .args = args,
        .args_bytes = sizeof *args,
        .bindings = {binding_of(x->buffer), {}, binding_of(weights ? weights : absmax), binding_of(absmax)},
        .binding_count = 4,
        .groups = {groups_for(x->rows * x->columns, (size_t)args->block * (SCALES_THREADS / 32)), 1, 1},
        .threads = SCALES_THREADS,
        .bytes_moved = x->buffer->bytes + absmax->bytes,
    };
    bnb_status status = bind_codebook(code, x->buffer->device, &launch.bindings[1]);
    return status ? status : x->buffer->device->gpu->launch(&launch);
}

static bnb_status run(const bnb_tensor *x, bnb_codebook *code, size_t block, const struct buffer *weights,
                      const struct buffer *absmax) {
    bnb_device        *device = x->buffer->device;
    size_t             elements = x->rows * x->columns, whole = block < elements ? block : elements;
    struct scales_args args = {(uint32_t)elements, (uint32_t)(elements >> 32), (uint32_t)whole, (uint32_t)x->columns, 0, 0};
    set_range(&code->book, &args);
    bnb_status status = BNB_UNSUPPORTED;
    if (device->gpu && (whole > UINT32_MAX || x->columns > UINT32_MAX)) fail(status, "a block or a row of more than 2^32 elements");
    else if (device->gpu) status = launch(x, code, &args, weights, absmax);
    if (status == BNB_OK) return device->gpu->wait();
    if (status != BNB_UNSUPPORTED || fall_back(device, "scales") != BNB_OK) return status;

    struct scales_job job = {
        .x = dense_of(x),
        .code = &code->book,
        .block = block,
        .importance = weights ? buffer_host(weights) : NULL,
        .args = args,
        .absmax = buffer_host(absmax),
    };
    parallel_for(ceil_div(elements, block), ceil_div(1 << 11, block), cpu_forms()->scales ? cpu_forms()->scales : scales_plain, &job);
    return BNB_OK;
}

bnb_status find_scales(const bnb_tensor *x, bnb_codebook *code, size_t block, const bnb_tensor *importance,
                       const struct buffer *absmax) {
    struct buffer *weights = importance ? weights_of(importance) : NULL;
    if (importance && !weights) return bnb_last_status();
    bnb_status status = run(x, code, block, weights, absmax);
    buffer_release(weights);
    return status;
}
