/* Matrices put one under the other, so that a product with several weights is one: copies, no arithmetic but that of
 * nested scales. */
#include <string.h>

#include "run.h"

/* Copies a whole buffer to a place in another of its device. */
static bnb_status copy_to(const struct buffer *from, struct buffer *to, size_t offset) {
    struct buffer *part = buffer_part(to, offset, from->bytes);
    bnb_status     status = part ? buffer_copy(part, from) : BNB_OUT_OF_MEMORY;
    buffer_release(part);
    return status;
}

bnb_tensor *bnb_tensor_join(const bnb_tensor *a, const bnb_tensor *b) {
    if (!is_tensor(a, "tensor_join", "a") || !is_tensor(b, "tensor_join", "b") ||
        !on_device(b->buffer, a->buffer->device, "tensor_join", "b") ||
        !is_shape(a->rows + b->rows, a->columns, "tensor_join", "the result"))
        return NULL;
    if (a->dtype != b->dtype || a->columns != b->columns)
        return refuse(BNB_INVALID,
                      "tensor_join: a is %s [%zu, %zu] and b is %s [%zu, %zu]: dtypes and columns must match",
                      dtype_name(a->dtype), a->rows, a->columns, dtype_name(b->dtype), b->rows, b->columns);
    bnb_tensor *y = tensor_new(a->buffer->device, a->dtype, a->rows + b->rows, a->columns);
    if (!y) return NULL;
    if (copy_to(a->buffer, y->buffer, 0) == BNB_OK && copy_to(b->buffer, y->buffer, a->buffer->bytes) == BNB_OK)
        return y;
    bnb_tensor_free(y);
    return NULL;
}

/* Memory for what lies in two buffers, one behind the other. */
static struct buffer *joined(const struct buffer *a, const struct buffer *b) {
    struct buffer *both = buffer_new(a->device, a->bytes + b->bytes);
    if (!both || (copy_to(a, both, 0) == BNB_OK && copy_to(b, both, a->bytes) == BNB_OK)) return both;
    buffer_release(both);
    return NULL;
}

/* ── Scales and offsets as floats ───────────────────────────────────────────────────────────────────────────────── */

/* What of_block gives for each block of q. */
struct floats_job {
    struct coded q;
    float (*of_block)(const struct coded *q, size_t block);
    float *to;
};

static bnb_status fill_floats(const void *argument) {
    const struct floats_job *job = argument;
    size_t                   blocks = ceil_div(job->q.rows * job->q.columns, job->q.block);
    for (size_t b = 0; b < blocks; b++) job->to[b] = job->of_block(&job->q, b);
    return BNB_OK;
}

struct floats_request {
    const bnb_quantized *q;
    float (*of_block)(const struct coded *q, size_t block);
    const struct buffer *to;
};

static bnb_status floats_on_host(const void *request, struct host *host) {
    const struct floats_request *r = request;
    struct floats_job            job = {scales_in(host, r->q), r->of_block, host_writes(host, r->to)};
    job.q.offset = quantized_offset(r->q);
    return perform(host, fill_floats, &job, sizeof job);
}

static size_t blocks_of(const bnb_quantized *q) { return ceil_div(q->rows * q->columns, q->block); }

/* Writes them to a buffer's bytes from `offset` on. */
static bnb_status floats_to(const bnb_quantized *q, float (*of_block)(const struct coded *q, size_t block),
                            struct buffer *to, size_t offset) {
    struct buffer *part = buffer_part(to, offset, blocks_of(q) * sizeof(float));
    bnb_status     status =
        part ? run_on_host(to->device, floats_on_host, &(struct floats_request){q, of_block, part}) : BNB_OUT_OF_MEMORY;
    buffer_release(part);
    return status;
}

/* Those of both. */
static struct buffer *joined_floats(const bnb_quantized *a, const bnb_quantized *b,
                                    float (*of_block)(const struct coded *q, size_t block)) {
    size_t         first = blocks_of(a) * sizeof(float);
    struct buffer *both = buffer_new(a->codes->device, first + blocks_of(b) * sizeof(float));
    if (!both || (floats_to(a, of_block, both, 0) == BNB_OK && floats_to(b, of_block, both, first) == BNB_OK))
        return both;
    buffer_release(both);
    return NULL;
}

/* ── Quantised matrices ─────────────────────────────────────────────────────────────────────────────────────────── */

static bool has_same_values(const bnb_codebook *a, const bnb_codebook *b) {
    return a->book.size == b->book.size &&
           !memcmp(a->book.values, b->book.values, a->book.size * sizeof *a->book.values);
}

/* Whether both matrices' nested scales can stay as they lie: a's groups are whole, and b's go on as they do. */
static bool stays_nested(const bnb_quantized *a, const bnb_quantized *b) {
    if (!a->nested_code || !b->nested_code || !has_same_values(a->nested_code, b->nested_code)) return false;
    float offset = quantized_offset(a), other = quantized_offset(b);
    return a->nested_block == b->nested_block && a->nested_dtype == b->nested_dtype &&
           !a->nested_offsets == !b->nested_offsets && !memcmp(&offset, &other, sizeof offset) &&
           blocks_of(a) % a->nested_block == 0 && blocks_of(a) * a->nested_code->book.bits % 8 == 0;
}

static bnb_status join_nested(const bnb_quantized *a, const bnb_quantized *b, bnb_quantized *y) {
    y->nested_code = codebook_share(a->nested_code);
    y->nested_block = a->nested_block, y->nested_dtype = a->nested_dtype;
    y->nested_offset = a->nested_offset ? buffer_share(a->nested_offset) : NULL;
    y->absmax_dtype = a->absmax_dtype;
    if (!(y->absmax = joined(a->absmax, b->absmax)) || !(y->nested_absmax = joined(a->nested_absmax, b->nested_absmax)))
        return BNB_OUT_OF_MEMORY;
    if (a->nested_offsets && !(y->nested_offsets = joined(a->nested_offsets, b->nested_offsets)))
        return BNB_OUT_OF_MEMORY;
    return BNB_OK;
}

/* Scales as they lie where they are alike, else as floats. */
static bnb_status join_scales(const bnb_quantized *a, const bnb_quantized *b, bnb_quantized *y) {
    if (stays_nested(a, b)) return join_nested(a, b, y);
    bool alike = !a->nested_code && !b->nested_code && a->absmax_dtype == b->absmax_dtype;
    y->absmax_dtype = alike ? a->absmax_dtype : BNB_F32;
    y->absmax = alike ? joined(a->absmax, b->absmax) : joined_floats(a, b, scale_of);
    return y->absmax ? BNB_OK : bnb_last_status();
}

/* The same of offsets, which both have or neither; codes need the nested scales' codebook. */
static bnb_status join_offsets(const bnb_quantized *a, const bnb_quantized *b, bnb_quantized *y) {
    if (!a->offsets) return BNB_OK;
    bool alike = a->offsets_dtype == b->offsets_dtype && (!a->offsets_absmax || y->nested_code);
    y->offsets_dtype = alike ? a->offsets_dtype : BNB_F32;
    y->offsets = alike ? joined(a->offsets, b->offsets) : joined_floats(a, b, offset_of);
    if (y->offsets && alike && a->offsets_absmax) y->offsets_absmax = joined(a->offsets_absmax, b->offsets_absmax);
    return y->offsets && (!alike || !a->offsets_absmax || y->offsets_absmax) ? BNB_OK : bnb_last_status();
}

static bool are_joinable(const bnb_quantized *a, const bnb_quantized *b) {
    if (!is_quantized(a, "quantized_join", "a") || !is_quantized(b, "quantized_join", "b") ||
        !on_device(b->codes, a->codes->device, "quantized_join", "b") ||
        !is_shape(a->rows + b->rows, a->columns, "quantized_join", "the result"))
        return false;
    bool same_values = has_same_values(a->code, b->code);
    if (a->columns != b->columns || a->block != b->block || !same_values)
        return fail(BNB_INVALID,
                    "quantized_join: a is [%zu, %zu] in blocks of %zu and b [%zu, %zu] in blocks of %zu%s: columns, "
                    "blocks and codebooks must match",
                    a->rows, a->columns, a->block, b->rows, b->columns, b->block,
                    same_values ? "" : ", with another codebook"),
               false;
    if (!a->offsets != !b->offsets)
        return fail(BNB_UNSUPPORTED, "quantized_join: %s has offsets of blocks, and %s has none",
                    a->offsets ? "a" : "b", a->offsets ? "b" : "a"),
               false;
    size_t elements = a->rows * a->columns;
    if (elements % a->block || elements * a->code->book.bits % 8)
        return fail(BNB_UNSUPPORTED, "quantized_join: the %zu elements of a are no whole blocks of %zu and bytes",
                    elements, a->block),
               false;
    return true;
}

bnb_quantized *bnb_quantized_join(const bnb_quantized *a, const bnb_quantized *b) {
    if (!are_joinable(a, b)) return NULL;
    bnb_quantized *y = handle_new(TAG_QUANTIZED, sizeof *y);
    if (!y) return refuse(BNB_OUT_OF_MEMORY, "no memory for a quantised matrix's handle");
    *y = (bnb_quantized){.tag = TAG_QUANTIZED, .rows = a->rows + b->rows, .columns = a->columns, .block = a->block};
    y->code = codebook_share(a->code);
    if ((y->codes = joined(a->codes, b->codes)) && join_scales(a, b, y) == BNB_OK && join_offsets(a, b, y) == BNB_OK)
        return y;
    bnb_quantized_free(y);
    return NULL;
}
