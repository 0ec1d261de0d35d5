/* The gradients of y = x · wᵀ: dx = dy · w with a dense or a quantised w, and dw = dyᵀ · x. Both are y = a · w with a
 * stored one way or the other: the checks, the launch and the plain loop. */
#include "launch.h"

/* One product, y[m, k] = Σn a[m, n] · w[n, k]. */
struct product {
    const bnb_tensor *a;
    bool              transposed; /* a is stored as a[n, m] */
    struct operand    w;
    bnb_tensor       *y;
};

/* Rows [first, last) of y. */
static void matmul_backward_plain(const void *argument, size_t first, size_t last) {
    const struct matmul_backward_job *job = argument;
    const struct dense               *a = &job->a;
    size_t                            columns = weight_columns(&job->w);
    size_t                            depth = job->transposed ? a->rows : a->columns;
    for (size_t m = first; m < last; m++) {
        for (size_t k = 0; k < columns; k++) {
            double sum = 0;
            for (size_t n = 0; n < depth; n++)
                sum += (double)element_of(a, job->transposed ? n * a->columns + m : m * depth + n) *
                       weight_of(&job->w, n * columns + k);
            put_element(job->y, job->dtype, m * columns + k, (float)sum);
        }
    }
}

static bnb_status matmul_backward(const void *argument) {
    const struct matmul_backward_job *job = argument;
    if (cpu_forms()->matmul_backward) return cpu_forms()->matmul_backward(job);
    parallel_for(job->transposed ? job->a.columns : job->a.rows, 1, matmul_backward_plain, job);
    return BNB_OK;
}

static bnb_status matmul_backward_on_host(const void *request, struct host *host) {
    const struct product      *p = request;
    struct matmul_backward_job job = {
        .a = dense_of(host, p->a),
        .transposed = p->transposed,
        .y = host_writes(host, p->y->buffer),
        .dtype = p->y->dtype,
    };
    if (p->w.dense)
        job.w.dense = dense_of(host, p->w.dense);
    else
        job.w.coded = coded_of(host, p->w.coded);
    host->work = (double)p->a->rows * (double)p->a->columns * (double)p->y->columns;
    return perform(host, matmul_backward, &job, sizeof job);
}

/* Constants: the dtype of a, how w and its scales are stored, whether the wide loads fit a, whether they fit w, whether
 * a is transposed, the dtype of y, how w's offsets are stored. */
static bnb_status launch(const void *request) {
    const struct product *p = request;
    size_t                m = p->y->rows, n = p->transposed ? p->a->rows : p->a->columns, k = p->y->columns;
    if (m > INT32_MAX || n > INT32_MAX || k > INT32_MAX)
        return fail(BNB_UNSUPPORTED, "a side of 2^31 elements or more");
    bnb_device         *device = p->y->buffer->device;
    const struct sizes *sizes = &device->sizes;
    uint32_t            side = side_of(sizes, m, k);
    struct matmul_args  args = {.m = (uint32_t)m, .n = (uint32_t)n, .k = (uint32_t)k, .split = (uint32_t)n};
    struct launch       launch = {
        .family = "matmul_backward",
        .precision = p->y->dtype == BNB_F32 ? BNB_PRECISION_HIGHEST : BNB_PRECISION_HIGH, /* as of forward products */
        .constants = {p->a->dtype, operand_store(p->w), operand_scales(p->w), p->a->columns % 8 == 0, k % 8 == 0,
                      p->transposed, p->y->dtype, operand_offsets(p->w)},
        .constant_count = 8,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {reads(p->a->buffer), [6] = writes(p->y->buffer)},
        .binding_count = 10,
        .bytes_moved = p->a->buffer->bytes + operand_bytes(p->w) + p->y->buffer->bytes,
    };
    bnb_status status = bind_operand(p->w, launch.bindings + 1, launch.bindings + 7, &args.scales);
    if (p->w.coded) launch.constants[4] = whole_of(p->w.coded, &args.scales);
    if (status || (status = serve(device, &launch)) != BNB_UNSUPPORTED) return status;

    args.split = split_of(sizes, args.n, ceil_div(m, side) * ceil_div(k, side));
    launch.kernel = side == 64 ? "matmul_backward_64" : "matmul_backward_32";
    launch.groups[0] = (uint32_t)ceil_div(k, side);
    launch.groups[1] = (uint32_t)ceil_div(m, side);
    launch.groups[2] = (uint32_t)ceil_div(n, args.split);
    launch.threads = TILE_THREADS;
    if (launch.groups[2] == 1) return enqueue(device, &launch);

    struct buffer *parts = buffer_new(device, launch.groups[2] * m * k * sizeof(float));
    if (!parts) return bnb_last_status();
    launch.bindings[6] = writes(parts);
    launch.constants[6] = STORE_F32;
    status = enqueue(device, &launch);
    if (status == BNB_OK) status = launch_sum(parts, launch.groups[2], NULL, p->y);
    buffer_release(parts); /* the driver keeps it until the work is done */
    return status;
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Makes y, [rows, columns] of `dtype`, and gives it. */
static bnb_tensor *multiply(struct product p, bnb_dtype dtype, size_t rows, size_t columns) {
    bnb_device *device = p.a->buffer->device;
    if (!on_device(operand_buffer(p.w), device, "matmul_backward", p.transposed ? "x" : "w") ||
        !is_shape(rows, columns, "matmul_backward", "the gradient"))
        return NULL;
    p.y = tensor_new(device, dtype, rows, columns);
    if (!p.y) return NULL;
    count_operation(device);
    if (run(&(struct operation){"matmul_backward", device, launch, matmul_backward_on_host, &p}) == BNB_OK) return p.y;
    bnb_tensor_free(p.y);
    return NULL;
}

static bool is_gradient(const bnb_tensor *dy) {
    return is_tensor(dy, "matmul_backward", "dy") && is_float(dy->dtype, "matmul_backward", "dy");
}

bnb_tensor *bnb_matmul_backward(const bnb_tensor *dy, const bnb_tensor *w) {
    if (!is_gradient(dy) || !is_tensor(w, "matmul_backward", "w") || !is_float(w->dtype, "matmul_backward", "w"))
        return NULL;
    if (dy->columns != w->rows)
        return refuse(BNB_INVALID,
                      "matmul_backward: dy is [%zu, %zu] and w is [%zu, %zu]: dy needs a column for each row of w",
                      dy->rows, dy->columns, w->rows, w->columns);
    return multiply((struct product){.a = dy, .w = {.dense = w}}, dy->dtype, dy->rows, w->columns);
}

bnb_tensor *bnb_matmul_quantized_backward(const bnb_tensor *dy, const bnb_quantized *w) {
    if (!is_gradient(dy) || !is_quantized(w, "matmul_backward", "w")) return NULL;
    if (dy->columns != w->rows)
        return refuse(BNB_INVALID,
                      "matmul_backward: dy is [%zu, %zu] and w is [%zu, %zu]: dy needs a column for each row of w",
                      dy->rows, dy->columns, w->rows, w->columns);
    return multiply((struct product){.a = dy, .w = {.coded = w}}, dy->dtype, dy->rows, w->columns);
}

bnb_tensor *bnb_matmul_backward_weight(const bnb_tensor *dy, const bnb_tensor *x, bnb_dtype dtype) {
    if (!is_gradient(dy) || !is_tensor(x, "matmul_backward", "x") || !is_float(x->dtype, "matmul_backward", "x") ||
        !is_float(dtype, "matmul_backward", "dtype"))
        return NULL;
    if (dy->rows != x->rows)
        return refuse(BNB_INVALID, "matmul_backward: dy is [%zu, %zu] and x is [%zu, %zu]: the rows must match",
                      dy->rows, dy->columns, x->rows, x->columns);
    return multiply((struct product){.a = dy, .transposed = true, .w = {.dense = x}}, dtype, dy->columns, x->columns);
}
