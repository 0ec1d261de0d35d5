/* A tensor in another float dtype: the checks, the launch and the plain loop. */
#include "launch.h"

static void cast_plain(const void *argument, size_t first, size_t last) {
    const struct cast_job *job = argument;
    for (size_t i = first; i < last; i++) put_element(job->y, job->dtype, i, element_of(&job->x, i));
}

struct request {
    const bnb_tensor *x;
    bnb_tensor       *y;
};

static bnb_status cast(const void *argument) {
    const struct cast_job *job = argument;
    parallel_for(job->x.rows * job->x.columns, 1 << 16, cpu_forms()->cast ? cpu_forms()->cast : cast_plain, job);
    return BNB_OK;
}

static bnb_status cast_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct cast_job job = {.x = dense_of(host, r->x), .y = host_writes(host, r->y->buffer), .dtype = r->y->dtype};
    return perform(host, cast, &job, sizeof job);
}

static bnb_status launch(const void *request) {
    const bnb_tensor *x = ((const struct request *)request)->x, *y = ((const struct request *)request)->y;
    size_t            elements = x->rows * x->columns;
    struct cast_args args = {.count_low = (uint32_t)elements, .count_high = (uint32_t)(elements >> 32)};
    return enqueue(x->buffer->device, &(struct launch){
        .family = "cast",
        .kernel = "cast",
        .constants = {x->dtype, y->dtype},
        .constant_count = 2,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {reads(x->buffer), writes(y->buffer)},
        .binding_count = 2,
        .groups = {groups_for(elements, CAST_THREADS * 8), 1, 1},
        .threads = CAST_THREADS,
        .bytes_moved = x->buffer->bytes + y->buffer->bytes,
    });
}

bnb_tensor *bnb_cast(const bnb_tensor *x, bnb_dtype dtype) {
    if (!is_tensor(x, "cast", "x") || !is_float(x->dtype, "cast", "x") || !is_float(dtype, "cast", "dtype")) return NULL;
    bnb_tensor *y = tensor_new(x->buffer->device, dtype, x->rows, x->columns);
    if (!y) return NULL;
    count_operation(x->buffer->device);
    if (run(&(struct operation){"cast", y->buffer->device, launch, cast_on_host, &(struct request){x, y}}) == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}

bool as_f32(const bnb_tensor **tensor, bnb_tensor **made) {
    if (!*tensor || (*tensor)->dtype == BNB_F32) return true;
    *made = bnb_cast(*tensor, BNB_F32);
    *tensor = *made;
    return *made;
}
