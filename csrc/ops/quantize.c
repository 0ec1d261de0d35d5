/* Blockwise k-bit quantisation: the checks, the scales of the scales, and the plain loop. */
#include <math.h>

#include "../internal.h"

/* ── The plain loop ─────────────────────────────────────────────────────────────────────────────────────────────── */

/* The block's largest magnitude; a NaN or an infinity in it gives one of the two. */
static float absmax_of(const struct dense *x, size_t first, size_t last) {
    float absmax = 0;
    for (size_t i = first; i < last; i++) {
        float magnitude = fabsf(element_of(x, i));
        if (!(magnitude <= absmax)) absmax = magnitude;
        if (isnan(magnitude)) return magnitude;
    }
    return absmax;
}

static void quantize_plain(const void *argument, size_t first, size_t last) {
    const struct quantize_job *job = argument;
    size_t                     elements = job->x.rows * job->x.columns;
    for (size_t block = first; block < last; block++) {
        size_t begin = block * job->block, end = begin + job->block < elements ? begin + job->block : elements;
        float  absmax = absmax_of(&job->x, begin, end), inverse = inverse_of(absmax);
        job->absmax[block] = absmax;
        if (!isfinite(absmax)) continue;
        for (size_t i = begin; i < end; i++) {
            uint8_t code = nearest_code(job->code, element_of(&job->x, i) * inverse);
            if (job->code->bits == 8) job->codes[i] = code;
            else if (i % 2) job->codes[i / 2] |= code;
            else job->codes[i / 2] = (uint8_t)(code << 4);
        }
        if (job->code->bits == 4 && end % 2) job->codes[end / 2] |= nearest_code(job->code, 0); /* an odd count is padded with 0 */
    }
}

static void quantize_host(const struct quantize_job *job) {
    size_t blocks = ceil_div(job->x.rows * job->x.columns, job->block);
    parallel_for(blocks, ceil_div(1 << 15, job->block), cpu_forms()->quantize ? cpu_forms()->quantize : quantize_plain, job);
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Says where the first NaN or infinity is, if there is one. */
static bnb_status check_finite(const bnb_tensor *x, const float *absmax, size_t block) {
    size_t elements = x->rows * x->columns, blocks = ceil_div(elements, block), bad = 0;
    while (bad < blocks && isfinite(absmax[bad])) bad++;
    if (bad == blocks) return BNB_OK;
    struct dense dense = dense_of(x);
    size_t       at = bad * block;
    while (at < elements - 1 && isfinite(element_of(&dense, at))) at++;
    return fail(BNB_INVALID, "quantize: x[%zu, %zu] is %g, expected finite numbers: replace it before quantising", at / x->columns,
                at % x->columns, element_of(&dense, at));
}

/* Double quantisation: scale codes of scale - mean. The mean is taken in double precision and rounded once. */
static bnb_status quantize_scales(const struct buffer *scales, size_t blocks, bnb_quantized *q) {
    float *absmax = buffer_host(scales);
    double sum = 0;
    for (size_t b = 0; b < blocks; b++) sum += absmax[b];
    q->offset = (float)(sum / (double)blocks);
    for (size_t b = 0; b < blocks; b++) absmax[b] -= q->offset;
    struct quantize_job job = {
        .x = {absmax, BNB_F32, 1, blocks},
        .code = &q->nested_code->codes,
        .block = q->nested_block,
        .codes = buffer_host(q->absmax),
        .absmax = buffer_host(q->nested_absmax),
    };
    quantize_host(&job);
    return BNB_OK;
}

static bnb_status run(const bnb_tensor *x, struct buffer *absmax, bnb_quantized *q) {
    bnb_device *device = x->buffer->device;
    size_t      blocks = ceil_div(x->rows * x->columns, q->block);
    bnb_status  status = device->gpu ? fall_back(device, "quantize", "no kernel") : BNB_OK;
    if (status) return status;

    struct quantize_job job = {dense_of(x), &q->code->codes, q->block, buffer_host(q->codes), buffer_host(absmax)};
    quantize_host(&job);
    status = check_finite(x, buffer_host(absmax), q->block);
    return status || !q->nested_code ? status : quantize_scales(absmax, blocks, q);
}

bnb_quantized *bnb_quantize(const bnb_tensor *x, const bnb_codebook *code, size_t block, size_t nested_block) {
    if (!is_tensor(x, "quantize", "x") || !is_float(x->dtype, "quantize", "x") || !is_codebook(code, "quantize", "code") ||
        !is_block(code, block, "quantize"))
        return NULL;
    bnb_device    *device = x->buffer->device;
    bnb_quantized *q = quantized_new(device, (bnb_codebook *)code, x->rows, x->columns, block, nested_block);
    if (!q) return NULL;

    /* Plain scales go where they stay; scales that are quantised in turn are needed only meanwhile. */
    struct buffer *absmax = nested_block ? buffer_new(device, ceil_div(x->rows * x->columns, block) * sizeof(float)) : buffer_share(q->absmax);
    count_operation(device);
    bnb_status status = absmax ? run(x, absmax, q) : BNB_OUT_OF_MEMORY;
    buffer_release(absmax);
    if (status == BNB_OK) return q;
    bnb_quantized_free(q);
    return NULL;
}
