/* y = x · wᵀ + bias with a dense or a quantised w: the checks and the plain loop. */
#include <stdlib.h>

#include "../internal.h"

/* ── The plain loop ─────────────────────────────────────────────────────────────────────────────────────────────── */

static float weight_at(const struct matmul_job *job, size_t i) {
    if (!job->q.code) return element_of(&job->w, i);
    return job->q.code->values[code_at(&job->q, i)] * scale_of(&job->q, i / job->q.block);
}

/* Columns [first, last) of y: rows of w. */
static void matmul_plain(const void *argument, size_t first, size_t last) {
    const struct matmul_job *job = argument;
    size_t                   columns = job->x.columns, outputs = job->q.code ? job->q.rows : job->w.rows;
    for (size_t n = first; n < last; n++) {
        for (size_t m = 0; m < job->x.rows; m++) {
            double sum = 0;
            for (size_t k = 0; k < columns; k++)
                sum += (double)element_of(&job->x, m * columns + k) * weight_at(job, n * columns + k);
            put_element(job->y, job->x.dtype, m * outputs + n, (float)(sum + (job->bias ? job->bias[n] : 0)));
        }
    }
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* The weight is `w`, or `q` where w is NULL. */
static bnb_status run(const bnb_tensor *x, const bnb_tensor *w, const bnb_quantized *q, const bnb_tensor *bias, bnb_precision precision,
                      bnb_tensor *y) {
    bnb_device *device = x->buffer->device;
    bnb_status  status = device->gpu ? fall_back(device, "matmul", "no kernel") : BNB_OK;
    if (status) return status;

    struct matmul_job job = {.x = dense_of(x), .precision = precision, .y = buffer_host(y->buffer)};
    if (w) job.w = dense_of(w);
    else job.q = coded_of(q);
    if (bias) job.bias = buffer_host(bias->buffer);
    if (cpu_forms()->matmul) return cpu_forms()->matmul(&job);
    parallel_for(y->columns, 1, matmul_plain, &job);
    return BNB_OK;
}

static bool is_bias(const bnb_tensor *bias, size_t outputs, const bnb_device *device) {
    if (!is_tensor(bias, "matmul", "bias") || !is_float(bias->dtype, "matmul", "bias") || !on_device(bias->buffer, device, "matmul", "bias"))
        return false;
    if (bias->rows == 1 && bias->columns == outputs) return true;
    fail(BNB_INVALID, "matmul: bias is [%zu, %zu], expected [1, %zu], an element for each row of w", bias->rows, bias->columns, outputs);
    return false;
}

static bnb_tensor *matmul(const bnb_tensor *x, const bnb_tensor *w, const bnb_quantized *q, const bnb_tensor *bias, bnb_precision precision) {
    size_t outputs = w ? w->rows : q->rows, columns = w ? w->columns : q->columns;
    const struct buffer *weight = w ? w->buffer : q->codes;
    bnb_device          *device = x->buffer->device;
    if (x->columns != columns)
        return refuse(BNB_INVALID, "matmul: x is [%zu, %zu] and w is [%zu, %zu]: the columns must match", x->rows, x->columns, outputs, columns);
    if ((unsigned)precision > BNB_PRECISION_MEDIUM)
        return refuse(BNB_INVALID, "matmul: precision is %d, expected 0 to %d", (int)precision, BNB_PRECISION_MEDIUM);
    if (!on_device(weight, device, "matmul", "w") || (bias && !is_bias(bias, outputs, device)) || !is_shape(x->rows, outputs, "matmul", "y"))
        return NULL;
    if (precision == BNB_PRECISION_DEFAULT) precision = x->dtype == BNB_F32 ? BNB_PRECISION_HIGHEST : BNB_PRECISION_HIGH;

    /* Kernels take a bias in fp32; it is small, so one cast serves every dtype. */
    bnb_tensor *wide = bias && bias->dtype != BNB_F32 ? bnb_cast(bias, BNB_F32) : NULL;
    if (bias && bias->dtype != BNB_F32 && !wide) return NULL;
    bnb_tensor *y = tensor_new(device, x->dtype, x->rows, outputs);
    count_operation(device);
    bnb_status status = y ? run(x, w, q, wide ? wide : bias, precision, y) : BNB_OUT_OF_MEMORY;
    bnb_tensor_free(wide);
    if (status == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}

bnb_tensor *bnb_matmul(const bnb_tensor *x, const bnb_tensor *w, const bnb_tensor *bias, bnb_precision precision) {
    if (!is_tensor(x, "matmul", "x") || !is_float(x->dtype, "matmul", "x") || !is_tensor(w, "matmul", "w") || !is_float(w->dtype, "matmul", "w"))
        return NULL;
    return matmul(x, w, NULL, bias, precision);
}

bnb_tensor *bnb_matmul_quantized(const bnb_tensor *x, const bnb_quantized *w, const bnb_tensor *bias, bnb_precision precision) {
    if (!is_tensor(x, "matmul", "x") || !is_float(x->dtype, "matmul", "x") || !is_quantized(w, "matmul", "w")) return NULL;
    return matmul(x, NULL, w, bias, precision);
}
