/* Softmax of rows: the checks, the launch and the plain loop. */
#include <math.h>

#include "launch.h"

static void softmax_plain(const void *argument, size_t first, size_t last) {
    const struct softmax_job *job = argument;
    for (size_t row = first; row < last; row++) {
        size_t at = row * job->x.columns;
        double top = -INFINITY, sum = 0;
        for (size_t c = 0; c < job->x.columns; c++) {
            double v = element_of(&job->x, at + c);
            if (!(v <= top)) top = v; /* a NaN stays, and makes a row of them */
        }
        for (size_t c = 0; c < job->x.columns; c++) sum += exp(element_of(&job->x, at + c) - top);
        for (size_t c = 0; c < job->x.columns; c++)
            put_element(job->y, job->x.dtype, at + c, (float)(exp(element_of(&job->x, at + c) - top) / sum));
    }
}

struct request {
    const bnb_tensor *x;
    bnb_tensor       *y;
};

static bnb_status softmax(const void *argument) {
    const struct softmax_job *job = argument;
    parallel_for(job->x.rows, ceil_div(1 << 13, job->x.columns),
                 cpu_forms()->softmax ? cpu_forms()->softmax : softmax_plain, job);
    return BNB_OK;
}

static bnb_status softmax_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct softmax_job    job = {dense_of(host, r->x), host_writes(host, r->y->buffer)};
    return perform(host, softmax, &job, sizeof job);
}

static bnb_status launch(const void *request) {
    const struct request *r = request;
    if (r->x->rows > INT32_MAX || r->x->columns > INT32_MAX)
        return fail(BNB_UNSUPPORTED, "a side of 2^31 elements or more");
    struct softmax_args args = {.columns = (uint32_t)r->x->columns};
    return enqueue(r->x->buffer->device, &(struct launch){
                                             .family = "softmax",
                                             .kernel = "softmax",
                                             .constants = {r->x->dtype},
                                             .constant_count = 1,
                                             .args = &args,
                                             .args_bytes = sizeof args,
                                             .bindings = {reads(r->x->buffer), writes(r->y->buffer)},
                                             .binding_count = 2,
                                             .groups = {(uint32_t)r->x->rows, 1, 1},
                                             .threads = SOFTMAX_THREADS,
                                             .bytes_moved = r->x->buffer->bytes + r->y->buffer->bytes,
                                         });
}

bnb_tensor *bnb_softmax(const bnb_tensor *x) {
    if (!is_tensor(x, "softmax", "x") || !is_float(x->dtype, "softmax", "x")) return NULL;
    bnb_device *device = x->buffer->device;
    bnb_tensor *y = tensor_new(device, x->dtype, x->rows, x->columns);
    if (!y) return NULL;
    count_operation(device);
    if (run(&(struct operation){"softmax", device, launch, softmax_on_host, &(struct request){x, y}}) == BNB_OK)
        return y;
    bnb_tensor_free(y);
    return NULL;
}
