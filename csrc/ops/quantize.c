/* Blockwise k-bit quantisation: the checks, the scales of the scales, the launch and the plain loop. */
#include <math.h>

#include "launch.h"
#include "scales.h"

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
        float  absmax = job->given ? job->absmax[block] : absmax_of(&job->x, begin, end), inverse = inverse_of(absmax);
        job->absmax[block] = absmax;
        if (!isfinite(absmax)) continue;
        /* A block starts with a byte. Past its end come zeros, up to the last byte's. */
        uint32_t bits = job->code->bits, filled = 0, pending = 0;
        uint8_t *codes = job->codes + code_bytes(bits, begin);
        for (size_t i = begin; i < end || filled; i++) {
            pending = pending << bits | nearest_code(job->code, i < end ? element_of(&job->x, i) * inverse : 0);
            filled += bits;
            if (filled < 8) continue;
            filled -= 8;
            *codes++ = (uint8_t)(pending >> filled);
            if (i >= end) break;
        }
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

/* One quantisation: of the matrix, or of its scales. */
struct pass {
    const struct buffer *x;
    bnb_dtype            dtype;
    size_t               elements, block;
    bnb_codebook        *code;
    struct buffer       *codes, *absmax;
    bool                 given; /* absmax holds the scales already */
};

static bnb_status launch(const struct pass *pass) {
    bnb_device *device = pass->x->device;
    size_t      block = pass->block < pass->elements ? pass->block : pass->elements;
    uint32_t    shift = shift_of(pass->block);
    bool        tiled = shift >= 3 && (size_t)1 << shift <= QUANTIZE_TILE; /* what is no power of two has shift 32 */
    if (tiled) block = pass->block;
    if (block > UINT32_MAX) return fail(BNB_UNSUPPORTED, "a block of more than 2^32 elements");

    struct quantize_args args = {
        .count_low = (uint32_t)pass->elements,
        .count_high = (uint32_t)(pass->elements >> 32),
        .block = (uint32_t)block,
        .shift = shift_of(block),
    };
    struct launch launch = {
        .family = "quantize",
        .kernel = tiled ? "quantize" : "quantize_odd",
        .constants = {pass->dtype, store_of(pass->code), pass->given},
        .constant_count = 3,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {binding_of(pass->x), {}, binding_of(pass->codes), binding_of(pass->absmax)},
        .binding_count = 4,
        .groups = {groups_for(pass->elements, tiled ? QUANTIZE_TILE : block * (QUANTIZE_THREADS / 32)), 1, 1},
        .threads = QUANTIZE_THREADS,
        .bytes_moved = pass->x->bytes + pass->codes->bytes + pass->absmax->bytes,
    };
    bnb_status status = bind_codebook(pass->code, device, &launch.bindings[1]);
    return status ? status : device->gpu->launch(&launch);
}

/* Done when it returns, for the scales are looked at next. */
static bnb_status quantize(const struct pass *pass) {
    bnb_device *device = pass->x->device;
    bnb_status  status = device->gpu ? launch(pass) : BNB_UNSUPPORTED;
    if (status == BNB_OK) return device->gpu->wait();
    if (status != BNB_UNSUPPORTED || fall_back(device, "quantize") != BNB_OK) return status;
    quantize_host(&(struct quantize_job){
        .x = {buffer_host(pass->x), pass->dtype, 1, pass->elements},
        .code = &pass->code->book,
        .block = pass->block,
        .codes = buffer_host(pass->codes),
        .absmax = buffer_host(pass->absmax),
        .given = pass->given,
    });
    return BNB_OK;
}

/* Double quantisation: scale codes of scale - mean. The mean is taken in double precision and rounded once. */
static bnb_status quantize_scales(const struct buffer *scales, size_t blocks, bnb_quantized *q) {
    float *absmax = buffer_host(scales);
    double sum = 0;
    for (size_t b = 0; b < blocks; b++) sum += absmax[b];
    q->offset = (float)(sum / (double)blocks);
    for (size_t b = 0; b < blocks; b++) absmax[b] -= q->offset;
    return quantize(&(struct pass){scales, BNB_F32, blocks, q->nested_block, q->nested_code, q->absmax, q->nested_absmax, false});
}

/* How the scales are found. */
struct rule {
    bnb_scales        scales;
    const bnb_tensor *importance;
};

/* The scales come first, are quantised where they are to be, and codes are those for the scales that readers will see. */
static bnb_status run_least_squares(const bnb_tensor *x, const bnb_tensor *importance, struct buffer *scales, bnb_quantized *q) {
    size_t     elements = x->rows * x->columns, blocks = ceil_div(elements, q->block);
    bnb_status status = find_scales(x, q->code, q->block, importance, scales);
    if (status == BNB_OK) status = check_finite(x, buffer_host(scales), q->block);
    if (status == BNB_OK && q->nested_code) {
        status = quantize_scales(scales, blocks, q);
        if (status) return status;
        struct coded coded = coded_of(q);
        float       *host = buffer_host(scales);
        for (size_t b = 0; b < blocks; b++) host[b] = scale_of(&coded, b);
    }
    return status ? status : quantize(&(struct pass){x->buffer, x->dtype, elements, q->block, q->code, q->codes, scales, true});
}

static bnb_status run(const bnb_tensor *x, struct rule rule, struct buffer *absmax, bnb_quantized *q) {
    if (rule.scales == BNB_SCALES_LEAST_SQUARES) return run_least_squares(x, rule.importance, absmax, q);
    size_t     elements = x->rows * x->columns;
    bnb_status status = quantize(&(struct pass){x->buffer, x->dtype, elements, q->block, q->code, q->codes, absmax, false});
    if (status == BNB_OK) status = check_finite(x, buffer_host(absmax), q->block);
    return status || !q->nested_code ? status : quantize_scales(absmax, ceil_div(elements, q->block), q);
}

static bool is_rule(struct rule rule, const bnb_tensor *x) {
    if (rule.scales != BNB_SCALES_ABSMAX && rule.scales != BNB_SCALES_LEAST_SQUARES) {
        fail(BNB_INVALID, "quantize: scales is %d, expected 0 to %d", (int)rule.scales, BNB_SCALES_LEAST_SQUARES);
        return false;
    }
    if (!rule.importance || rule.scales == BNB_SCALES_LEAST_SQUARES) return is_importance(rule.importance, x, "quantize");
    fail(BNB_INVALID, "quantize: importance is given, but the scales are the largest magnitudes: leave it out, or ask for least squares");
    return false;
}

bnb_quantized *bnb_quantize(const bnb_tensor *x, const bnb_codebook *code, size_t block, size_t nested_block, bnb_scales scales,
                            const bnb_tensor *importance) {
    struct rule rule = {scales, importance};
    if (!is_tensor(x, "quantize", "x") || !is_float(x->dtype, "quantize", "x") || !is_codebook(code, "quantize", "code") ||
        !is_block(code, block, "quantize") || !is_rule(rule, x))
        return NULL;
    bnb_device    *device = x->buffer->device;
    bnb_quantized *q = quantized_new(device, (bnb_codebook *)code, x->rows, x->columns, block, nested_block);
    if (!q) return NULL;

    /* Plain scales go where they stay; scales that are quantised in turn are needed only meanwhile. */
    struct buffer *absmax = nested_block ? buffer_new(device, ceil_div(x->rows * x->columns, block) * sizeof(float)) : buffer_share(q->absmax);
    count_operation(device);
    bnb_status status = absmax ? run(x, rule, absmax, q) : BNB_OUT_OF_MEMORY;
    buffer_release(absmax);
    if (status == BNB_OK) return q;
    bnb_quantized_free(q);
    return NULL;
}
