/* Quantised matrices as handles: put together, taken apart, asked and freed. What fills one is in ops/quantize.c. */
#include <math.h>

#include "internal.h"

/* By eights, because elements × bits could overflow. */
size_t code_bytes(uint32_t bits, size_t elements) { return elements / 8 * bits + ceil_div(elements % 8 * bits, 8); }

/* ── Making ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

bnb_quantized *quantized_new(bnb_device *device, bnb_codebook *code, size_t rows, size_t columns, size_t block,
                             size_t nested_block) {
    bnb_quantized *q = handle_new(TAG_QUANTIZED, sizeof *q);
    if (!q) return refuse(BNB_OUT_OF_MEMORY, "no memory for a quantised matrix's handle");
    *q = (bnb_quantized){.tag = TAG_QUANTIZED,
                         .rows = rows,
                         .columns = columns,
                         .block = block,
                         .nested_block = nested_block};
    q->absmax_dtype = nested_block ? BNB_U8 : BNB_F32;
    q->code = codebook_share(code);

    size_t blocks = ceil_div(rows * columns, block);
    q->codes = buffer_new(device, code_bytes(code->book.bits, rows * columns));
    q->absmax = q->codes ? buffer_new(device, nested_block ? blocks : blocks * sizeof(float)) : NULL;
    bool made = q->absmax;
    if (made && nested_block) {
        bnb_codebook *dynamic = codebook_dynamic_signed();
        q->nested_code = dynamic ? codebook_share(dynamic) : NULL;
        q->nested_absmax = dynamic ? buffer_new(device, ceil_div(blocks, nested_block) * sizeof(float)) : NULL;
        q->nested_offset = q->nested_absmax ? buffer_new(device, sizeof(float)) : NULL;
        made = q->nested_offset;
    }
    if (made) return q;
    bnb_quantized_free(q);
    return NULL;
}

float quantized_offset(const bnb_quantized *q) {
    float offset = 0; /* also where finding it has failed: so have the scales */
    if (q->nested_offset) buffer_read(q->nested_offset, &offset, sizeof offset);
    return offset;
}

void bnb_quantized_free(bnb_quantized *q) {
    if (!q || !is_quantized(q, "quantized_free", "quantized") || !handle_claim(q)) return;
    buffer_release(q->codes);
    buffer_release(q->absmax);
    buffer_release(q->nested_absmax);
    buffer_release(q->nested_offset);
    buffer_release(q->nested_offsets);
    buffer_release(q->offsets);
    buffer_release(q->offsets_absmax);
    bnb_codebook_free(q->code);
    bnb_codebook_free(q->nested_code);
    handle_free(q);
}

/* Bytes may be signed. */
static bool is_part(const bnb_tensor *part, bnb_dtype dtype, size_t elements, const bnb_device *device,
                    const char *argument) {
    if (!is_tensor(part, "quantized_from", argument) || !on_device(part->buffer, device, "quantized_from", argument))
        return false;
    bool same_width = part->dtype == dtype || (dtype == BNB_U8 && part->dtype == BNB_I8);
    if (same_width && part->rows * part->columns == elements) return true;
    fail(BNB_INVALID, "quantized_from: %s is %s [%zu, %zu], expected %s with %zu elements", argument,
         dtype_name(part->dtype), part->rows, part->columns, dtype_name(dtype), elements);
    return false;
}

/* Scales and offsets of blocks, as the caller gives them; members of `nested` are 0 and NULL where scales are plain. */
struct block_parts {
    const bnb_tensor *absmax, *offsets; /* offsets, and all below but nested.absmax, may be NULL */
    struct {
        const bnb_codebook *code;
        size_t              block;
        const bnb_tensor   *absmax;
        float               offset;
        const bnb_tensor   *offsets, *offsets_absmax;
    } nested;
};

static bool is_float_part(const bnb_tensor *part, size_t elements, const bnb_device *device, const char *argument) {
    return is_tensor(part, "quantized_from", argument) && is_float(part->dtype, "quantized_from", argument) &&
           is_part(part, part->dtype, elements, device, argument);
}

static bool are_plain(const struct block_parts *parts, size_t blocks, const bnb_device *device) {
    const char *extra = parts->nested.absmax           ? "nested_absmax"
                        : parts->nested.offsets        ? "nested_offsets"
                        : parts->nested.offsets_absmax ? "offsets_absmax"
                                                       : NULL;
    return is_float_part(parts->absmax, blocks, device, "absmax") &&
           (!parts->offsets || is_float_part(parts->offsets, blocks, device, "offsets")) &&
           (!extra ||
            (fail(BNB_INVALID, "quantized_from: %s is given without nested_code: scales are plain", extra), false));
}

/* Offsets of blocks whose scales are quantised. */
static bool are_offsets(const struct block_parts *parts, size_t blocks, size_t groups, const bnb_device *device) {
    const bnb_tensor *offsets = parts->offsets, *absmax = parts->nested.offsets_absmax;
    if (!offsets && absmax) return fail(BNB_INVALID, "quantized_from: offsets_absmax is given without offsets"), false;
    if (!offsets) return true;
    if (!absmax) return is_float_part(offsets, blocks, device, "offsets");
    return is_part(offsets, BNB_U8, code_bytes(parts->nested.code->book.bits, blocks), device, "offsets") &&
           is_part(absmax, parts->nested.absmax->dtype, groups, device, "offsets_absmax");
}

static bool are_nested(const struct block_parts *parts, size_t blocks, const bnb_device *device) {
    if (!is_codebook(parts->nested.code, "quantized_from", "nested_code")) return false;
    if (!parts->nested.block)
        return fail(BNB_INVALID, "quantized_from: nested_blocksize is 0, expected a positive number"), false;
    if (!isfinite(parts->nested.offset))
        return fail(BNB_INVALID, "quantized_from: offset is %g, expected a finite number", parts->nested.offset), false;
    size_t groups = ceil_div(blocks, parts->nested.block);
    return is_part(parts->absmax, BNB_U8, code_bytes(parts->nested.code->book.bits, blocks), device, "absmax") &&
           is_float_part(parts->nested.absmax, groups, device, "nested_absmax") &&
           (!parts->nested.offsets || is_part(parts->nested.offsets, BNB_F32, groups, device, "nested_offsets")) &&
           are_offsets(parts, blocks, groups, device);
}

/* Memory that holds one float; NULL and an error. */
static struct buffer *float_in_memory(bnb_device *device, float value) {
    struct buffer *buffer = buffer_for_host(device, sizeof value);
    if (!buffer || buffer_write(buffer, &value, sizeof value) == BNB_OK) return buffer;
    buffer_release(buffer);
    return NULL;
}

/* Shares the memory of parts that fit. */
static bnb_status share_parts(bnb_quantized *q, const struct block_parts *parts) {
    q->absmax = buffer_share(parts->absmax->buffer);
    q->absmax_dtype = parts->absmax->dtype;
    if (parts->offsets) q->offsets = buffer_share(parts->offsets->buffer), q->offsets_dtype = parts->offsets->dtype;
    if (!parts->nested.code) return BNB_OK;
    q->absmax_dtype = BNB_U8; /* signed bytes are as good */
    q->nested_code = codebook_share((bnb_codebook *)parts->nested.code);
    q->nested_absmax = buffer_share(parts->nested.absmax->buffer);
    q->nested_dtype = parts->nested.absmax->dtype;
    q->nested_block = parts->nested.block;
    if (parts->nested.offsets_absmax)
        q->offsets_absmax = buffer_share(parts->nested.offsets_absmax->buffer), q->offsets_dtype = BNB_U8;
    if (parts->nested.offsets)
        q->nested_offsets = buffer_share(parts->nested.offsets->buffer);
    else if (!(q->nested_offset = float_in_memory(q->codes->device, parts->nested.offset)))
        return bnb_last_status();
    return BNB_OK;
}

bnb_quantized *bnb_quantized_from(const bnb_tensor *codes, size_t rows, size_t columns, const bnb_codebook *code,
                                  size_t block, const bnb_tensor *absmax, const bnb_tensor *offsets,
                                  const bnb_codebook *nested_code, size_t nested_block, const bnb_tensor *nested_absmax,
                                  float offset, const bnb_tensor *nested_offsets, const bnb_tensor *offsets_absmax) {
    struct block_parts parts = {absmax,
                                offsets,
                                {nested_code, nested_block, nested_absmax, offset, nested_offsets, offsets_absmax}};
    if (!is_shape(rows, columns, "quantized_from", "shape") || !is_codebook(code, "quantized_from", "code") ||
        !is_block(code, block, "quantized_from") || !is_tensor(codes, "quantized_from", "codes"))
        return NULL;
    const bnb_device *device = codes->buffer->device;
    size_t            blocks = ceil_div(rows * columns, block);
    if (!is_part(codes, BNB_U8, code_bytes(code->book.bits, rows * columns), device, "codes") ||
        !(nested_code ? are_nested(&parts, blocks, device) : are_plain(&parts, blocks, device)))
        return NULL;

    bnb_quantized *q = handle_new(TAG_QUANTIZED, sizeof *q);
    if (!q) return refuse(BNB_OUT_OF_MEMORY, "no memory for a quantised matrix's handle");
    *q = (bnb_quantized){.tag = TAG_QUANTIZED, .rows = rows, .columns = columns, .block = block};
    q->code = codebook_share((bnb_codebook *)code);
    q->codes = buffer_share(codes->buffer);
    if (share_parts(q, &parts) == BNB_OK) return q;
    bnb_quantized_free(q);
    return NULL;
}

/* ── Asking ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bnb_tensor *values_of(const bnb_codebook *code, bnb_device *device) {
    return bnb_tensor_from(device, BNB_F32, 1, code->book.size, code->book.values, code->book.size * sizeof(float));
}

static bnb_tensor *nested_part(const bnb_quantized *q, bnb_part part, size_t blocks) {
    if (!q->nested_code) return refuse(BNB_INVALID, "quantized_part: the scales are plain, so there is no nested part");
    size_t groups = ceil_div(blocks, q->nested_block);
    if (part == BNB_PART_NESTED_CODE) return values_of(q->nested_code, q->codes->device);
    if (part == BNB_PART_NESTED_ABSMAX) return tensor_over(q->nested_absmax, q->nested_dtype, 1, groups);
    if (part == BNB_PART_NESTED_OFFSETS) {
        if (q->nested_offsets) return tensor_over(q->nested_offsets, BNB_F32, 1, groups);
        return refuse(BNB_INVALID, "quantized_part: one offset serves all nested blocks: ask for that");
    }
    if (q->offsets_absmax) return tensor_over(q->offsets_absmax, q->nested_dtype, 1, groups);
    return refuse(BNB_INVALID, "quantized_part: the blocks have no offsets, or plain ones");
}

/* Scales or offsets of blocks: floats, or codes. */
static bnb_tensor *block_part(const bnb_quantized *q, struct buffer *buffer, bnb_dtype dtype, size_t blocks) {
    return tensor_over(buffer, dtype, 1, dtype == BNB_U8 ? code_bytes(q->nested_code->book.bits, blocks) : blocks);
}

bnb_tensor *bnb_quantized_part(const bnb_quantized *q, bnb_part part) {
    if (!is_quantized(q, "quantized_part", "quantized")) return NULL;
    size_t blocks = ceil_div(q->rows * q->columns, q->block);
    switch (part) {
    case BNB_PART_CODES: return tensor_over(q->codes, BNB_U8, 1, code_bytes(q->code->book.bits, q->rows * q->columns));
    case BNB_PART_ABSMAX: return block_part(q, q->absmax, q->absmax_dtype, blocks);
    case BNB_PART_CODE: return values_of(q->code, q->codes->device);
    case BNB_PART_NESTED_ABSMAX:
    case BNB_PART_NESTED_CODE:
    case BNB_PART_NESTED_OFFSETS:
    case BNB_PART_OFFSETS_ABSMAX: return nested_part(q, part, blocks);
    case BNB_PART_OFFSETS:
        if (!q->offsets) return refuse(BNB_INVALID, "quantized_part: the blocks have no offsets");
        return block_part(q, q->offsets, q->offsets_dtype, blocks);
    }
    return refuse(BNB_INVALID, "quantized_part: part is %d, expected 0 to %d", (int)part, BNB_PART_OFFSETS_ABSMAX);
}

size_t bnb_quantized_rows(const bnb_quantized *q) {
    return is_quantized(q, "quantized_rows", "quantized") ? q->rows : 0;
}
size_t bnb_quantized_columns(const bnb_quantized *q) {
    return is_quantized(q, "quantized_columns", "quantized") ? q->columns : 0;
}
size_t bnb_quantized_block(const bnb_quantized *q) {
    return is_quantized(q, "quantized_block", "quantized") ? q->block : 0;
}
size_t bnb_quantized_nested_block(const bnb_quantized *q) {
    return is_quantized(q, "quantized_nested_block", "quantized") ? q->nested_block : 0;
}
float bnb_quantized_offset(const bnb_quantized *q) {
    return is_quantized(q, "quantized_offset", "quantized") ? quantized_offset(q) : 0;
}

/* ── The collector ──────────────────────────────────────────────────────────────────────────────────────────────── */

static void deallocate(void *, void *handle) {
    if (!handle) return;
    switch (*(enum tag *)handle) {
    case TAG_TENSOR: bnb_tensor_free(handle); break;
    case TAG_CODEBOOK: bnb_codebook_free(handle); break;
    case TAG_QUANTIZED: bnb_quantized_free(handle); break;
    case TAG_RECORDING: bnb_recording_free(handle); break;
    case TAG_CACHE: bnb_cache_free(handle); break;
    case TAG_DEVICE: break;
    }
}

void *bnb_deallocator(void) { return (void *)deallocate; }
