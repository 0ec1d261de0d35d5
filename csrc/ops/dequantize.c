/* The matrix that codes and scales stand for: the checks, the launch and the plain loop. */
#include "launch.h"

static void dequantize_plain(const void *argument, size_t first, size_t last) {
    const struct dequantize_job *job = argument;
    const struct coded          *q = &job->q;
    size_t                       elements = q->rows * q->columns;
    for (size_t block = first; block < last; block++) {
        size_t end = (block + 1) * q->block < elements ? (block + 1) * q->block : elements;
        float  scale = scale_of(q, block), offset = offset_of(q, block);
        for (size_t i = block * q->block; i < end; i++)
            put_element(job->y, job->dtype, i, q->code->values[code_at(q, i)] * scale + offset);
    }
}

struct request {
    const bnb_quantized *q;
    bnb_tensor          *y;
};

static bnb_status dequantize(const void *argument) {
    const struct dequantize_job *job = argument;
    parallel_for(ceil_div(job->q.rows * job->q.columns, job->q.block), ceil_div(1 << 15, job->q.block),
                 cpu_forms()->dequantize ? cpu_forms()->dequantize : dequantize_plain, job);
    return BNB_OK;
}

static bnb_status dequantize_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct dequantize_job job = {.q = coded_of(host, r->q), .y = host_writes(host, r->y->buffer), .dtype = r->y->dtype};
    return perform(host, dequantize, &job, sizeof job);
}

static bnb_status launch(const void *request) {
    const bnb_quantized   *q = ((const struct request *)request)->q;
    const bnb_tensor      *y = ((const struct request *)request)->y;
    size_t                 elements = q->rows * q->columns;
    struct dequantize_args args = {.count_low = (uint32_t)elements, .count_high = (uint32_t)(elements >> 32)};
    struct launch          launch = {
        .family = "dequantize",
        .kernel = "dequantize",
        .constants = {store_of(q->code), y->dtype, scales_of(q), offsets_of(q)},
        .constant_count = 4,
        .args = &args,
        .args_bytes = sizeof args,
        .binding_count = 9,
        .groups = {groups_for(elements, DEQUANTIZE_THREADS * 8), 1, 1},
        .threads = DEQUANTIZE_THREADS,
        .bytes_moved = quantized_bytes(q) + y->buffer->bytes,
    };
    launch.bindings[5] = writes(y->buffer);
    bnb_status status = bind_quantized(q, launch.bindings, launch.bindings + 6, &args.scales);
    return status ? status : enqueue(y->buffer->device, &launch);
}

bnb_tensor *bnb_dequantize(const bnb_quantized *q, bnb_dtype dtype) {
    if (!is_quantized(q, "dequantize", "q") || !is_float(dtype, "dequantize", "dtype")) return NULL;
    bnb_tensor *y = tensor_new(q->codes->device, dtype, q->rows, q->columns);
    if (!y) return NULL;
    count_operation(q->codes->device);
    if (run(&(struct operation){"dequantize", y->buffer->device, launch, dequantize_on_host,
                                &(struct request){q, y}}) == BNB_OK)
        return y;
    bnb_tensor_free(y);
    return NULL;
}
