/* Blockwise k-bit quantisation: the checks, the order of what it takes, the launch and the plain loop. */
#include <math.h>

#include "finite.h"
#include "launch.h"
#include "nested.h"
#include "record.h"
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

enum { SEEN_BLOCK = 4096 }; /* elements that are looked at together */

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

static bnb_status quantize_all(const void *argument) {
    const struct quantize_job *job = argument;
    size_t                     blocks = ceil_div(job->x.rows * job->x.columns, job->block);
    parallel_for(blocks, ceil_div(1 << 15, job->block), cpu_forms()->quantize ? cpu_forms()->quantize : quantize_plain,
                 job);
    return BNB_OK;
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

struct finite_job {
    struct dense x;
    const float *absmax; /* of blocks, which show it; or NULL, and all of x is looked at */
    size_t       block;
};

struct seen {
    struct dense x;
    atomic_bool *infinite;
};

static void see_blocks(const void *argument, size_t first, size_t last) {
    const struct seen *seen = argument;
    size_t             elements = seen->x.rows * seen->x.columns, end = last * SEEN_BLOCK;
    if (!isfinite(absmax_of(&seen->x, first * SEEN_BLOCK, end < elements ? end : elements))) *seen->infinite = true;
}

/* Whether x has a NaN or an infinity, by all threads. */
static bool has_infinite(const struct dense *x) {
    atomic_bool infinite = false;
    parallel_for(ceil_div(x->rows * x->columns, SEEN_BLOCK), 8, see_blocks, &(struct seen){*x, &infinite});
    return infinite;
}

/* Says where the first NaN or infinity is, if there is one. */
static bnb_status find_infinite(const void *argument) {
    const struct finite_job *job = argument;
    const struct dense      *x = &job->x;
    size_t                   elements = x->rows * x->columns, blocks = ceil_div(elements, job->block), bad = 0;
    if (!job->absmax && !has_infinite(x)) return BNB_OK;
    while (job->absmax && bad < blocks && isfinite(job->absmax[bad])) bad++;
    if (bad == blocks) return BNB_OK;
    size_t at = bad * job->block;
    while (at < elements - 1 && isfinite(element_of(x, at))) at++;
    return fail(BNB_INVALID, "quantize: x[%zu, %zu] is %g, expected finite numbers: replace it before quantising",
                at / x->columns, at % x->columns, element_of(x, at));
}

struct finite_request {
    const bnb_tensor    *x;
    const struct buffer *absmax; /* or NULL */
    size_t               block;
};

static bnb_status finite_on_host(const void *request, struct host *host) {
    const struct finite_request *r = request;
    struct finite_job            job = {dense_of(host, r->x), r->absmax ? host_reads(host, r->absmax) : NULL, r->block};
    return perform(host, find_infinite, &job, sizeof job);
}

/* By what is known of the scales, a piece each; where that is nothing, or something is not finite, the CPU looks at
 * them, and at x. absmax NULL: nothing was found yet. */
static bnb_status check_finite(const bnb_tensor *x, const struct buffer *absmax, const struct buffer *largest,
                               size_t block) {
    if (are_finite(largest)) return BNB_OK;
    return run_on_host(x->buffer->device, finite_on_host, &(struct finite_request){x, absmax, block});
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

static bnb_status launch(const void *request) {
    const struct pass *pass = request;
    bnb_device        *device = pass->x->device;
    size_t             block = pass->block < pass->elements ? pass->block : pass->elements;
    uint32_t           shift = shift_of(pass->block);
    bool tiled = shift >= 3 && (size_t)1 << shift <= QUANTIZE_TILE; /* what is no power of two has shift 32 */
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
        .bindings = {reads(pass->x), {}, writes(pass->codes), pass->given ? reads(pass->absmax) : writes(pass->absmax)},
        .binding_count = 4,
        .groups = {groups_for(pass->elements, tiled ? QUANTIZE_TILE : block * (QUANTIZE_THREADS / 32)), 1, 1},
        .threads = QUANTIZE_THREADS,
        .bytes_moved = pass->x->bytes + pass->codes->bytes + pass->absmax->bytes,
    };
    bnb_status status = bind_codebook(pass->code, device, &launch.bindings[1]);
    return status ? status : enqueue(device, &launch);
}

static bnb_status quantize_on_host(const void *request, struct host *host) {
    const struct pass  *pass = request;
    struct quantize_job job = {
        .x = {host_reads(host, pass->x), pass->dtype, 1, pass->elements},
        .code = host_codebook(host, pass->code),
        .block = pass->block,
        .codes = host_writes(host, pass->codes),
        .absmax = pass->given ? (float *)host_reads(host, pass->absmax) : host_writes(host, pass->absmax),
        .given = pass->given,
    };
    return perform(host, quantize_all, &job, sizeof job);
}

static bnb_status quantize(const struct pass *pass) {
    return run(&(struct operation){"quantize", pass->x->device, launch, quantize_on_host, pass});
}

/* How the scales are found. */
struct rule {
    bnb_scales        scales;
    const bnb_tensor *importance;
};

/* Scale codes of scale - mean; then, where codes are to fit them, the scales that readers will see. */
static bnb_status quantize_scales(const struct buffer *scales, const struct buffer *largest, bool seen,
                                  bnb_quantized *q) {
    bnb_status status = centre_scales(scales, largest, q);
    if (status == BNB_OK)
        status = quantize(&(struct pass){scales, BNB_F32, scales->bytes / sizeof(float), q->nested_block,
                                         q->nested_code, q->absmax, q->nested_absmax, false});
    return status || !seen ? status : read_scales(q, scales);
}

/* Codes for the largest magnitudes come with them; those for scales of least squares when the scales are as readers
 * will see them. x is looked at as soon as nobody waits longer for it: on a CPU before a search, which takes long, and
 * on a GPU when all is enqueued. */
static bnb_status quantize_by(const bnb_tensor *x, struct rule rule, struct buffer *absmax, bnb_quantized *q) {
    bool           searched = rule.scales == BNB_SCALES_LEAST_SQUARES, on_gpu = x->buffer->device->driver;
    struct pass    pass = {x->buffer, x->dtype, x->rows * x->columns, q->block, q->code, q->codes, absmax, searched};
    struct buffer *largest = NULL, *weight = NULL;
    bnb_status     status = searched && !on_gpu ? check_finite(x, NULL, NULL, q->block) : BNB_OK;
    if (status == BNB_OK)
        status = searched ? find_scales(x, q->code, q->block, rule.importance, absmax, &weight) : quantize(&pass);
    if (status == BNB_OK && !searched && !on_gpu) status = check_finite(x, absmax, NULL, q->block);
    if (status == BNB_OK) status = find_largest(absmax, &largest);
    if (status == BNB_OK && q->nested_code) status = quantize_scales(absmax, largest, searched, q);
    if (status == BNB_OK && searched) status = quantize(&pass);
    if (status == BNB_OK && on_gpu && !is_recording(x->buffer->device)) {
        status = check_finite(x, absmax, largest, q->block);
        if (status == BNB_OK) status = check_importance(rule.importance, weight);
    }
    buffer_release(weight);
    buffer_release(largest);
    return status;
}

static bool is_rule(struct rule rule, const bnb_tensor *x) {
    if (rule.scales != BNB_SCALES_ABSMAX && rule.scales != BNB_SCALES_LEAST_SQUARES) {
        fail(BNB_INVALID, "quantize: scales is %d, expected 0 to %d", (int)rule.scales, BNB_SCALES_LEAST_SQUARES);
        return false;
    }
    if (!rule.importance || rule.scales == BNB_SCALES_LEAST_SQUARES)
        return is_importance(rule.importance, x, "quantize");
    fail(BNB_INVALID, "quantize: importance is given, but the scales are the largest magnitudes: leave it out, or ask "
                      "for least squares");
    return false;
}

bnb_quantized *bnb_quantize(const bnb_tensor *x, const bnb_codebook *code, size_t block, size_t nested_block,
                            bnb_scales scales, const bnb_tensor *importance) {
    struct rule rule = {scales, importance};
    if (!is_tensor(x, "quantize", "x") || !is_float(x->dtype, "quantize", "x") ||
        !is_codebook(code, "quantize", "code") || !is_block(code, block, "quantize") || !is_rule(rule, x))
        return NULL;
    bnb_device *device = x->buffer->device;
    if (!device->driver && not_recording(device, "quantize")) return NULL;
    bnb_quantized *q = quantized_new(device, (bnb_codebook *)code, x->rows, x->columns, block, nested_block);
    if (!q) return NULL;

    /* Plain scales go where they stay; scales that are quantised in turn are needed only meanwhile. */
    struct buffer *absmax = nested_block ? buffer_new(device, ceil_div(x->rows * x->columns, block) * sizeof(float))
                                         : buffer_share(q->absmax);
    count_operation(device);
    bnb_status status = absmax ? quantize_by(x, rule, absmax, q) : BNB_OUT_OF_MEMORY;
    buffer_release(absmax);
    if (status == BNB_OK) return q;
    bnb_quantized_free(q);
    return NULL;
}
