/* The columns of LLM.int8() that hold outliers, and are left to floating point: the checks, the launch and the plain
 * loop that list them. */
#include <stdlib.h>
#include <string.h>

#include "int8.h"

static void outliers_plain(const void *argument, size_t first, size_t last) {
    const struct int8_outliers_job *job = argument;
    for (size_t row = first; row < last; row++) flag_outliers(job, row, 0, job->x.columns);
}

struct outliers_request {
    const bnb_tensor *x;
    float             threshold;
    const bnb_tensor *outliers;
};

static bnb_status launch_outliers(const void *request) {
    const struct outliers_request *r = request;
    const bnb_tensor              *x = r->x, *outliers = r->outliers;
    struct int8_quantize_args      args;
    struct launch                  launch;
    bnb_device                    *device = x->buffer->device;
    bnb_status                     status = int8_prepare("int8_flags", x, r->threshold, &args, &launch);
    if (status) return status;
    struct buffer *flags = buffer_new(device, x->columns * sizeof(int32_t));
    if (!flags) return bnb_last_status();
    launch.bindings[0] = reads(x->buffer);
    launch.bindings[1] = writes(flags);
    launch.binding_count = 2;
    launch.groups[0] = (uint32_t)ceil_div(x->columns, 32);
    status = enqueue(device, &launch);
    launch.kernel = "int8_list";
    launch.bindings[0] = reads(flags);
    launch.bindings[1] = writes(outliers->buffer);
    launch.groups[0] = 1;
    launch.bytes_moved = 2 * flags->bytes;
    if (status == BNB_OK) status = enqueue(device, &launch);
    buffer_release(flags); /* the driver keeps it until the work is done */
    return status;
}

int32_t *int8_copy_outliers(const int32_t *list, size_t columns, size_t *count) {
    int32_t *copy = malloc(columns * sizeof *copy);
    if (!copy)
        return refuse(BNB_OUT_OF_MEMORY, "no memory for a list of %zu outlier columns: free something and try again",
                      columns);
    memcpy(copy, list, columns * sizeof *copy);
    *count = 0;
    while (*count < columns && copy[*count] >= 0 && (size_t)copy[*count] < columns) ++*count;
    return copy;
}

static bnb_status list_outliers(const void *argument) {
    const struct int8_outliers_job *job = argument;
    size_t                          columns = job->x.columns;
    int32_t                        *list = (int32_t *)job->flags;
    memset(list, 0, columns * sizeof *list);
    parallel_for(job->x.rows, ceil_div(1 << 16, columns),
                 cpu_forms()->int8_outliers ? cpu_forms()->int8_outliers : outliers_plain, job);
    size_t count = 0; /* the list grows over the flags that have been looked at */
    for (size_t c = 0; c < columns; c++)
        if (list[c]) list[count++] = (int32_t)c;
    while (count < columns) list[count++] = -1;
    return BNB_OK;
}

static bnb_status outliers_on_host(const void *request, struct host *host) {
    const struct outliers_request *r = request;
    struct int8_outliers_job       job = {dense_of(host, r->x), r->threshold, host_writes(host, r->outliers->buffer)};
    return perform(host, list_outliers, &job, sizeof job);
}

bnb_status int8_list_outliers(const bnb_tensor *x, float threshold, const bnb_tensor *outliers) {
    struct outliers_request request = {x, threshold, outliers};
    return run(&(struct operation){"int8_outliers", x->buffer->device, launch_outliers, outliers_on_host, &request});
}

/* Columns are listed in 32 bits. */
static bool is_listable(const bnb_tensor *x, const char *function) {
    if (x->columns <= INT32_MAX) return true;
    fail(BNB_UNSUPPORTED, "%s: x has %zu columns, more than 2^31 - 1", function, x->columns);
    return false;
}

bnb_tensor *bnb_int8_outliers(const bnb_tensor *x, float threshold) {
    if (!is_tensor(x, "int8_outliers", "x") || !is_float(x->dtype, "int8_outliers", "x") ||
        !is_threshold(threshold, "int8_outliers") || !is_listable(x, "int8_outliers"))
        return NULL;
    if (threshold == 0) return refuse(BNB_INVALID, "int8_outliers: threshold is 0, expected a positive number");
    bnb_tensor *outliers = tensor_new(x->buffer->device, BNB_I32, 1, x->columns);
    if (!outliers) return NULL;
    count_operation(x->buffer->device);
    if (int8_list_outliers(x, threshold, outliers) == BNB_OK) return outliers;
    bnb_tensor_free(outliers);
    return NULL;
}
