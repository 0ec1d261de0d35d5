/* What stands between a layer's products: an activation, by itself or as the gate of another product (Shazeer 2020). */
#include <math.h>

#include "launch.h"

static double activated(bnb_activation kind, double x) {
    switch (kind) {
    case BNB_ACTIVATION_SILU: return x / (1 + exp(-x));
    case BNB_ACTIVATION_GELU: return x * 0.5 * (1 + erf(x * 0.70710678118654752440));
    case BNB_ACTIVATION_TANH: return tanh(x);
    default: return x * 0.5 * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    }
}

static void activate_plain(const void *argument, size_t first, size_t last) {
    const struct activate_job *job = argument;
    for (size_t row = first; row < last; row++)
        for (size_t c = 0; c < job->columns; c++) {
            double y = activated(job->kind, element_of(&job->x, row * job->x.columns + c));
            if (job->up.data) y *= element_of(&job->up, row * job->up.columns + job->up_first + c);
            put_element(job->y, job->x.dtype, row * job->columns + c, (float)y);
        }
}

struct request {
    const bnb_tensor *x, *up; /* up may be NULL */
    bool              halves;
    bnb_activation    kind;
    bnb_tensor       *y;
};

static bnb_status activate(const void *argument) {
    const struct activate_job *job = argument;
    parallel_for(job->x.rows, ceil_div(1 << 12, job->columns),
                 cpu_forms()->activate ? cpu_forms()->activate : activate_plain, job);
    return BNB_OK;
}

static bnb_status activate_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct activate_job   job = {.x = dense_of(host, r->x),
                                 .columns = r->y->columns,
                                 .kind = r->kind,
                                 .y = host_writes(host, r->y->buffer)};
    if (r->up) job.up = dense_of(host, r->up);
    if (r->halves) job.up = job.x, job.up_first = r->y->columns;
    return perform(host, activate, &job, sizeof job);
}

static_assert((int)ACTIVATION_SILU == BNB_ACTIVATION_SILU && (int)ACTIVATION_GELU == BNB_ACTIVATION_GELU &&
                  (int)ACTIVATION_GELU_TANH == BNB_ACTIVATION_GELU_TANH && (int)ACTIVATION_TANH == BNB_ACTIVATION_TANH,
              "kernels know activations by these numbers");

static bnb_status launch(const void *request) {
    const struct request *r = request;
    size_t                count = r->y->rows * r->y->columns;
    if (r->y->columns > UINT32_MAX) return fail(BNB_UNSUPPORTED, "a row of 2^32 elements or more");
    struct activate_args args = {(uint32_t)count, (uint32_t)(count >> 32), (uint32_t)r->y->columns};
    return enqueue(r->x->buffer->device,
                   &(struct launch){
                       .family = "activate",
                       .kernel = "activate",
                       .constants = {r->x->dtype, r->kind,
                                     r->halves ? GATE_HALVES
                                     : r->up   ? GATE_OTHER
                                               : GATE_NONE},
                       .constant_count = 3,
                       .args = &args,
                       .args_bytes = sizeof args,
                       .bindings = {reads(r->x->buffer), reads_if(r->up ? r->up->buffer : NULL, r->x->buffer),
                                    writes(r->y->buffer)},
                       .binding_count = 3,
                       .groups = {groups_for(count, ACTIVATE_THREADS), 1, 1},
                       .threads = ACTIVATE_THREADS,
                       .bytes_moved = r->x->buffer->bytes + (r->up ? r->up->buffer->bytes : 0) + r->y->buffer->bytes,
                   });
}

bnb_tensor *bnb_activate(const bnb_tensor *x, const bnb_tensor *up, int32_t gated, bnb_activation activation) {
    if (!is_tensor(x, "activate", "x") || !is_float(x->dtype, "activate", "x")) return NULL;
    bnb_device *device = x->buffer->device;
    bool        halves = gated && !up;
    if ((unsigned)activation > BNB_ACTIVATION_TANH)
        return refuse(BNB_INVALID, "activate: activation is %d, expected 0 to %d", (int)activation,
                      BNB_ACTIVATION_TANH);
    if (up) {
        if (!is_tensor(up, "activate", "up") || !on_device(up->buffer, device, "activate", "up")) return NULL;
        if (up->dtype != x->dtype || up->rows != x->rows || up->columns != x->columns)
            return refuse(BNB_INVALID, "activate: up is %s [%zu, %zu] and x is %s [%zu, %zu]: they must match",
                          dtype_name(up->dtype), up->rows, up->columns, dtype_name(x->dtype), x->rows, x->columns);
    }
    if (halves && x->columns % 2)
        return refuse(BNB_INVALID,
                      "activate: x has %zu columns, expected an even number: a gate and what it lets through",
                      x->columns);
    bnb_tensor *y = tensor_new(device, x->dtype, x->rows, halves ? x->columns / 2 : x->columns);
    if (!y) return NULL;
    count_operation(device);
    struct request r = {x, up, halves, activation, y};
    if (run(&(struct operation){"activate", device, launch, activate_on_host, &r}) == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}
