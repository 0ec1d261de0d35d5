/* Rows of a dense or a quantised table by their indices, and the gradient of that: the checks, the launches and the
 * plain loops. */
#include <stdlib.h>
#include <string.h>

#include "launch.h"
#include "record.h"

/* ── The plain loops ────────────────────────────────────────────────────────────────────────────────────────────── */

static void embedding_plain(const void *argument, size_t first, size_t last) {
    const struct embedding_job *job = argument;
    size_t                      columns = weight_columns(&job->w);
    for (size_t i = first; i < last; i++)
        for (size_t c = 0; c < columns; c++)
            put_element(job->y, job->dtype, i * columns + c, weight_of(&job->w, (size_t)job->indices[i] * columns + c));
}

/* dw[row] = the sum of dy[order[i]], starts[row] <= i < starts[row + 1]: in fp32, in the order of the indices. */
struct embedding_backward_job {
    struct dense    dy;
    const uint32_t *order, *starts;
    size_t          rows;
    void           *dw;
    bnb_dtype       dtype;
};

static void embedding_backward_plain(const void *argument, size_t first, size_t last) {
    const struct embedding_backward_job *job = argument;
    size_t                               columns = job->dy.columns;
    for (size_t row = first; row < last; row++) {
        for (size_t c = 0; c < columns; c++) {
            float sum = 0;
            for (size_t i = job->starts[row]; i < job->starts[row + 1]; i++)
                sum += element_of(&job->dy, job->order[i] * columns + c);
            put_element(job->dw, job->dtype, row * columns + c, sum);
        }
    }
}

/* ── Indices ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bnb_status no_memory(size_t count) {
    return fail(BNB_OUT_OF_MEMORY, "embedding: no memory for %zu indices; free something and try again", count);
}

/* Whether each of the indices [.., columns] is a row of the table. */
static bnb_status check_indices(const int32_t *indices, size_t count, size_t columns, size_t rows) {
    for (size_t i = 0; i < count; i++)
        if (indices[i] < 0 || (size_t)indices[i] >= rows)
            return fail(BNB_INVALID, "embedding: indices[%zu, %zu] is %d, expected 0 to %zu, a row of w", i / columns,
                        i % columns, indices[i], rows - 1);
    return BNB_OK;
}

/* A copy of the indices, each of which is a row of the table; NULL and an error. */
static int32_t *read_indices(const bnb_tensor *indices, size_t rows) {
    size_t   count = indices->rows * indices->columns;
    int32_t *copy = malloc(count * sizeof *copy);
    if (!copy) return no_memory(count), NULL;
    bnb_status status = buffer_read(indices->buffer, copy, count * sizeof *copy);
    if (status == BNB_OK) status = check_indices(copy, count, indices->columns, rows);
    if (status == BNB_OK) return copy;
    free(copy);
    return NULL;
}

static bool are_indices(const bnb_tensor *indices) {
    if (!is_tensor(indices, "embedding", "indices")) return false;
    if (indices->dtype == BNB_I32) return true;
    fail(BNB_INVALID, "embedding: indices is %s, expected int32", dtype_name(indices->dtype));
    return false;
}

/* ── Forward ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Kernels look at no index that is no row, and give NaNs for it. */
struct request {
    const bnb_tensor *indices;
    struct operand    w;
    bnb_tensor       *y;
    bool              checked; /* each index is known to be a row */
};

static bnb_status launch(const void *request) {
    const struct request *r = request;
    struct operand        w = r->w;
    const bnb_tensor     *y = r->y;
    size_t                columns = y->columns;
    if (columns > UINT32_MAX) return fail(BNB_UNSUPPORTED, "a row of 2^32 elements or more");
    size_t                pieces = y->rows * ceil_div(columns, 8);
    struct embedding_args args = {
        .rows_low = (uint32_t)y->rows,
        .rows_high = (uint32_t)(y->rows >> 32),
        .columns = (uint32_t)columns,
        .table_rows = operand_rows(w) > 1u << 31 ? 1u << 31 : (uint32_t)operand_rows(w),
    };
    struct launch launch = {
        .family = "embedding",
        .kernel = "embedding",
        .constants = {operand_store(w), operand_scales(w), columns % 8 == 0, y->dtype, operand_offsets(w)},
        .constant_count = 5,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {reads(r->indices->buffer), [6] = writes(y->buffer)},
        .binding_count = 10,
        .groups = {groups_for(pieces, EMBEDDING_THREADS), 1, 1},
        .threads = EMBEDDING_THREADS,
        .bytes_moved = 2 * y->buffer->bytes,
    };
    bnb_status status = bind_operand(w, launch.bindings + 1, launch.bindings + 7, &args.scales);
    if (status) return status;
    if (w.coded) launch.constants[2] = whole_of(w.coded, &args.scales);
    return enqueue(y->buffer->device, &launch);
}

/* Of indices that are yet to be checked, [rows, index_columns] of them. */
struct look_up_job {
    struct embedding_job embedding;
    size_t               index_columns;
};

static bnb_status look_up(const void *argument) {
    struct look_up_job    unchecked = *(const struct look_up_job *)argument;
    struct embedding_job *job = &unchecked.embedding;
    size_t                rows = weight_rows(&job->w), columns = weight_columns(&job->w);
    int32_t              *copy = malloc(job->count * sizeof *copy); /* another thread may be writing to the tensor */
    if (!copy) return no_memory(job->count);
    memcpy(copy, job->indices, job->count * sizeof *copy);
    bnb_status status = check_indices(copy, job->count, unchecked.index_columns, rows);
    job->indices = copy;
    if (status == BNB_OK)
        parallel_for(job->count, ceil_div(1 << 15, columns),
                     cpu_forms()->embedding ? cpu_forms()->embedding : embedding_plain, job);
    free(copy);
    return status;
}

/* Who asks is told of an index that is no row: where one may be, in the call. */
static bnb_status embedding_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct look_up_job    job = {
        .embedding =
            {
                .indices = host_reads(host, r->indices->buffer),
                .count = r->y->rows,
                .y = host_writes(host, r->y->buffer),
                .dtype = r->y->dtype,
            },
        .index_columns = r->indices->columns,
    };
    host->waits = !r->checked;
    host->work = 2.0 * (double)r->y->buffer->bytes;
    if (r->w.dense)
        job.embedding.w.dense = dense_of(host, r->w.dense);
    else
        job.embedding.w.coded = coded_of(host, r->w.coded);
    return perform(host, look_up, &job, sizeof job);
}

static bnb_tensor *embedding(const bnb_tensor *indices, struct operand w, bnb_dtype dtype) {
    size_t      rows = operand_rows(w), columns = operand_columns(w);
    size_t      count = indices->rows * indices->columns;
    bnb_device *device = operand_buffer(w)->device;
    if (!on_device(indices->buffer, device, "embedding", "indices") ||
        !is_shape(count, columns, "embedding", "the result"))
        return NULL;
    bool checked = buffer_is_below(indices->buffer, rows);
    if (device->driver && !checked && !is_recording(device)) {
        int32_t *copy = read_indices(indices, rows);
        if (!copy) return NULL;
        free(copy);
    }
    bnb_tensor *y = tensor_new(device, dtype, count, columns);
    if (!y) return NULL;
    count_operation(device);
    struct request request = {indices, w, y, checked};
    if (run(&(struct operation){"embedding", device, launch, embedding_on_host, &request}) == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}

bnb_tensor *bnb_embedding(const bnb_tensor *indices, const bnb_tensor *w, bnb_dtype dtype) {
    if (!are_indices(indices) || !is_tensor(w, "embedding", "w") || !is_float(w->dtype, "embedding", "w") ||
        !is_float(dtype, "embedding", "dtype"))
        return NULL;
    return embedding(indices, (struct operand){.dense = w}, dtype);
}

bnb_tensor *bnb_embedding_quantized(const bnb_tensor *indices, const bnb_quantized *w, bnb_dtype dtype) {
    if (!are_indices(indices) || !is_quantized(w, "embedding", "w") || !is_float(dtype, "embedding", "dtype"))
        return NULL;
    return embedding(indices, (struct operand){.coded = w}, dtype);
}

/* ── Backward ───────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Sorts positions by their index, so that a row's sum has one order on every device. `sorted` has room for the starts
 * of `rows` rows, one more, and an element for each index. */
static void sort_indices(const int32_t *indices, size_t count, size_t rows, int32_t padding, uint32_t *sorted) {
    uint32_t *starts = sorted, *order = sorted + rows + 1;
    memset(starts, 0, (rows + 1) * sizeof *starts);
    for (size_t i = 0; i < count; i++)
        if (indices[i] != padding) starts[indices[i]]++;
    uint32_t total = 0; /* starts[row] becomes where the row ends, and the last loop fills it from there back */
    for (size_t row = 0; row <= rows; row++) starts[row] = total += starts[row];
    for (size_t i = count; i-- > 0;)
        if (indices[i] != padding) order[--starts[indices[i]]] = (uint32_t)i;
}

struct backward_request {
    const bnb_tensor    *dy;
    const struct buffer *sorted;
    bnb_tensor          *dw;
};

static bnb_status launch_backward(const void *request) {
    const struct backward_request *r = request;
    const bnb_tensor              *dy = r->dy, *dw = r->dw;
    const struct buffer           *sorted = r->sorted;
    size_t                         rows = dw->rows, columns = dw->columns;
    if (columns > UINT32_MAX) return fail(BNB_UNSUPPORTED, "a row of 2^32 elements or more");
    struct embedding_args args = {
        .rows_low = (uint32_t)rows,
        .rows_high = (uint32_t)(rows >> 32),
        .columns = (uint32_t)columns,
    };
    return enqueue(dw->buffer->device, &(struct launch){
                                           .family = "embedding",
                                           .kernel = "embedding_backward",
                                           .constants = {dy->dtype, 0, columns % 8 == 0, dw->dtype},
                                           .constant_count = 4,
                                           .args = &args,
                                           .args_bytes = sizeof args,
                                           .bindings = {reads(dy->buffer),
                                                        reads(sorted),
                                                        {sorted->memory, (rows + 1) * sizeof(uint32_t), READS, sorted},
                                                        writes(dw->buffer)},
                                           .binding_count = 4,
                                           .groups = {groups_for(rows * ceil_div(columns, 8), EMBEDDING_THREADS), 1, 1},
                                           .threads = EMBEDDING_THREADS,
                                           .bytes_moved = dy->buffer->bytes + dw->buffer->bytes,
                                       });
}

static bnb_status add_up(const void *argument) {
    struct embedding_backward_job job = *(const struct embedding_backward_job *)argument;
    job.order = job.starts + job.rows + 1;
    parallel_for(job.rows, ceil_div(1 << 15, job.dy.columns), embedding_backward_plain, &job);
    return BNB_OK;
}

static bnb_status backward_on_host(const void *request, struct host *host) {
    const struct backward_request *r = request;
    struct embedding_backward_job  job = {
        .dy = dense_of(host, r->dy),
        .starts = host_reads(host, r->sorted),
        .rows = r->dw->rows,
        .dw = host_writes(host, r->dw->buffer),
        .dtype = r->dw->dtype,
    };
    return perform(host, add_up, &job, sizeof job);
}

static bnb_status run_backward(const bnb_tensor *dy, const uint32_t *sorted, size_t words, bnb_tensor *dw) {
    bnb_device    *device = dw->buffer->device;
    struct buffer *uploaded = buffer_new(device, words * sizeof *sorted);
    if (!uploaded) return BNB_OUT_OF_MEMORY;
    bnb_status              status = buffer_write(uploaded, sorted, words * sizeof *sorted);
    struct backward_request request = {dy, uploaded, dw};
    if (status == BNB_OK)
        status = run(&(struct operation){"embedding_backward", device, launch_backward, backward_on_host, &request});
    buffer_release(uploaded); /* the driver keeps it until the work is done */
    return status;
}

bnb_tensor *bnb_embedding_backward(const bnb_tensor *dy, const bnb_tensor *indices, size_t rows, int32_t padding,
                                   bnb_dtype dtype) {
    if (!is_tensor(dy, "embedding_backward", "dy") || !is_float(dy->dtype, "embedding_backward", "dy") ||
        !are_indices(indices) || !is_float(dtype, "embedding_backward", "dtype") ||
        !is_shape(rows, dy->columns, "embedding_backward", "the gradient"))
        return NULL;
    size_t      count = indices->rows * indices->columns, words = rows + 1 + count;
    bnb_device *device = dy->buffer->device;
    if (!on_device(indices->buffer, device, "embedding_backward", "indices")) return NULL;
    if (dy->rows != count)
        return refuse(BNB_INVALID,
                      "embedding_backward: dy is [%zu, %zu] and there are %zu indices: dy needs a row for each",
                      dy->rows, dy->columns, count);
    if (count > UINT32_MAX)
        return refuse(BNB_UNSUPPORTED, "embedding_backward: %zu indices, expected less than 2^32 at once", count);
    if (padding < -1 || (padding >= 0 && (size_t)padding >= rows))
        return refuse(BNB_INVALID, "embedding_backward: padding is %d, expected -1 or a row of w, 0 to %zu", padding,
                      rows - 1);

    if (not_recording(device, "embedding_backward")) return NULL;
    int32_t *copy = read_indices(indices, rows);
    if (!copy) return NULL;
    uint32_t *sorted = malloc(words * sizeof *sorted);
    if (sorted)
        sort_indices(copy, count, rows, padding, sorted);
    else
        fail(BNB_OUT_OF_MEMORY, "embedding_backward: no memory for %zu indices; free something and try again", count);
    free(copy);
    bnb_tensor *dw = sorted ? tensor_new(device, dtype, rows, dy->columns) : NULL;
    count_operation(device);
    bnb_status status = dw ? run_backward(dy, sorted, words, dw) : BNB_OUT_OF_MEMORY;
    free(sorted);
    if (status == BNB_OK) return dw;
    bnb_tensor_free(dw);
    return NULL;
}
