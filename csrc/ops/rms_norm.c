/* Root mean square normalisation (Zhang and Sennrich 2019), with the residual that comes before it: the checks, the
 * launch and the plain loop. */
#include <math.h>

#include "launch.h"

/* Runs [first, last) of d elements each. */
static void rms_norm_plain(const void *argument, size_t first, size_t last) {
    const struct rms_norm_job *job = argument;
    struct dense               x = {job->x, job->dtype, 1, 0};
    for (size_t run = first; run < last; run++) {
        size_t at = run * job->d;
        double squares = 0;
        for (size_t i = at; i < at + job->d; i++) {
            if (job->residual.data)
                put_element(job->x, job->dtype, i, element_of(&x, i) + job->scale * element_of(&job->residual, i));
            squares += (double)element_of(&x, i) * element_of(&x, i);
        }
        double inverse = 1 / sqrt(squares / (double)job->d + job->eps);
        for (size_t i = 0; i < job->d; i++)
            put_element(job->y, job->dtype, at + i,
                        (float)(element_of(&x, at + i) * inverse * ((double)job->offset + job->weight[i])));
    }
}

struct request {
    bnb_tensor       *x;
    const bnb_tensor *residual, *weight; /* weight is f32 by now */
    float             scale, offset, eps;
    bnb_tensor       *y;
};

static bnb_status rms_norm(const void *argument) {
    const struct rms_norm_job *job = argument;
    parallel_for(job->runs, ceil_div(1 << 14, job->d), cpu_forms()->rms_norm ? cpu_forms()->rms_norm : rms_norm_plain,
                 job);
    return BNB_OK;
}

static bnb_status rms_norm_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct rms_norm_job   job = {
        .x = r->residual ? host_updates(host, r->x->buffer) : (void *)host_reads(host, r->x->buffer),
        .dtype = r->x->dtype,
        .scale = r->scale,
        .weight = host_reads(host, r->weight->buffer),
        .runs = r->x->rows * (r->x->columns / r->weight->columns),
        .d = r->weight->columns,
        .offset = r->offset,
        .eps = r->eps,
        .y = host_writes(host, r->y->buffer),
    };
    if (r->residual) job.residual = dense_of(host, r->residual);
    return perform(host, rms_norm, &job, sizeof job);
}

static bnb_status launch(const void *request) {
    const struct request *r = request;
    size_t                d = r->weight->columns, runs = r->x->rows * (r->x->columns / d);
    if (runs > INT32_MAX || d > INT32_MAX) return fail(BNB_UNSUPPORTED, "2^31 runs or elements of a run, or more");
    struct rms_norm_args args = {.d = (uint32_t)d, .scale = r->scale, .offset = r->offset, .eps = r->eps};
    return enqueue(r->x->buffer->device,
                   &(struct launch){
                       .family = "rms_norm",
                       .kernel = "rms_norm",
                       .constants = {r->x->dtype, r->residual ? r->residual->dtype : r->x->dtype, r->residual != NULL},
                       .constant_count = 3,
                       .args = &args,
                       .args_bytes = sizeof args,
                       .bindings = {r->residual ? updates(r->x->buffer) : reads(r->x->buffer),
                                    reads_if(r->residual ? r->residual->buffer : NULL, r->x->buffer),
                                    reads(r->weight->buffer), writes(r->y->buffer)},
                       .binding_count = 4,
                       .groups = {(uint32_t)runs, 1, 1},
                       .threads = RMS_NORM_THREADS,
                       .bytes_moved = 2 * r->y->buffer->bytes + (r->residual ? r->residual->buffer->bytes : 0),
                   });
}

static bool is_request(const struct request *r) {
    const char *const function = "rms_norm";
    if (!is_tensor(r->x, function, "x") || !is_float(r->x->dtype, function, "x")) return false;
    bnb_device *device = r->x->buffer->device;
    if (!is_tensor(r->weight, function, "weight") || !is_float(r->weight->dtype, function, "weight") ||
        !on_device(r->weight->buffer, device, function, "weight"))
        return false;
    if (r->weight->rows != 1 || r->x->columns % r->weight->columns)
        return fail(BNB_INVALID,
                    "%s: weight is [%zu, %zu] and x is [%zu, %zu]: weight must be one row, and its columns divide x's",
                    function, r->weight->rows, r->weight->columns, r->x->rows, r->x->columns),
               false;
    if (r->residual) {
        if (!is_tensor(r->residual, function, "residual") || !is_float(r->residual->dtype, function, "residual") ||
            !on_device(r->residual->buffer, device, function, "residual"))
            return false;
        if (r->residual->rows != r->x->rows || r->residual->columns != r->x->columns)
            return fail(BNB_INVALID, "%s: residual is [%zu, %zu] and x is [%zu, %zu]: the shapes must match", function,
                        r->residual->rows, r->residual->columns, r->x->rows, r->x->columns),
                   false;
        if (r->residual->buffer == r->x->buffer)
            return fail(BNB_INVALID, "%s: residual shares its memory with x, which changes: give a copy", function),
                   false;
    }
    if (!isfinite(r->scale) || !isfinite(r->offset))
        return fail(BNB_INVALID, "%s: scale is %g and offset %g, expected finite numbers", function, (double)r->scale,
                    (double)r->offset),
               false;
    if (isfinite(r->eps) && r->eps >= 0) return true;
    fail(BNB_INVALID, "%s: eps is %g, expected a finite number of at least 0", function, (double)r->eps);
    return false;
}

bnb_tensor *bnb_rms_norm(bnb_tensor *x, const bnb_tensor *residual, float scale, const bnb_tensor *weight, float offset,
                         float eps) {
    struct request r = {.x = x, .residual = residual, .scale = scale, .weight = weight, .offset = offset, .eps = eps};
    if (!is_request(&r)) return NULL;
    bnb_device *device = x->buffer->device;
    bnb_tensor *made = NULL;
    if (as_f32(&r.weight, &made)) r.y = tensor_new(device, x->dtype, x->rows, x->columns);
    count_operation(device);
    bnb_status status =
        r.y ? run(&(struct operation){"rms_norm", device, launch, rms_norm_on_host, &r}) : BNB_OUT_OF_MEMORY;
    bnb_tensor_free(made);
    if (status == BNB_OK) return r.y;
    bnb_tensor_free(r.y);
    return NULL;
}
