/* Tensors: making, filling, reading, viewing and freeing them. */
#include <string.h>

#include "internal.h"

/* ── Making ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Takes over one count of the buffer, also where it fails. */
static bnb_tensor *tensor_of(struct buffer *buffer, bnb_dtype dtype, size_t rows, size_t columns) {
    if (!buffer) return NULL;
    bnb_tensor *tensor = handle_new(TAG_TENSOR, sizeof *tensor);
    if (!tensor) {
        buffer_release(buffer);
        return refuse(BNB_OUT_OF_MEMORY, "no memory for a tensor's handle");
    }
    *tensor = (bnb_tensor){.tag = TAG_TENSOR, .dtype = dtype, .rows = rows, .columns = columns, .buffer = buffer};
    return tensor;
}

bnb_tensor *tensor_new(bnb_device *device, bnb_dtype dtype, size_t rows, size_t columns) {
    return tensor_of(buffer_new(device, rows * columns * dtype_size(dtype)), dtype, rows, columns);
}

/* The same for what the host fills. */
static bnb_tensor *tensor_for_host(bnb_device *device, bnb_dtype dtype, size_t rows, size_t columns) {
    return tensor_of(buffer_for_host(device, rows * columns * dtype_size(dtype)), dtype, rows, columns);
}

bnb_tensor *tensor_over(struct buffer *buffer, bnb_dtype dtype, size_t rows, size_t columns) {
    return tensor_of(buffer_share(buffer), dtype, rows, columns);
}

static bool is_new(bnb_device *device, bnb_dtype dtype, size_t rows, size_t columns, const char *function) {
    if (!is_device(device, function) || !is_shape(rows, columns, function, "shape")) return false;
    if (dtype_size(dtype)) return true;
    fail(BNB_INVALID, "%s: dtype is %d, expected 0 to %d", function, (int)dtype, BNB_I32);
    return false;
}

bnb_tensor *bnb_tensor_zeros(bnb_device *device, bnb_dtype dtype, size_t rows, size_t columns) {
    if (!is_new(device, dtype, rows, columns, "tensor_zeros")) return NULL;
    bnb_tensor *tensor = tensor_for_host(device, dtype, rows, columns);
    if (!tensor || buffer_clear(tensor->buffer) == BNB_OK) return tensor;
    bnb_tensor_free(tensor);
    return NULL;
}

static bool holds(const bnb_tensor *tensor, const void *data, size_t bytes, const char *function) {
    if (!data) return fail(BNB_INVALID, "%s: data is NULL", function), false;
    if (bytes == tensor->buffer->bytes) return true;
    fail(BNB_INVALID, "%s: data has %zu bytes, expected %zu for %s [%zu, %zu]", function, bytes, tensor->buffer->bytes,
         dtype_name(tensor->dtype), tensor->rows, tensor->columns);
    return false;
}

static bnb_status fill(const bnb_tensor *tensor, const void *data) {
    struct buffer *buffer = tensor->buffer;
    return tensor->dtype == BNB_I32 ? buffer_indices(buffer, data) : buffer_write(buffer, data, buffer->bytes);
}

bnb_tensor *bnb_tensor_from(bnb_device *device, bnb_dtype dtype, size_t rows, size_t columns, const void *data,
                            size_t bytes) {
    if (!is_new(device, dtype, rows, columns, "tensor_from")) return NULL;
    if (!data) return refuse(BNB_INVALID, "tensor_from: data is NULL");
    if (bytes != rows * columns * dtype_size(dtype))
        return refuse(BNB_INVALID, "tensor_from: data has %zu bytes, expected %zu for %s [%zu, %zu]", bytes,
                      rows * columns * dtype_size(dtype), dtype_name(dtype), rows, columns);
    bnb_tensor *tensor = tensor_for_host(device, dtype, rows, columns);
    if (!tensor || fill(tensor, data) == BNB_OK) return tensor;
    bnb_tensor_free(tensor);
    return NULL;
}

bnb_tensor *bnb_tensor_from_file(bnb_device *device, bnb_dtype dtype, size_t rows, size_t columns, int32_t descriptor,
                                 size_t offset, const char *path, int32_t mapped) {
    if (!is_new(device, dtype, rows, columns, "tensor_from_file")) return NULL;
    if (!path) return refuse(BNB_INVALID, "tensor_from_file: path is NULL, expected the file's, for messages");
    struct file_range range = {descriptor, offset, rows * columns * dtype_size(dtype), path};
    if (!file_has(&range, "tensor_from_file")) return NULL;
    return tensor_of(buffer_of_file(device, &range, dtype_size(dtype), mapped), dtype, rows, columns);
}

/* ── Using ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

bnb_status bnb_tensor_write(bnb_tensor *tensor, const void *data, size_t bytes) {
    if (!is_tensor(tensor, "tensor_write", "tensor") || !holds(tensor, data, bytes, "tensor_write")) return BNB_INVALID;
    return fill(tensor, data);
}

bnb_status bnb_tensor_read(const bnb_tensor *tensor, void *data, size_t bytes) {
    if (!is_tensor(tensor, "tensor_read", "tensor") || !holds(tensor, data, bytes, "tensor_read")) return BNB_INVALID;
    return buffer_read(tensor->buffer, data, bytes);
}

void *bnb_tensor_host(bnb_tensor *tensor) {
    return is_tensor(tensor, "tensor_host", "tensor") ? buffer_host(tensor->buffer) : NULL;
}

bnb_tensor *bnb_tensor_to(const bnb_tensor *tensor, bnb_device *device) {
    if (!is_tensor(tensor, "tensor_to", "tensor") || !is_device(device, "tensor_to")) return NULL;
    bnb_tensor *copy = tensor_for_host(device, tensor->dtype, tensor->rows, tensor->columns);
    if (!copy || buffer_copy(copy->buffer, tensor->buffer) == BNB_OK) return copy;
    bnb_tensor_free(copy);
    return NULL;
}

bnb_tensor *bnb_tensor_reshape(const bnb_tensor *tensor, size_t rows, size_t columns) {
    if (!is_tensor(tensor, "tensor_reshape", "tensor") || !is_shape(rows, columns, "tensor_reshape", "shape"))
        return NULL;
    if (rows * columns != tensor->rows * tensor->columns)
        return refuse(BNB_INVALID, "tensor_reshape: [%zu, %zu] does not have the %zu elements of [%zu, %zu]", rows,
                      columns, tensor->rows * tensor->columns, tensor->rows, tensor->columns);
    return tensor_over(tensor->buffer, tensor->dtype, rows, columns);
}

bnb_tensor *bnb_tensor_slice(const bnb_tensor *tensor, size_t first, size_t rows) {
    if (!is_tensor(tensor, "tensor_slice", "tensor")) return NULL;
    if (!rows || first >= tensor->rows || rows > tensor->rows - first)
        return refuse(BNB_INVALID, "tensor_slice: rows is %zu from %zu on, expected some of the %zu that there are",
                      rows, first, tensor->rows);
    size_t         row_bytes = tensor->columns * dtype_size(tensor->dtype), offset = first * row_bytes;
    struct buffer *part = buffer_part(tensor->buffer, offset, rows * row_bytes);
    if (!part) return NULL;
    if (offset % LOAD_BYTES == 0) /* as all memory begins at a multiple of it */
        return tensor_of(part, tensor->dtype, rows, tensor->columns);
    bnb_tensor *copy = tensor_for_host(part->device, tensor->dtype, rows, tensor->columns);
    if (copy && buffer_copy(copy->buffer, part) != BNB_OK) bnb_tensor_free(copy), copy = NULL;
    buffer_release(part);
    return copy;
}

static const struct buffer *base_of(const struct buffer *buffer) { return buffer->whole ? buffer->whole : buffer; }

bnb_status bnb_tensor_put(bnb_tensor *tensor, size_t first, const bnb_tensor *from) {
    if (!is_tensor(tensor, "tensor_put", "tensor") || !is_tensor(from, "tensor_put", "from") ||
        !on_device(from->buffer, tensor->buffer->device, "tensor_put", "from"))
        return BNB_INVALID;
    if (from->dtype != tensor->dtype || from->columns != tensor->columns || first > tensor->rows ||
        from->rows > tensor->rows - first)
        return fail(BNB_INVALID, "tensor_put: from is %s [%zu, %zu], expected %s with %zu columns and at most %zu rows",
                    dtype_name(from->dtype), from->rows, from->columns, dtype_name(tensor->dtype), tensor->columns,
                    first > tensor->rows ? 0 : tensor->rows - first);
    if (base_of(from->buffer) == base_of(tensor->buffer))
        return fail(BNB_INVALID, "tensor_put: from shares its memory with what is written: copy it first");
    struct buffer *part =
        buffer_part(tensor->buffer, first * tensor->columns * dtype_size(tensor->dtype), from->buffer->bytes);
    if (!part) return BNB_OUT_OF_MEMORY;
    bnb_status status = buffer_copy(part, from->buffer);
    buffer_release(part);
    return status;
}

bnb_dtype bnb_tensor_dtype(const bnb_tensor *tensor) {
    return is_tensor(tensor, "tensor_dtype", "tensor") ? tensor->dtype : BNB_F32;
}

size_t bnb_tensor_rows(const bnb_tensor *tensor) {
    return is_tensor(tensor, "tensor_rows", "tensor") ? tensor->rows : 0;
}

size_t bnb_tensor_columns(const bnb_tensor *tensor) {
    return is_tensor(tensor, "tensor_columns", "tensor") ? tensor->columns : 0;
}

void bnb_tensor_free(bnb_tensor *tensor) {
    if (!tensor || !is_tensor(tensor, "tensor_free", "tensor") || !handle_claim(tensor)) return;
    buffer_release(tensor->buffer);
    handle_free(tensor);
}
