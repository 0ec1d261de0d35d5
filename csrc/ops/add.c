/* y = a + scale · b: the checks, the launch and the plain loop. */
#include <math.h>

#include "launch.h"

struct add_job {
    struct dense a, b; /* a.data is NULL where there is no a */
    float        scale;
    void        *y;
    bnb_dtype    dtype;
};

static void add_plain(const void *argument, size_t first, size_t last) {
    const struct add_job *job = argument;
    for (size_t i = first; i < last; i++) {
        float product = job->scale * element_of(&job->b, i);
        put_element(job->y, job->dtype, i, job->a.data ? element_of(&job->a, i) + product : product);
    }
}

struct request {
    const bnb_tensor *a, *b; /* a may be NULL */
    float             scale;
    bnb_tensor       *y;
};

static bnb_status add(const void *argument) {
    const struct add_job *job = argument;
    parallel_for(job->b.rows * job->b.columns, 1 << 15, add_plain, job);
    return BNB_OK;
}

static bnb_status add_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct add_job job = {.b = dense_of(host, r->b), .scale = r->scale, .y = host_writes(host, r->y->buffer), .dtype = r->y->dtype};
    if (r->a) job.a = dense_of(host, r->a);
    return perform(host, add, &job, sizeof job);
}

static bnb_status launch(const void *request) {
    const struct request *r = request;
    const bnb_tensor     *a = r->a, *b = r->b, *y = r->y;
    size_t                elements = b->rows * b->columns;
    struct add_args       args = {.count_low = (uint32_t)elements, .count_high = (uint32_t)(elements >> 32), .scale = r->scale};
    return enqueue(y->buffer->device, &(struct launch){
        .family = "add",
        .kernel = "add",
        .constants = {y->dtype, b->dtype, a != NULL},
        .constant_count = 3,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {reads_if(a ? a->buffer : NULL, b->buffer), reads(b->buffer), writes(y->buffer)},
        .binding_count = 3,
        .groups = {groups_for(elements, CAST_THREADS * 8), 1, 1},
        .threads = CAST_THREADS,
        .bytes_moved = (a ? a->buffer->bytes : 0) + b->buffer->bytes + y->buffer->bytes,
    });
}

bnb_tensor *bnb_add(const bnb_tensor *a, const bnb_tensor *b, float scale) {
    if (!is_tensor(b, "add", "b") || !is_float(b->dtype, "add", "b")) return NULL;
    bnb_device *device = b->buffer->device;
    if (a) {
        if (!is_tensor(a, "add", "a") || !is_float(a->dtype, "add", "a") || !on_device(a->buffer, device, "add", "a"))
            return NULL;
        if (a->rows != b->rows || a->columns != b->columns)
            return refuse(BNB_INVALID, "add: a is [%zu, %zu] and b is [%zu, %zu]: the shapes must match", a->rows,
                          a->columns, b->rows, b->columns);
    }
    if (!isfinite(scale)) return refuse(BNB_INVALID, "add: scale is %g, expected a finite number", (double)scale);
    bnb_tensor *y = tensor_new(device, a ? a->dtype : b->dtype, b->rows, b->columns);
    if (!y) return NULL;
    count_operation(device);
    if (run(&(struct operation){"add", device, launch, add_on_host, &(struct request){a, b, scale, y}}) == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}
