/* Quantising as MLX's affine mode does: integers with a scale and an offset a block, the checks and the plain loop. */
#include <math.h>

#include "run.h"

struct affine_job {
    struct dense x;
    uint32_t     bits;
    size_t       block;
    uint8_t     *codes;
    void        *scales, *offsets; /* of x's dtype */
};

struct range {
    float least, most;
};

/* A NaN or an infinity among the elements makes `most` one of these. */
static struct range range_of(const struct dense *x, size_t first, size_t last) {
    struct range range = {INFINITY, -INFINITY};
    for (size_t i = first; i < last; i++) {
        float value = element_of(x, i);
        if (!isfinite(value)) return (struct range){value, value};
        if (value < range.least) range.least = value;
        if (value > range.most) range.most = value;
    }
    return range;
}

/* The end of the range that is farther from 0 falls on a code, and so does 0 if it lies within. */
static void affine_of(struct range range, float most_code, float *scale, float *offset) {
    bool  low = fabsf(range.least) > fabsf(range.most);
    float step = (range.most - range.least) / most_code, edge = low ? range.least : range.most;
    step = step > 1e-7f ? step : 1e-7f;
    *scale = low ? step : -step;
    *offset = 0;
    float code = rintf(edge / *scale);
    if (code == 0) return;
    *scale = edge / code;
    *offset = edge;
}

static void quantize_blocks(const void *argument, size_t first, size_t last) {
    const struct affine_job *job = argument;
    float                    most_code = (float)((1u << job->bits) - 1);
    for (size_t block = first; block < last; block++) {
        size_t       begin = block * job->block, end = begin + job->block;
        struct range range = range_of(&job->x, begin, end);
        float        scale = range.most, offset = 0; /* what is not finite stands in the place of a scale */
        if (isfinite(range.most)) affine_of(range, most_code, &scale, &offset);
        put_element(job->scales, job->x.dtype, block, scale);
        put_element(job->offsets, job->x.dtype, block, offset);
        if (!isfinite(range.most)) continue;
        uint32_t pending = 0, filled = 0;
        uint8_t *codes = job->codes + code_bytes(job->bits, begin);
        for (size_t i = begin; i < end; i++) {
            float code = rintf((element_of(&job->x, i) - offset) / scale);
            code = code > 0 ? code < most_code ? code : most_code : 0; /* a NaN, where x changes meanwhile, is 0 */
            pending = pending << job->bits | (uint32_t)code;
            for (filled += job->bits; filled >= 8;) *codes++ = (uint8_t)(pending >> (filled -= 8));
        }
    }
}

/* Says where the first NaN or infinity is, if there is one. */
static bnb_status quantize_all(const void *argument) {
    const struct affine_job *job = argument;
    const struct dense      *x = &job->x;
    size_t                   elements = x->rows * x->columns, blocks = elements / job->block;
    parallel_for(blocks, ceil_div(1 << 15, job->block), quantize_blocks, job);
    struct dense scales = {job->scales, x->dtype, 1, blocks};
    for (size_t block = 0; block < blocks; block++) {
        if (isfinite(element_of(&scales, block))) continue;
        for (size_t i = block * job->block; i < (block + 1) * job->block; i++)
            if (!isfinite(element_of(x, i)))
                return fail(BNB_INVALID,
                            "quantize_affine: x[%zu, %zu] is %g, expected finite numbers: replace it before "
                            "quantising",
                            i / x->columns, i % x->columns, element_of(x, i));
        size_t at = block * job->block;
        return fail(BNB_INVALID,
                    "quantize_affine: x has a block at [%zu, %zu] whose range is beyond its dtype's: take "
                    "float32",
                    at / x->columns, at % x->columns);
    }
    return BNB_OK;
}

struct affine_request {
    const bnb_tensor    *x;
    const bnb_quantized *q;
};

static bnb_status affine_on_host(const void *request, struct host *host) {
    const struct affine_request *r = request;
    struct affine_job            job = {.x = dense_of(host, r->x), .bits = r->q->code->book.bits, .block = r->q->block};
    job.codes = host_writes(host, r->q->codes);
    job.scales = host_writes(host, r->q->absmax);
    job.offsets = host_writes(host, r->q->offsets);
    return perform(host, quantize_all, &job, sizeof job);
}

static bnb_codebook *integers(uint32_t bits) {
    float values[256];
    for (uint32_t i = 0; i < 1u << bits; i++) values[i] = (float)i;
    return bnb_codebook_from(values, (sizeof *values) << bits);
}

/* A quantised matrix with nothing in it yet, of which all parts are the caller's. */
static bnb_quantized *affine_new(const bnb_tensor *x, bnb_codebook *code, size_t block) {
    bnb_device    *device = x->buffer->device;
    size_t         elements = x->rows * x->columns;
    bnb_tensor    *codes = tensor_new(device, BNB_U8, 1, code_bytes(code->book.bits, elements));
    bnb_tensor    *scales = codes ? tensor_new(device, x->dtype, 1, elements / block) : NULL;
    bnb_tensor    *offsets = scales ? tensor_new(device, x->dtype, 1, elements / block) : NULL;
    bnb_quantized *q = NULL;
    if (offsets)
        q = bnb_quantized_from(codes, x->rows, x->columns, code, block, scales, offsets, NULL, 0, NULL, 0, NULL, NULL);
    bnb_tensor_free(codes);
    bnb_tensor_free(scales);
    bnb_tensor_free(offsets);
    return q;
}

bnb_quantized *bnb_quantize_affine(const bnb_tensor *x, uint32_t bits, size_t block) {
    const char *me = "quantize_affine";
    if (!is_tensor(x, me, "x") || !is_float(x->dtype, me, "x")) return NULL;
    if (bits < 2 || bits > 8) return refuse(BNB_INVALID, "%s: bits is %u, expected 2 to 8", me, bits);
    bnb_codebook  *code = integers(bits);
    bnb_quantized *q = NULL;
    if (code && is_block(code, block, me)) {
        if (block % 8 || x->columns % block)
            refuse(BNB_INVALID, "%s: block is %zu, expected one that divides the %zu columns of x, and a multiple of 8",
                   me, block, x->columns);
        else
            q = affine_new(x, code, block);
    }
    bnb_codebook_free(code);
    if (q && run_on_host(x->buffer->device, affine_on_host, &(struct affine_request){x, q}) != BNB_OK) {
        bnb_quantized_free(q);
        return NULL;
    }
    return q;
}
