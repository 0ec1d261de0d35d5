/* y = x · wᵀ + bias with a dense or a quantised w: the checks, the launch and the plain loop. */
#include "launch.h"

/* ── The plain loop ─────────────────────────────────────────────────────────────────────────────────────────────── */

/* Columns [first, last) of y: rows of w. */
static void matmul_plain(const void *argument, size_t first, size_t last) {
    const struct matmul_job *job = argument;
    size_t                   columns = job->x.columns, outputs = weight_rows(&job->w);
    for (size_t n = first; n < last; n++) {
        for (size_t m = 0; m < job->x.rows; m++) {
            double sum = 0;
            for (size_t k = 0; k < columns; k++)
                sum += (double)element_of(&job->x, m * columns + k) * weight_of(&job->w, n * columns + k);
            put_element(job->y, job->x.dtype, m * outputs + n, (float)(sum + (job->bias ? job->bias[n] : 0)));
        }
    }
}

/* ── The launch ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* One product; bias may be NULL. */
struct product {
    const bnb_tensor *x;
    struct operand    w;
    const bnb_tensor *bias;
    bnb_precision     precision;
    bnb_tensor       *y;
};

/* What the kernels have in common: everything but the kernel's name and grid. Constants: the dtype of x, how w and its
 * scales are stored, whole, bias, the dtype of y or of its parts (of vectors: whether codes are looked up by two), how
 * w's offsets are stored. */
static bnb_status prepare(const struct product *p, struct matmul_args *args, struct launch *launch) {
    size_t m = p->x->rows, n = p->y->columns, k = p->x->columns;
    if (m > INT32_MAX || n > INT32_MAX || k > INT32_MAX)
        return fail(BNB_UNSUPPORTED, "a side of 2^31 elements or more");
    *args = (struct matmul_args){.m = (uint32_t)m, .n = (uint32_t)n, .k = (uint32_t)k, .split = (uint32_t)k};
    uint32_t   whole = k % VECTOR_CHUNK == 0 ? WHOLE_BLOCKS : WHOLE_NOT;
    bnb_status status = bind_operand(p->w, launch->bindings + 1, launch->bindings + 8, &args->scales);
    if (status) return status;
    if (p->w.coded) {
        if (whole && args->scales.shift == 32 && p->w.coded->block == k)
            whole = WHOLE_ROWS, args->scales.shift = 31;
        else if (args->scales.shift == 32 || p->w.coded->block < VECTOR_CHUNK)
            whole = WHOLE_NOT;
    }
    launch->bindings[0] = reads(p->x->buffer);
    launch->bindings[6] = reads_if(p->bias ? p->bias->buffer : NULL, p->x->buffer);
    launch->bindings[7] = writes(p->y->buffer);
    launch->binding_count = 11;
    launch->constants[0] = p->x->dtype;
    launch->constants[1] = operand_store(p->w);
    launch->constants[2] = operand_scales(p->w);
    launch->constants[3] = whole;
    launch->constants[4] = p->bias != NULL;
    launch->constants[5] = p->x->dtype;
    launch->constants[6] = operand_offsets(p->w);
    launch->constant_count = 7;
    launch->args = args;
    launch->args_bytes = sizeof *args;
    launch->family = "matmul";
    launch->precision = p->precision;
    launch->bytes_moved = p->x->buffer->bytes + p->y->buffer->bytes + operand_bytes(p->w);
    return BNB_OK;
}

/* One row of x may meet 8 rows of w a simdgroup: it is read from the cache half as often. */
static bool is_wide(const struct product *p, const struct sizes *sizes) {
    bool is_small =
        p->w.coded && p->w.coded->code->book.bits <= 4; /* of larger codes the registers would not hold so many */
    return p->x->rows == 1 && is_small && sizes->wide_vectors >= (p->x->dtype == BNB_F32 ? 1 : 2);
}

static bnb_status launch_vector(const struct product *p, const struct matmul_args *args, struct launch *launch) {
    static const struct {
        uint32_t    vectors;
        const char *kernel;
    } kernels[] = {{1, "matmul_vector_1"}, {2, "matmul_vector_2"}, {4, "matmul_vector_4"}, {8, "matmul_vector_8"}};
    const struct sizes *sizes = &p->y->buffer->device->sizes;
    size_t              at = 0;
    while (at + 1 < sizeof kernels / sizeof *kernels && kernels[at].vectors < args->m) at++;
    launch->family = "matmul_vector";
    launch->groups[1] = (uint32_t)ceil_div(args->m, kernels[at].vectors);
    launch->constants[5] =
        sizes->byte_table && launch->constants[1] == STORE_CODE4 && launch->constants[3] != WHOLE_NOT;
    launch->groups[2] = 1;
    launch->threads = VECTOR_THREADS;
    bnb_status status = BNB_UNSUPPORTED;
    if (is_wide(p, sizes)) { /* a kernel that not every GPU has */
        launch->kernel = "matmul_vector_1_wide";
        launch->groups[0] = (uint32_t)ceil_div(args->n, 2 * VECTOR_COLUMNS);
        status = enqueue(p->y->buffer->device, launch);
    }
    if (status != BNB_UNSUPPORTED) return status;
    launch->kernel = kernels[at].kernel;
    launch->groups[0] = (uint32_t)ceil_div(args->n, VECTOR_COLUMNS);
    return enqueue(p->y->buffer->device, launch);
}

static bnb_status launch_tile(const struct product *p, struct matmul_args *args, struct launch *launch) {
    bnb_device         *device = p->y->buffer->device;
    const struct sizes *sizes = &device->sizes;
    bool                skinny = args->m <= 16 && args->m <= sizes->skinny_most;
    uint32_t            side = skinny ? 64 : side_of(sizes, args->m, args->n), rows = skinny ? 16 : side;
    args->split = split_of(sizes, args->k, ceil_div(args->m, rows) * ceil_div(args->n, side));
    uint32_t splits = (uint32_t)ceil_div(args->k, args->split);

    launch->family = "matmul_tile";
    launch->kernel = skinny ? "matmul_tile_16" : side == 64 ? "matmul_tile_64" : "matmul_tile_32";
    launch->groups[0] = (uint32_t)ceil_div(args->n, side);
    launch->groups[1] = (uint32_t)ceil_div(args->m, rows);
    launch->groups[2] = splits;
    launch->threads = TILE_THREADS;
    if (splits == 1) return enqueue(device, launch);

    struct buffer *parts = buffer_new(device, (size_t)splits * args->m * args->n * sizeof(float));
    if (!parts) return bnb_last_status();
    launch->bindings[7] = writes(parts);
    launch->constants[4] = 0;
    launch->constants[5] = STORE_F32;
    bnb_status status = enqueue(device, launch);
    if (status == BNB_OK) status = launch_sum(parts, splits, p->bias, p->y);
    buffer_release(parts); /* the driver keeps it until the work is done */
    return status;
}

static bnb_status launch(const void *request) {
    const struct product *p = request;
    bnb_device           *device = p->y->buffer->device;
    struct matmul_args    args;
    struct launch         launch = {};
    bnb_status            status = prepare(p, &args, &launch);
    if (status || (status = serve(device, &launch)) != BNB_UNSUPPORTED) return status;
    return args.m <= device->sizes.vectors_most ? launch_vector(p, &args, &launch) : launch_tile(p, &args, &launch);
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bnb_status multiply(const void *argument) {
    const struct matmul_job *job = argument;
    if (cpu_forms()->matmul) return cpu_forms()->matmul(job);
    parallel_for(weight_rows(&job->w), 1, matmul_plain, job);
    return BNB_OK;
}

static bnb_status matmul_on_host(const void *request, struct host *host) {
    const struct product *p = request;
    struct matmul_job     job = {.x = dense_of(host, p->x),
                                 .precision = p->precision,
                                 .y = host_writes(host, p->y->buffer)};
    if (p->w.dense)
        job.w.dense = dense_of(host, p->w.dense);
    else
        job.w.coded = coded_of(host, p->w.coded);
    if (p->bias) job.bias = host_reads(host, p->bias->buffer);
    host->work = (double)p->x->rows * (double)p->x->columns * (double)p->y->columns;
    return perform(host, multiply, &job, sizeof job);
}

static bool is_bias(const bnb_tensor *bias, size_t outputs, const bnb_device *device) {
    if (!is_tensor(bias, "matmul", "bias") || !is_float(bias->dtype, "matmul", "bias") ||
        !on_device(bias->buffer, device, "matmul", "bias"))
        return false;
    if (bias->rows == 1 && bias->columns == outputs) return true;
    fail(BNB_INVALID, "matmul: bias is [%zu, %zu], expected [1, %zu], an element for each row of w", bias->rows,
         bias->columns, outputs);
    return false;
}

static bnb_tensor *matmul(const bnb_tensor *x, struct operand w, const bnb_tensor *bias, bnb_precision precision) {
    size_t      outputs = operand_rows(w), columns = operand_columns(w);
    bnb_device *device = x->buffer->device;
    if (x->columns != columns)
        return refuse(BNB_INVALID, "matmul: x is [%zu, %zu] and w is [%zu, %zu]: the columns must match", x->rows,
                      x->columns, outputs, columns);
    if ((unsigned)precision > BNB_PRECISION_MEDIUM)
        return refuse(BNB_INVALID, "matmul: precision is %d, expected 0 to %d", (int)precision, BNB_PRECISION_MEDIUM);
    if (!on_device(operand_buffer(w), device, "matmul", "w") || (bias && !is_bias(bias, outputs, device)) ||
        !is_shape(x->rows, outputs, "matmul", "y"))
        return NULL;
    if (precision == BNB_PRECISION_DEFAULT)
        precision = x->dtype == BNB_F32 ? BNB_PRECISION_HIGHEST : BNB_PRECISION_HIGH;

    bnb_tensor *wide = NULL;
    if (!as_f32(&bias, &wide)) return NULL;
    bnb_tensor *y = tensor_new(device, x->dtype, x->rows, outputs);
    count_operation(device);
    struct product product = {x, w, bias, precision, y};
    bnb_status     status =
        y ? run(&(struct operation){"matmul", device, launch, matmul_on_host, &product}) : BNB_OUT_OF_MEMORY;
    bnb_tensor_free(wide);
    if (status == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}

bnb_tensor *bnb_matmul(const bnb_tensor *x, const bnb_tensor *w, const bnb_tensor *bias, bnb_precision precision) {
    if (!is_tensor(x, "matmul", "x") || !is_float(x->dtype, "matmul", "x") || !is_tensor(w, "matmul", "w") ||
        !is_float(w->dtype, "matmul", "w"))
        return NULL;
    return matmul(x, (struct operand){.dense = w}, bias, precision);
}

bnb_tensor *bnb_matmul_quantized(const bnb_tensor *x, const bnb_quantized *w, const bnb_tensor *bias,
                                 bnb_precision precision) {
    if (!is_tensor(x, "matmul", "x") || !is_float(x->dtype, "matmul", "x") || !is_quantized(w, "matmul", "w"))
        return NULL;
    return matmul(x, (struct operand){.coded = w}, bias, precision);
}
