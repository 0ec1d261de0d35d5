/* Matrices put one under the other, so that a product with several weights is one: copies, no arithmetic but that of
 * nested scales. */
#include <stdlib.h>
#include <string.h>

#include "../internal.h"

/* Copies a whole buffer to a place in another of its device, through the host where that can't address them. */
static bnb_status copy_to(const struct buffer *from, struct buffer *to, size_t offset) {
    void *staged = malloc(from->bytes);
    if (!staged) return fail(BNB_OUT_OF_MEMORY, "join: no memory for %zu bytes on the way; free something and try again", from->bytes);
    bnb_status status = buffer_read(from, staged, from->bytes);
    if (status == BNB_OK) status = buffer_write_at(to, offset, staged, from->bytes);
    free(staged);
    return status;
}

bnb_tensor *bnb_tensor_join(const bnb_tensor *a, const bnb_tensor *b) {
    if (!is_tensor(a, "tensor_join", "a") || !is_tensor(b, "tensor_join", "b") ||
        !on_device(b->buffer, a->buffer->device, "tensor_join", "b") ||
        !is_shape(a->rows + b->rows, a->columns, "tensor_join", "the result"))
        return NULL;
    if (a->dtype != b->dtype || a->columns != b->columns)
        return refuse(BNB_INVALID, "tensor_join: a is %s [%zu, %zu] and b is %s [%zu, %zu]: dtypes and columns must match",
                      dtype_name(a->dtype), a->rows, a->columns, dtype_name(b->dtype), b->rows, b->columns);
    bnb_tensor *y = tensor_new(a->buffer->device, a->dtype, a->rows + b->rows, a->columns);
    if (!y) return NULL;
    if (copy_to(a->buffer, y->buffer, 0) == BNB_OK && copy_to(b->buffer, y->buffer, a->buffer->bytes) == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}

/* The scales of q as floats, to a place in `to`. */
static bnb_status scales_to(const bnb_quantized *q, struct buffer *to, size_t offset) {
    if (!q->nested_code) return copy_to(q->absmax, to, offset);
    size_t   blocks = q->absmax->bytes;
    uint8_t *codes = malloc(blocks);
    float   *outer = malloc(q->nested_absmax->bytes), *scales = malloc(blocks * sizeof *scales);
    bnb_status status = BNB_OK;
    if (!codes || !outer || !scales) {
        status = fail(BNB_OUT_OF_MEMORY, "quantized_join: no memory for %zu scales; free something and try again", blocks);
    } else {
        status = buffer_read(q->absmax, codes, blocks);
        if (status == BNB_OK) status = buffer_read(q->nested_absmax, outer, q->nested_absmax->bytes);
        for (size_t i = 0; i < blocks && status == BNB_OK; i++)
            scales[i] = q->nested_code->book.values[codes[i]] * outer[i / q->nested_block] + q->offset;
        if (status == BNB_OK) status = buffer_write_at(to, offset, scales, blocks * sizeof *scales);
    }
    free(codes), free(outer), free(scales);
    return status;
}

static bool are_joinable(const bnb_quantized *a, const bnb_quantized *b) {
    if (!is_quantized(a, "quantized_join", "a") || !is_quantized(b, "quantized_join", "b") ||
        !on_device(b->codes, a->codes->device, "quantized_join", "b") ||
        !is_shape(a->rows + b->rows, a->columns, "quantized_join", "the result"))
        return false;
    const struct codebook *first = &a->code->book, *second = &b->code->book;
    bool same_values = first->size == second->size && !memcmp(first->values, second->values, first->size * sizeof *first->values);
    if (a->columns != b->columns || a->block != b->block || !same_values)
        return fail(BNB_INVALID, "quantized_join: a is [%zu, %zu] in blocks of %zu and b [%zu, %zu] in blocks of %zu%s: columns, blocks and codebooks must match",
                    a->rows, a->columns, a->block, b->rows, b->columns, b->block, same_values ? "" : ", with another codebook"), false;
    size_t elements = a->rows * a->columns;
    if (elements % a->block || elements * first->bits % 8)
        return fail(BNB_UNSUPPORTED, "quantized_join: the %zu elements of a are no whole blocks of %zu and bytes", elements, a->block), false;
    return true;
}

bnb_quantized *bnb_quantized_join(const bnb_quantized *a, const bnb_quantized *b) {
    if (!are_joinable(a, b)) return NULL;
    bnb_quantized *y = quantized_new(a->codes->device, a->code, a->rows + b->rows, a->columns, a->block, 0);
    if (!y) return NULL;
    size_t blocks = a->rows * a->columns / a->block;
    if (copy_to(a->codes, y->codes, 0) == BNB_OK && copy_to(b->codes, y->codes, a->codes->bytes) == BNB_OK &&
        scales_to(a, y->absmax, 0) == BNB_OK && scales_to(b, y->absmax, blocks * sizeof(float)) == BNB_OK)
        return y;
    bnb_quantized_free(y);
    return NULL;
}
