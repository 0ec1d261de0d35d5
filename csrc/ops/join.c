/* Matrices put one under the other, so that a product with several weights is one: copies, no arithmetic but that of
 * nested scales. */
#include <stdlib.h>
#include <string.h>

#include "../internal.h"

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

static float element(const void *data, bnb_dtype dtype, size_t i) {
    return element_of(&(struct dense){data, dtype, 1, 0}, i);
}

/* Copies of a matrix's scales, as floats. */
struct scales {
    size_t   blocks;
    uint8_t *absmax; /* as they lie: floats of a dtype, or codes */
    float   *outer, *outer_offsets, *values;
};

static bnb_status read_scales(const bnb_quantized *q, struct scales *s) {
    bnb_status status = buffer_read(q->absmax, s->absmax, q->absmax->bytes);
    if (status == BNB_OK && q->nested_absmax) status = buffer_read(q->nested_absmax, s->outer, q->nested_absmax->bytes);
    if (status == BNB_OK && q->nested_offsets)
        status = buffer_read(q->nested_offsets, s->outer_offsets, q->nested_offsets->bytes);
    float offset = quantized_offset(q);
    for (size_t i = 0; i < s->blocks && status == BNB_OK; i++) {
        size_t group = q->nested_code ? i / q->nested_block : 0;
        if (!q->nested_code)
            s->values[i] = element(s->absmax, q->absmax_dtype, i);
        else
            s->values[i] = q->nested_code->book.values[s->absmax[i]] * s->outer[group] +
                           (q->nested_offsets ? s->outer_offsets[group] : offset);
    }
    return status;
}

/* The scales of q as floats, from a place in `to` on. */
static bnb_status scales_to(const bnb_quantized *q, struct buffer *to, size_t offset) {
    struct scales s = {.blocks = q->rows * q->columns / q->block + (q->rows * q->columns % q->block != 0)};
    s.absmax = malloc(q->absmax->bytes);
    s.values = malloc(s.blocks * sizeof *s.values);
    if (q->nested_absmax) s.outer = malloc(q->nested_absmax->bytes);
    if (q->nested_offsets) s.outer_offsets = malloc(q->nested_offsets->bytes);
    bnb_status status = BNB_OK;
    if (!s.absmax || !s.values || (q->nested_absmax && !s.outer) || (q->nested_offsets && !s.outer_offsets))
        status =
            fail(BNB_OUT_OF_MEMORY, "quantized_join: no memory for %zu scales; free something and try again", s.blocks);
    else
        status = read_scales(q, &s);
    if (status == BNB_OK) status = buffer_write_at(to, offset, s.values, s.blocks * sizeof *s.values);
    free(s.absmax), free(s.values), free(s.outer), free(s.outer_offsets);
    return status;
}

/* Whether both matrices' scales can stay as they lie. */
static bool keeps_scales(const bnb_quantized *a, const bnb_quantized *b) {
    return !a->nested_code && !b->nested_code && a->absmax_dtype == b->absmax_dtype;
}

/* Scales of both, as they lie where they are alike, else as floats. */
static bnb_status join_scales(const bnb_quantized *a, const bnb_quantized *b, bnb_quantized *y) {
    if (!keeps_scales(a, b)) {
        size_t     blocks = a->rows * a->columns / a->block;
        bnb_status status = scales_to(a, y->absmax, 0);
        return status == BNB_OK ? scales_to(b, y->absmax, blocks * sizeof(float)) : status;
    }
    if (a->absmax_dtype != BNB_F32) {
        struct buffer *narrow = buffer_new(y->codes->device, a->absmax->bytes + b->absmax->bytes);
        if (!narrow) return BNB_OUT_OF_MEMORY;
        buffer_release(y->absmax);
        y->absmax = narrow, y->absmax_dtype = a->absmax_dtype;
    }
    bnb_status status = copy_to(a->absmax, y->absmax, 0);
    return status == BNB_OK ? copy_to(b->absmax, y->absmax, a->absmax->bytes) : status;
}

static bnb_status join_offsets(const bnb_quantized *a, const bnb_quantized *b, bnb_quantized *y) {
    if (!a->offsets) return BNB_OK;
    y->offsets_dtype = a->offsets_dtype;
    if (!(y->offsets = buffer_new(y->codes->device, a->offsets->bytes + b->offsets->bytes))) return BNB_OUT_OF_MEMORY;
    bnb_status status = copy_to(a->offsets, y->offsets, 0);
    return status == BNB_OK ? copy_to(b->offsets, y->offsets, a->offsets->bytes) : status;
}

static bool are_joinable(const bnb_quantized *a, const bnb_quantized *b) {
    if (!is_quantized(a, "quantized_join", "a") || !is_quantized(b, "quantized_join", "b") ||
        !on_device(b->codes, a->codes->device, "quantized_join", "b") ||
        !is_shape(a->rows + b->rows, a->columns, "quantized_join", "the result"))
        return false;
    const struct codebook *first = &a->code->book, *second = &b->code->book;
    bool                   same_values =
        first->size == second->size && !memcmp(first->values, second->values, first->size * sizeof *first->values);
    if (a->columns != b->columns || a->block != b->block || !same_values)
        return fail(BNB_INVALID,
                    "quantized_join: a is [%zu, %zu] in blocks of %zu and b [%zu, %zu] in blocks of %zu%s: columns, "
                    "blocks and codebooks must match",
                    a->rows, a->columns, a->block, b->rows, b->columns, b->block,
                    same_values ? "" : ", with another codebook"),
               false;
    if (!a->offsets != !b->offsets || (a->offsets && a->offsets_dtype != b->offsets_dtype))
        return fail(BNB_UNSUPPORTED, "quantized_join: a and b do not have an offset a block of one dtype, or none"),
               false;
    size_t elements = a->rows * a->columns;
    if (elements % a->block || elements * first->bits % 8)
        return fail(BNB_UNSUPPORTED, "quantized_join: the %zu elements of a are no whole blocks of %zu and bytes",
                    elements, a->block),
               false;
    return true;
}

bnb_quantized *bnb_quantized_join(const bnb_quantized *a, const bnb_quantized *b) {
    if (!are_joinable(a, b)) return NULL;
    bnb_quantized *y = quantized_new(a->codes->device, a->code, a->rows + b->rows, a->columns, a->block, 0);
    if (!y) return NULL;
    if (copy_to(a->codes, y->codes, 0) == BNB_OK && copy_to(b->codes, y->codes, a->codes->bytes) == BNB_OK &&
        join_scales(a, b, y) == BNB_OK && join_offsets(a, b, y) == BNB_OK)
        return y;
    bnb_quantized_free(y);
    return NULL;
}
