/* Weighted rows added to rows of a sum: what experts give back to the rows that were sent to them. */
#include "launch.h"

struct scatter_add_job {
    struct dense   x;
    const int32_t *rows;
    const float   *weights;
    void          *y;
    bnb_dtype      dtype;
};

/* Columns [first, last): each sum has one order. */
static void scatter_add_columns(const void *argument, size_t first, size_t last) {
    const struct scatter_add_job *job = argument;
    struct dense                  y = {job->y, job->dtype, 1, 0};
    for (size_t i = 0; i < job->x.rows; i++)
        for (size_t c = first; c < last; c++) {
            size_t at = (size_t)job->rows[i] * job->x.columns + c;
            put_element(job->y, job->dtype, at, element_of(&y, at) + job->weights[i] * element_of(&job->x, i * job->x.columns + c));
        }
}

static bnb_status are_rows(const int32_t *rows, size_t count, size_t most) {
    for (size_t i = 0; i < count; i++)
        if (rows[i] < 0 || (size_t)rows[i] >= most)
            return fail(BNB_INVALID, "scatter_add: rows[%zu] is %d, expected a row of y, 0 to %zu", i, rows[i], most - 1);
    return BNB_OK;
}

static bool is_vector(const bnb_tensor *tensor, const bnb_tensor *x, bnb_dtype dtype, const char *argument) {
    if (!is_tensor(tensor, "scatter_add", argument) || !on_device(tensor->buffer, x->buffer->device, "scatter_add", argument))
        return false;
    if (tensor->dtype == dtype && tensor->rows * tensor->columns == x->rows) return true;
    fail(BNB_INVALID, "scatter_add: %s is %s [%zu, %zu], expected %s and an element for each of the %zu rows of x", argument,
         dtype_name(tensor->dtype), tensor->rows, tensor->columns, dtype_name(dtype), x->rows);
    return false;
}

bnb_status bnb_scatter_add(bnb_tensor *y, const bnb_tensor *x, const bnb_tensor *rows, const bnb_tensor *weights) {
    if (!is_tensor(y, "scatter_add", "y") || !is_float(y->dtype, "scatter_add", "y") || !is_tensor(x, "scatter_add", "x") ||
        !is_float(x->dtype, "scatter_add", "x") || !on_device(x->buffer, y->buffer->device, "scatter_add", "x") ||
        !is_vector(rows, x, BNB_I32, "rows") || !is_vector(weights, x, BNB_F32, "weights"))
        return BNB_INVALID;
    if (y->columns != x->columns)
        return fail(BNB_INVALID, "scatter_add: x has %zu columns and y has %zu: they must match", x->columns, y->columns);
    if (y->buffer == x->buffer) return fail(BNB_INVALID, "scatter_add: x shares its memory with y, which changes: give a copy");
    bnb_device *device = y->buffer->device;
    count_operation(device);
    bnb_status status = fall_back(device, "scatter_add");
    if (status != BNB_OK) return status;
    struct scatter_add_job job = {dense_of(x), buffer_host(rows->buffer), buffer_host(weights->buffer), buffer_host(y->buffer), y->dtype};
    if ((status = are_rows(job.rows, x->rows, y->rows)) == BNB_OK)
        parallel_for(x->columns, ceil_div(1 << 13, x->rows), scatter_add_columns, &job);
    return status;
}
