/* A matrix with its rows as columns: the checks, the launch and the plain loop. Elements are copied, whatever they
 * are. */
#include <string.h>

#include "launch.h"

struct transpose_job {
    struct dense x;
    char        *y;
    size_t       size; /* of an element */
};

enum { SIDE = 32 }; /* a square of which both sides stay in L1 */

/* Columns [first, last) of squares, from the top to the bottom. */
static void transpose_plain(const void *argument, size_t first, size_t last) {
    const struct transpose_job *job = argument;
    const char                 *x = job->x.data;
    size_t                      rows = job->x.rows, columns = job->x.columns, size = job->size;
    for (size_t left = first * SIDE; left < columns && left < last * SIDE; left += SIDE)
        for (size_t top = 0; top < rows; top += SIDE)
            for (size_t c = left; c < columns && c < left + SIDE; c++)
                for (size_t r = top; r < rows && r < top + SIDE; r++)
                    memcpy(job->y + (c * rows + r) * size, x + (r * columns + c) * size, size);
}

struct request {
    const bnb_tensor *x;
    bnb_tensor       *y;
};

static bnb_status transpose(const void *argument) {
    const struct transpose_job *job = argument;
    parallel_for(ceil_div(job->x.columns, SIDE), ceil_div(1 << 14, SIDE * job->x.rows), transpose_plain, job);
    return BNB_OK;
}

static bnb_status transpose_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct transpose_job  job = {dense_of(host, r->x), host_writes(host, r->y->buffer), dtype_size(r->x->dtype)};
    return perform(host, transpose, &job, sizeof job);
}

static bnb_status launch(const void *request) {
    const struct request *r = request;
    size_t                count = r->x->rows * r->x->columns;
    if (count > INT32_MAX) return fail(BNB_UNSUPPORTED, "2^31 elements or more");
    struct transpose_args args = {.rows = (uint32_t)r->x->rows, .columns = (uint32_t)r->x->columns};
    return enqueue(r->x->buffer->device, &(struct launch){
                                             .family = "transpose",
                                             .kernel = "transpose",
                                             .constants = {(uint32_t)dtype_size(r->x->dtype)},
                                             .constant_count = 1,
                                             .args = &args,
                                             .args_bytes = sizeof args,
                                             .bindings = {reads(r->x->buffer), writes(r->y->buffer)},
                                             .binding_count = 2,
                                             .groups = {groups_for(count, TRANSPOSE_THREADS), 1, 1},
                                             .threads = TRANSPOSE_THREADS,
                                             .bytes_moved = 2 * r->x->buffer->bytes,
                                         });
}

bnb_tensor *bnb_transpose(const bnb_tensor *x) {
    if (!is_tensor(x, "transpose", "x")) return NULL;
    bnb_device *device = x->buffer->device;
    bnb_tensor *y = tensor_new(device, x->dtype, x->columns, x->rows);
    if (!y) return NULL;
    count_operation(device);
    if (run(&(struct operation){"transpose", device, launch, transpose_on_host, &(struct request){x, y}}) == BNB_OK)
        return y;
    bnb_tensor_free(y);
    return NULL;
}
