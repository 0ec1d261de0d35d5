/* The scales of least squared error: the checks of their weights, the launch and the plain loop. */
#include "scales.h"

#include <math.h>

#include "../cpu/scales.h"
#include "finite.h"
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
        for (int i = 0; i < SCALES_TRIED; i++, next *= job->args.ratio)
            best = consider(best, try_scale(job, span, next));
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

struct weights_job {
    struct dense given;
    float       *to; /* NULL: they are only looked at */
};

/* In fp32, by a power of two at which sums of them can't overflow. */
static bnb_status weigh(const void *argument) {
    const struct weights_job *job = argument;
    float                     largest = 0;
    size_t                    columns = job->given.rows * job->given.columns;
    for (size_t c = 0; c < columns; c++) {
        float weight = element_of(&job->given, c);
        if (!(weight >= 0) || isinf(weight))
            return fail(BNB_INVALID, "quantize: importance[%zu] is %g, expected a finite number of at least 0", c,
                        weight);
        largest = fmaxf(largest, weight);
    }
    float unit = power_of(254 - exponent_of(largest));
    for (size_t c = 0; job->to && c < columns; c++) job->to[c] = element_of(&job->given, c) * unit;
    return BNB_OK;
}

struct weights_request {
    const bnb_tensor *importance;
    struct buffer    *weights; /* NULL: it is only looked at */
    struct buffer   **largest; /* of a launch */
};

/* Who asks is told of what is no weight. */
static bnb_status weigh_on_host(const void *request, struct host *host) {
    const struct weights_request *r = request;
    struct weights_job            job = {dense_of(host, r->importance), NULL};
    if (r->weights) job.to = host_writes(host, r->weights);
    host->waits = true;
    return perform(host, weigh, &job, sizeof job);
}

static bnb_status launch_weigh(const void *request) {
    const struct weights_request *r = request;
    const bnb_tensor             *importance = r->importance;
    size_t                        columns = importance->rows * importance->columns;
    if (columns > UINT32_MAX / 2) return fail(BNB_UNSUPPORTED, "a row of 2^31 elements or more");
    struct buffer *largest = buffer_new(importance->buffer->device, sizeof(uint32_t));
    if (!largest) return BNB_OUT_OF_MEMORY;
    struct scales_args args = {.columns = (uint32_t)columns};
    bnb_status         status =
        enqueue(largest->device, &(struct launch){
                                     .family = "scales",
                                     .kernel = "scales_weights",
                                     .constants = {importance->dtype, 1},
                                     .constant_count = 2,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .bindings = {reads(importance->buffer), writes(r->weights), writes(largest)},
                                     .binding_count = 3,
                                     .groups = {1, 1, 1},
                                     .threads = SCALES_THREADS,
                                     .bytes_moved = importance->buffer->bytes + r->weights->bytes,
                                 });
    if (status == BNB_OK)
        *r->largest = largest;
    else
        buffer_release(largest);
    return status;
}

/* NULL and an error, also where the CPU has found what is no weight. */
static struct buffer *weights_of(const bnb_tensor *importance, struct buffer **largest) {
    bnb_device            *device = importance->buffer->device;
    struct buffer         *weights = buffer_new(device, importance->rows * importance->columns * sizeof(float));
    struct weights_request request = {importance, weights, largest};
    if (!weights || run(&(struct operation){"scales", device, launch_weigh, weigh_on_host, &request}) == BNB_OK)
        return weights;
    buffer_release(weights);
    return NULL;
}

bnb_status check_importance(const bnb_tensor *importance, const struct buffer *largest) {
    if (!largest || are_finite(largest)) return BNB_OK;
    return run_on_host(largest->device, weigh_on_host, &(struct weights_request){importance, NULL, NULL});
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Where the error may have its minimum, over the largest magnitude: the fewer bits, and the larger the block, the more
 * is to be had by clipping; with many bits, by any scale that happens to fit. From normal and from real weights in
 * blocks up to 4096: what the row misses of the minimum's error is 0.1 % at 4 bits. */
static void set_range(const struct codebook *code, struct scales_args *args) {
    static const float firsts[] = {[2] = 0.2f, [3] = 0.25f, [4] = 0.3f, [5] = 0.6f,
                                   [6] = 0.8f, [7] = 0.9f,  [8] = 0.95f};
    float              first = firsts[code->bits], last = code->bits < 5 ? 1.6f : 2.0f;
    args->first = first;
    args->ratio = (float)pow(last / first, 1.0 / (SCALES_TRIED - 1));
}

struct request {
    const bnb_tensor    *x;
    bnb_codebook        *code;
    size_t               block;
    const struct buffer *weights, *absmax; /* weights may be NULL */
    struct scales_args   args;
};

static bnb_status launch(const void *request) {
    const struct request *r = request;
    const bnb_tensor     *x = r->x;
    const struct buffer  *weights = r->weights, *absmax = r->absmax;
    if (r->block > UINT32_MAX || x->columns > UINT32_MAX)
        return fail(BNB_UNSUPPORTED, "a block or a row of more than 2^32 elements");
    struct launch launch = {
        .family = "scales",
        .kernel = "scales",
        .constants = {x->dtype, weights != NULL},
        .constant_count = 2,
        .args = &r->args,
        .args_bytes = sizeof r->args,
        .bindings = {reads(x->buffer), {}, reads_if(weights, absmax), writes(absmax)},
        .binding_count = 4,
        .groups = {groups_for(x->rows * x->columns, (size_t)r->args.block * (SCALES_THREADS / 32)), 1, 1},
        .threads = SCALES_THREADS,
        .bytes_moved = x->buffer->bytes + absmax->bytes,
    };
    bnb_status status = bind_codebook(r->code, x->buffer->device, &launch.bindings[1]);
    return status ? status : enqueue(x->buffer->device, &launch);
}

static bnb_status search_all(const void *argument) {
    const struct scales_job *job = argument;
    parallel_for(ceil_div(job->x.rows * job->x.columns, job->block), ceil_div(1 << 11, job->block),
                 cpu_forms()->scales ? cpu_forms()->scales : scales_plain, job);
    return BNB_OK;
}

enum { WORK_A_TRIAL = 16 }; /* an element's nearest code and its error take as long as so many products */

static bnb_status scales_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct scales_job     job = {
        .x = dense_of(host, r->x),
        .code = host_codebook(host, r->code),
        .block = r->block,
        .importance = r->weights ? host_reads(host, r->weights) : NULL,
        .args = r->args,
        .absmax = host_writes(host, r->absmax),
    };
    host->work = (double)job.x.rows * (double)job.x.columns * (SCALES_TRIED + SCALES_REFINED) * WORK_A_TRIAL;
    return perform(host, search_all, &job, sizeof job);
}

bnb_status find_scales(const bnb_tensor *x, bnb_codebook *code, size_t block, const bnb_tensor *importance,
                       const struct buffer *absmax, struct buffer **weight) {
    struct buffer *weights = importance ? weights_of(importance, weight) : NULL;
    if (importance && !weights) return bnb_last_status();
    size_t         elements = x->rows * x->columns, whole = block < elements ? block : elements;
    struct request request = {
        x,       code,   whole,
        weights, absmax, {(uint32_t)elements, (uint32_t)(elements >> 32), (uint32_t)whole, (uint32_t)x->columns, 0, 0}};
    set_range(&code->book, &request.args);
    bnb_status status = run(&(struct operation){"scales", x->buffer->device, launch, scales_on_host, &request});
    buffer_release(weights);
    return status;
}
