/* Rows of a dense or a quantised table by their indices, and the gradient of that: the checks, the launches and the
 * plain loops. */
#include <stdlib.h>
#include <string.h>

#include "launch.h"
#include "record.h"
#include "sort.h"

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
    const int32_t  *indices; /* of which the sort makes: */
    const uint32_t *order, *starts;
    size_t          index_columns;
    int32_t         padding;
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

/* A copy of indices that may be anything, and that another thread may be writing: each of the copy's is a row of the
 * table. NULL and an error. */
static int32_t *checked_copy(const int32_t *indices, size_t count, size_t columns, size_t rows) {
    int32_t *copy = malloc(count * sizeof *copy);
    if (!copy) return no_memory(count), NULL;
    memcpy(copy, indices, count * sizeof *copy);
    if (check_indices(copy, count, columns, rows) == BNB_OK) return copy;
    free(copy);
    return NULL;
}

/* Whether each index is a row of the table, as far as that is to be found out before the operation runs: a GPU's are
 * read where nothing is known of them, unless it is recorded. The CPU's form looks for itself. */
static bnb_status look_at_indices(const bnb_tensor *indices, size_t rows) {
    const bnb_device *device = indices->buffer->device;
    if (!device->driver || is_recording(device) || buffer_is_below(indices->buffer, rows)) return BNB_OK;
    size_t   count = indices->rows * indices->columns;
    int32_t *copy = malloc(count * sizeof *copy);
    if (!copy) return no_memory(count);
    bnb_status status = buffer_read(indices->buffer, copy, count * sizeof *copy);
    if (status == BNB_OK) status = check_indices(copy, count, indices->columns, rows);
    free(copy);
    return status;
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
    int32_t              *copy = checked_copy(job->indices, job->count, unchecked.index_columns, rows);
    if (!copy) return bnb_last_status();
    job->indices = copy;
    parallel_for(job->count, ceil_div(1 << 15, columns),
                 cpu_forms()->embedding ? cpu_forms()->embedding : embedding_plain, job);
    free(copy);
    return BNB_OK;
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
    host->waits = !buffer_is_below(r->indices->buffer, operand_rows(r->w));
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
    if (look_at_indices(indices, rows)) return NULL;
    bnb_tensor *y = tensor_new(device, dtype, count, columns);
    if (!y) return NULL;
    count_operation(device);
    struct request request = {indices, w, y};
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

struct backward_request {
    const bnb_tensor *dy, *indices;
    int32_t           padding;
    bnb_tensor       *dw;
};

static bnb_status launch_sums(const struct backward_request *r, const struct sorted *sorted) {
    const bnb_tensor     *dy = r->dy, *dw = r->dw;
    size_t                rows = dw->rows, columns = dw->columns;
    struct embedding_args args = {
        .rows_low = (uint32_t)rows,
        .rows_high = (uint32_t)(rows >> 32),
        .columns = (uint32_t)columns,
    };
    return enqueue(dw->buffer->device,
                   &(struct launch){
                       .family = "embedding",
                       .kernel = "embedding_backward",
                       .constants = {dy->dtype, 0, columns % 8 == 0, dw->dtype},
                       .constant_count = 4,
                       .args = &args,
                       .args_bytes = sizeof args,
                       .bindings = {reads(dy->buffer), reads(sorted->starts), reads(sorted->pairs), writes(dw->buffer)},
                       .binding_count = 4,
                       .groups = {groups_for(rows * ceil_div(columns, 8), EMBEDDING_THREADS), 1, 1},
                       .threads = EMBEDDING_THREADS,
                       .bytes_moved = dy->buffer->bytes + dw->buffer->bytes,
                   });
}

/* Indices that are no row are left out, as the padding is. */
static bnb_status launch_backward(const void *request) {
    const struct backward_request *r = request;
    if (r->dw->columns > UINT32_MAX) return fail(BNB_UNSUPPORTED, "a row of 2^32 elements or more");
    struct sorted sorted;
    struct sort   sort = {r->indices->buffer, r->dy->rows, r->dw->rows, r->padding};
    bnb_status    status = launch_sort(&sort, &sorted);
    if (status) return status;
    status = launch_sums(r, &sorted);
    sorted_release(&sorted);
    return status;
}

static bnb_status add_up(const void *argument) {
    struct embedding_backward_job job = *(const struct embedding_backward_job *)argument;
    size_t                        count = job.dy.rows;
    int32_t                      *copy = checked_copy(job.indices, count, job.index_columns, job.rows);
    if (!copy) return bnb_last_status();
    uint32_t *sorted = sort_indices(copy, count, job.rows, job.padding);
    free(copy);
    if (!sorted) return no_memory(count);
    job.starts = sorted, job.order = sorted + job.rows + 1;
    parallel_for(job.rows, ceil_div(1 << 15, job.dy.columns), embedding_backward_plain, &job);
    free(sorted);
    return BNB_OK;
}

static bnb_status backward_on_host(const void *request, struct host *host) {
    const struct backward_request *r = request;
    struct embedding_backward_job  job = {
        .dy = dense_of(host, r->dy),
        .indices = host_reads(host, r->indices->buffer),
        .index_columns = r->indices->columns,
        .padding = r->padding,
        .rows = r->dw->rows,
        .dw = host_writes(host, r->dw->buffer),
        .dtype = r->dw->dtype,
    };
    host->waits = !buffer_is_below(r->indices->buffer, job.rows);
    return perform(host, add_up, &job, sizeof job);
}

bnb_tensor *bnb_embedding_backward(const bnb_tensor *dy, const bnb_tensor *indices, size_t rows, int32_t padding,
                                   bnb_dtype dtype) {
    if (!is_tensor(dy, "embedding_backward", "dy") || !is_float(dy->dtype, "embedding_backward", "dy") ||
        !are_indices(indices) || !is_float(dtype, "embedding_backward", "dtype") ||
        !is_shape(rows, dy->columns, "embedding_backward", "the gradient"))
        return NULL;
    size_t      count = indices->rows * indices->columns;
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
    if (look_at_indices(indices, rows)) return NULL;
    bnb_tensor *dw = tensor_new(device, dtype, rows, dy->columns);
    if (!dw) return NULL;
    count_operation(device);
    struct backward_request request = {dy, indices, padding, dw};
    if (run(&(struct operation){"embedding_backward", device, launch_backward, backward_on_host, &request}) == BNB_OK)
        return dw;
    bnb_tensor_free(dw);
    return NULL;
}
