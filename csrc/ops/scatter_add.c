/* Weighted rows added to rows of a sum: what experts give back to the rows that were sent to them. */
#include <stdlib.h>
#include <string.h>

#include "launch.h"

struct scatter_add_job {
    struct dense   x;
    const int32_t *rows;
    const float   *weights;
    void          *y;
    bnb_dtype      dtype;
    size_t         most; /* y's rows */
};

/* Columns [first, last): each sum has one order. */
static void scatter_add_columns(const void *argument, size_t first, size_t last) {
    const struct scatter_add_job *job = argument;
    struct dense                  y = {job->y, job->dtype, 1, 0};
    for (size_t i = 0; i < job->x.rows; i++)
        for (size_t c = first; c < last; c++) {
            size_t at = (size_t)job->rows[i] * job->x.columns + c;
            put_element(job->y, job->dtype, at,
                        element_of(&y, at) + job->weights[i] * element_of(&job->x, i * job->x.columns + c));
        }
}

static bnb_status are_rows(const int32_t *rows, size_t count, size_t most) {
    for (size_t i = 0; i < count; i++)
        if (rows[i] < 0 || (size_t)rows[i] >= most)
            return fail(BNB_INVALID, "scatter_add: rows[%zu] is %d, expected a row of y, 0 to %zu", i, rows[i],
                        most - 1);
    return BNB_OK;
}

struct request {
    bnb_tensor       *y;
    const bnb_tensor *x, *rows, *weights;
};

/* The rows are a copy, which no other thread can change between the check and the use. */
static bnb_status scatter_add(const void *argument) {
    struct scatter_add_job job = *(const struct scatter_add_job *)argument;
    int32_t               *rows = malloc(job.x.rows * sizeof *rows);
    if (!rows)
        return fail(BNB_OUT_OF_MEMORY, "scatter_add: no memory for %zu rows; free something and try again", job.x.rows);
    memcpy(rows, job.rows, job.x.rows * sizeof *rows);
    job.rows = rows;
    bnb_status status = are_rows(rows, job.x.rows, job.most);
    if (status == BNB_OK) parallel_for(job.x.columns, ceil_div(1 << 13, job.x.rows), scatter_add_columns, &job);
    free(rows);
    return status;
}

static bnb_status scatter_add_on_host(const void *request, struct host *host) {
    const struct request  *r = request;
    struct scatter_add_job job = {dense_of(host, r->x),
                                  host_reads(host, r->rows->buffer),
                                  host_reads(host, r->weights->buffer),
                                  host_updates(host, r->y->buffer),
                                  r->y->dtype,
                                  r->y->rows};
    return perform(host, scatter_add, &job, sizeof job);
}

static bnb_status launch(const void *request) {
    const struct request *r = request;
    if (r->x->rows > INT32_MAX || r->x->columns > INT32_MAX || r->y->rows > INT32_MAX)
        return fail(BNB_UNSUPPORTED, "a side of 2^31 elements or more");
    struct scatter_add_args args = {(uint32_t)r->x->rows, (uint32_t)r->x->columns, (uint32_t)r->y->rows};
    return enqueue(r->y->buffer->device, &(struct launch){
                                             .family = "scatter_add",
                                             .kernel = "scatter_add",
                                             .constants = {r->x->dtype, r->y->dtype},
                                             .constant_count = 2,
                                             .args = &args,
                                             .args_bytes = sizeof args,
                                             .bindings = {reads(r->x->buffer), reads(r->rows->buffer),
                                                          reads(r->weights->buffer), updates(r->y->buffer)},
                                             .binding_count = 4,
                                             .groups = {(uint32_t)ceil_div(args.columns, SCATTER_THREADS), 1, 1},
                                             .threads = SCATTER_THREADS,
                                             .bytes_moved = 3 * r->x->buffer->bytes,
                                         });
}

static bool is_vector(const bnb_tensor *tensor, const bnb_tensor *x, bnb_dtype dtype, const char *argument) {
    if (!is_tensor(tensor, "scatter_add", argument) ||
        !on_device(tensor->buffer, x->buffer->device, "scatter_add", argument))
        return false;
    if (tensor->dtype == dtype && tensor->rows * tensor->columns == x->rows) return true;
    fail(BNB_INVALID, "scatter_add: %s is %s [%zu, %zu], expected %s and an element for each of the %zu rows of x",
         argument, dtype_name(tensor->dtype), tensor->rows, tensor->columns, dtype_name(dtype), x->rows);
    return false;
}

bnb_status bnb_scatter_add(bnb_tensor *y, const bnb_tensor *x, const bnb_tensor *rows, const bnb_tensor *weights) {
    if (!is_tensor(y, "scatter_add", "y") || !is_float(y->dtype, "scatter_add", "y") ||
        !is_tensor(x, "scatter_add", "x") || !is_float(x->dtype, "scatter_add", "x") ||
        !on_device(x->buffer, y->buffer->device, "scatter_add", "x") || !is_vector(rows, x, BNB_I32, "rows") ||
        !is_vector(weights, x, BNB_F32, "weights"))
        return BNB_INVALID;
    if (y->columns != x->columns)
        return fail(BNB_INVALID, "scatter_add: x has %zu columns and y has %zu: they must match", x->columns,
                    y->columns);
    if (y->buffer == x->buffer)
        return fail(BNB_INVALID, "scatter_add: x shares its memory with y, which changes: give a copy");
    bnb_device *device = y->buffer->device;
    count_operation(device);
    return run(&(struct operation){"scatter_add", device, launch, scatter_add_on_host,
                                   &(struct request){y, x, rows, weights}});
}
