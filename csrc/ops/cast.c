/* A tensor in another float dtype: the checks and the plain loop. */
#include "../internal.h"

static void cast_plain(const void *argument, size_t first, size_t last) {
    const struct cast_job *job = argument;
    for (size_t i = first; i < last; i++) put_element(job->y, job->dtype, i, element_of(&job->x, i));
}

static bnb_status run(const bnb_tensor *x, bnb_tensor *y) {
    bnb_device *device = x->buffer->device;
    if (device->gpu) {
        bnb_status status = fall_back(device, "cast", "no kernel");
        if (status) return status;
    }
    struct cast_job job = {.x = dense_of(x), .y = buffer_host(y->buffer), .dtype = y->dtype};
    parallel_for(x->rows * x->columns, 1 << 16, cpu_forms()->cast ? cpu_forms()->cast : cast_plain, &job);
    return BNB_OK;
}

bnb_tensor *bnb_cast(const bnb_tensor *x, bnb_dtype dtype) {
    if (!is_tensor(x, "cast", "x") || !is_float(x->dtype, "cast", "x") || !is_float(dtype, "cast", "dtype")) return NULL;
    bnb_tensor *y = tensor_new(x->buffer->device, dtype, x->rows, x->columns);
    if (!y) return NULL;
    count_operation(x->buffer->device);
    if (run(x, y) == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}
