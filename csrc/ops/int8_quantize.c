/* LLM.int8()'s quantising and dequantising: the checks, the launches and the plain loops. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "int8.h"

/* ── The plain loops ────────────────────────────────────────────────────────────────────────────────────────────── */

static void outliers_plain(const void *argument, size_t first, size_t last) {
    const struct int8_outliers_job *job = argument;
    for (size_t row = first; row < last; row++) flag_outliers(job, row, 0, job->x.columns);
}

/* The larger of a magnitude and another element's, where that counts; a NaN is above an infinity, and that above all else. */
static float larger(float largest, float element, float threshold) {
    float magnitude = fabsf(element);
    return magnitude >= threshold || float_bits(magnitude) < float_bits(largest) ? largest : magnitude;
}

static void rows_plain(const void *argument, size_t first, size_t last) {
    const struct int8_quantize_job *job = argument;
    size_t                          columns = job->x.columns;
    for (size_t row = first; row < last; row++) {
        float stats = 0;
        for (size_t i = row * columns; job->finds && i < (row + 1) * columns; i++) stats = larger(stats, element_of(&job->x, i), job->threshold);
        if (job->finds) job->stats[row] = stats;
        if (!job->codes) continue;
        float factor = int8_factor(job->stats[row]);
        for (size_t i = row * columns; i < (row + 1) * columns; i++) job->codes[i] = int8_code(element_of(&job->x, i), factor, job->threshold);
        for (size_t o = 0; o < job->outlier_count; o++) job->codes[row * columns + (size_t)job->outliers[o]] = 0;
    }
}

/* By columns there is no other form: only training a dense weight wants them. */
static void column_stats_plain(const void *argument, size_t first, size_t last) {
    const struct int8_quantize_job *job = argument;
    for (size_t c = first; c < last; c++) job->stats[c] = 0;
    for (size_t row = 0; row < job->x.rows; row++)
        for (size_t c = first; c < last; c++)
            job->stats[c] = larger(job->stats[c], element_of(&job->x, row * job->x.columns + c), job->threshold);
}

static void column_codes_plain(const void *argument, size_t first, size_t last) {
    const struct int8_quantize_job *job = argument;
    size_t                          columns = job->x.columns;
    for (size_t row = first; row < last; row++) {
        for (size_t c = 0; c < columns; c++)
            job->codes[row * columns + c] = int8_code(element_of(&job->x, row * columns + c), int8_factor(job->stats[c]), job->threshold);
        for (size_t o = 0; o < job->outlier_count; o++) job->codes[row * columns + (size_t)job->outliers[o]] = 0;
    }
}

static void dequantize_plain(const void *argument, size_t first, size_t last) {
    const struct int8_dequantize_job *job = argument;
    for (size_t row = first; row < last; row++)
        for (size_t i = row * job->columns; i < (row + 1) * job->columns; i++)
            put_element(job->y, job->dtype, i, int8_weight(job->codes[i], job->stats[row]));
}

/* ── The launches ───────────────────────────────────────────────────────────────────────────────────────────────── */

/* What the kernels have in common: all but bindings and grid. */
static bnb_status prepare(const char *kernel, const bnb_tensor *x, float threshold, struct int8_quantize_args *args, struct launch *launch) {
    if (x->rows > UINT32_MAX || x->columns > INT32_MAX) return fail(BNB_UNSUPPORTED, "2^32 rows or 2^31 columns");
    *args = (struct int8_quantize_args){.rows = (uint32_t)x->rows, .columns = (uint32_t)x->columns, .threshold = threshold};
    *launch = (struct launch){
        .family = "int8_quantize",
        .kernel = kernel,
        .constants = {x->dtype, threshold != 0},
        .constant_count = 6,
        .args = args,
        .args_bytes = sizeof *args,
        .groups = {1, 1, 1},
        .threads = INT8_THREADS,
        .bytes_moved = x->buffer->bytes,
    };
    return BNB_OK;
}

static bnb_status launch_outliers(const bnb_tensor *x, float threshold, const bnb_tensor *outliers) {
    struct int8_quantize_args args;
    struct launch             launch;
    bnb_device               *device = x->buffer->device;
    bnb_status                status = prepare("int8_flags", x, threshold, &args, &launch);
    if (status) return status;
    struct buffer *flags = buffer_new(device, x->columns * sizeof(int32_t));
    if (!flags) return bnb_last_status();
    launch.bindings[0] = binding_of(x->buffer);
    launch.bindings[1] = binding_of(flags);
    launch.binding_count = 2;
    launch.groups[0] = (uint32_t)ceil_div(x->columns, 32);
    status = device->gpu->launch(&launch);
    launch.kernel = "int8_list";
    launch.bindings[0] = binding_of(flags);
    launch.bindings[1] = binding_of(outliers->buffer);
    launch.groups[0] = 1;
    launch.bytes_moved = 2 * flags->bytes;
    if (status == BNB_OK) status = device->gpu->launch(&launch);
    buffer_release(flags); /* the driver keeps it until the work is done */
    return status;
}

static bnb_status launch_column_stats(const struct int8_pass *pass) {
    struct int8_quantize_args args;
    struct launch             launch;
    bnb_status                status = prepare("int8_column_stats", pass->x, pass->threshold, &args, &launch);
    if (status) return status;
    launch.bindings[0] = binding_of(pass->x->buffer);
    launch.bindings[1] = binding_of(pass->stats->buffer);
    launch.binding_count = 2;
    launch.groups[0] = (uint32_t)ceil_div(pass->x->columns, 32);
    return pass->x->buffer->device->gpu->launch(&launch);
}

static bnb_status launch_rows(const struct int8_pass *pass, bool finds) {
    struct int8_quantize_args args;
    struct launch             launch;
    bnb_status                status = prepare("int8_rows", pass->x, pass->threshold, &args, &launch);
    if (status) return status;
    launch.constants[2] = pass->by_column;
    launch.constants[3] = finds;
    launch.constants[4] = pass->codes != NULL;
    launch.constants[5] = pass->outliers != NULL;
    launch.bindings[0] = binding_of(pass->x->buffer);
    launch.bindings[1] = binding_of((pass->outliers ? pass->outliers : pass->x)->buffer);
    launch.bindings[2] = binding_of(pass->stats->buffer);
    launch.bindings[3] = binding_of((pass->codes ? pass->codes : pass->stats)->buffer);
    launch.binding_count = 4;
    launch.groups[0] = args.rows;
    launch.bytes_moved += pass->codes ? pass->codes->buffer->bytes : 0;
    return pass->x->buffer->device->gpu->launch(&launch);
}

static bnb_status launch_pass(const struct int8_pass *pass) {
    if (!pass->by_column) return launch_rows(pass, pass->finds);
    bnb_status status = pass->finds ? launch_column_stats(pass) : BNB_OK;
    return status || !pass->codes ? status : launch_rows(pass, false);
}

static bnb_status launch_dequantize(const bnb_tensor *codes, const bnb_tensor *stats, const bnb_tensor *y) {
    struct int8_quantize_args args;
    struct launch             launch;
    bnb_status                status = prepare("int8_dequantize", codes, 0, &args, &launch);
    if (status) return status;
    launch.constants[0] = y->dtype;
    launch.bindings[0] = binding_of(codes->buffer);
    launch.bindings[1] = binding_of(stats->buffer);
    launch.bindings[2] = binding_of(y->buffer);
    launch.binding_count = 3;
    launch.groups[0] = args.rows;
    launch.bytes_moved += y->buffer->bytes;
    return codes->buffer->device->gpu->launch(&launch);
}

/* ── Outliers ───────────────────────────────────────────────────────────────────────────────────────────────────── */

int32_t *int8_copy_outliers(const struct buffer *list, size_t columns, size_t *count) {
    int32_t *copy = malloc(columns * sizeof *copy);
    if (!copy) return refuse(BNB_OUT_OF_MEMORY, "no memory for a list of %zu outlier columns: free something and try again", columns);
    memcpy(copy, buffer_host(list), columns * sizeof *copy);
    *count = 0;
    while (*count < columns && copy[*count] >= 0 && (size_t)copy[*count] < columns) ++*count;
    return copy;
}

static void list_outliers_host(const bnb_tensor *x, float threshold, const bnb_tensor *outliers) {
    int32_t                 *list = buffer_host(outliers->buffer);
    struct int8_outliers_job job = {dense_of(x), threshold, (_Atomic int32_t *)list};
    memset(list, 0, x->columns * sizeof *list);
    parallel_for(x->rows, ceil_div(1 << 16, x->columns), cpu_forms()->int8_outliers ? cpu_forms()->int8_outliers : outliers_plain, &job);
    size_t count = 0; /* the list grows over the flags that have been looked at */
    for (size_t c = 0; c < x->columns; c++)
        if (list[c]) list[count++] = (int32_t)c;
    while (count < x->columns) list[count++] = -1;
}

bnb_status int8_list_outliers(const bnb_tensor *x, float threshold, const bnb_tensor *outliers) {
    bnb_device *device = x->buffer->device;
    bnb_status  status = device->gpu ? launch_outliers(x, threshold, outliers) : BNB_UNSUPPORTED;
    if (status != BNB_UNSUPPORTED || fall_back(device, "int8_outliers") != BNB_OK) return status;
    list_outliers_host(x, threshold, outliers);
    return BNB_OK;
}

bool is_threshold(float threshold, const char *function) {
    if (threshold >= 0 && isfinite(threshold)) return true;
    fail(BNB_INVALID, "%s: threshold is %g, expected a finite number that is not negative", function, threshold);
    return false;
}

/* Columns are listed in 32 bits. */
static bool is_listable(const bnb_tensor *x, const char *function) {
    if (x->columns <= INT32_MAX) return true;
    fail(BNB_UNSUPPORTED, "%s: x has %zu columns, more than 2^31 - 1", function, x->columns);
    return false;
}

bnb_tensor *bnb_int8_outliers(const bnb_tensor *x, float threshold) {
    if (!is_tensor(x, "int8_outliers", "x") || !is_float(x->dtype, "int8_outliers", "x") || !is_threshold(threshold, "int8_outliers") ||
        !is_listable(x, "int8_outliers"))
        return NULL;
    if (threshold == 0) return refuse(BNB_INVALID, "int8_outliers: threshold is 0, expected a positive number");
    bnb_tensor *outliers = tensor_new(x->buffer->device, BNB_I32, 1, x->columns);
    if (!outliers) return NULL;
    count_operation(x->buffer->device);
    if (int8_list_outliers(x, threshold, outliers) == BNB_OK) return outliers;
    bnb_tensor_free(outliers);
    return NULL;
}

/* ── Quantising ─────────────────────────────────────────────────────────────────────────────────────────────────── */

static bnb_status quantize_host(const struct int8_pass *pass) {
    int32_t                 *outliers = NULL;
    struct int8_quantize_job job = {
        .x = dense_of(pass->x),
        .threshold = pass->threshold ? pass->threshold : NAN,
        .finds = pass->finds,
        .stats = buffer_host(pass->stats->buffer),
        .codes = pass->codes ? buffer_host(pass->codes->buffer) : NULL,
    };
    if (pass->outliers) {
        job.outliers = outliers = int8_copy_outliers(pass->outliers->buffer, job.x.columns, &job.outlier_count);
        if (!outliers) return BNB_OUT_OF_MEMORY;
    }
    size_t rows_grain = ceil_div(1 << 15, job.x.columns), columns_grain = ceil_div(1 << 15, job.x.rows) + 512; /* runs of memory */
    if (!pass->by_column) {
        parallel_for(job.x.rows, rows_grain, cpu_forms()->int8_quantize ? cpu_forms()->int8_quantize : rows_plain, &job);
    } else {
        if (job.finds) parallel_for(job.x.columns, columns_grain, column_stats_plain, &job);
        if (job.codes) parallel_for(job.x.rows, rows_grain, column_codes_plain, &job);
    }
    free(outliers);
    return BNB_OK;
}

bnb_status int8_quantize(const struct int8_pass *pass) {
    bnb_device *device = pass->x->buffer->device;
    bnb_status  status = device->gpu ? launch_pass(pass) : BNB_UNSUPPORTED;
    if (status != BNB_UNSUPPORTED || fall_back(device, "int8_quantize") != BNB_OK) return status;
    return quantize_host(pass);
}

/* Says where the first NaN or infinity is that shows in the stats, if one does. */
static bnb_status check_finite(const struct int8_pass *pass) {
    bnb_device *device = pass->x->buffer->device;
    bnb_status  status = device->gpu ? device->gpu->wait() : BNB_OK;
    if (status) return status;
    const bnb_tensor *x = pass->x;
    const float      *stats = buffer_host(pass->stats->buffer);
    size_t            count = pass->by_column ? x->columns : x->rows, bad = 0;
    while (bad < count && isfinite(stats[bad])) bad++;
    if (bad == count) return BNB_OK;
    struct dense dense = dense_of(x);
    size_t       at = pass->by_column ? bad : bad * x->columns, step = pass->by_column ? x->columns : 1;
    size_t       last = at + step * ((pass->by_column ? x->rows : x->columns) - 1);
    /* Not by its bits: a kernel's conversion of a signalling NaN makes it another. An infinity may be an outlier. */
    while (at < last && (isnan(stats[bad]) ? !isnan(element_of(&dense, at)) : isfinite(element_of(&dense, at)))) at += step;
    return fail(BNB_INVALID, "int8_stats: x[%zu, %zu] is %g, expected finite numbers: replace it before quantising", at / x->columns,
                at % x->columns, element_of(&dense, at));
}

bnb_tensor *bnb_int8_stats(const bnb_tensor *x, float threshold, int32_t by_column) {
    if (!is_tensor(x, "int8_stats", "x") || !is_float(x->dtype, "int8_stats", "x") || !is_threshold(threshold, "int8_stats")) return NULL;
    bnb_tensor *stats = tensor_new(x->buffer->device, BNB_F32, 1, by_column ? x->columns : x->rows);
    if (!stats) return NULL;
    struct int8_pass pass = {.x = x, .threshold = threshold, .by_column = by_column, .finds = true, .stats = stats};
    count_operation(x->buffer->device);
    bnb_status status = int8_quantize(&pass);
    if (status == BNB_OK && check_finite(&pass) == BNB_OK) return stats;
    bnb_tensor_free(stats);
    return NULL;
}

bool is_matrix(const bnb_tensor *tensor, bnb_dtype dtype, size_t rows, size_t columns, const bnb_device *device, const char *function,
               const char *argument) {
    if (!is_tensor(tensor, function, argument) || !on_device(tensor->buffer, device, function, argument)) return false;
    if (tensor->dtype == dtype && tensor->rows == rows && tensor->columns == columns) return true;
    fail(BNB_INVALID, "%s: %s is %s [%zu, %zu], expected %s [%zu, %zu]", function, argument, dtype_name(tensor->dtype), tensor->rows,
         tensor->columns, dtype_name(dtype), rows, columns);
    return false;
}

bnb_tensor *bnb_int8_vectorwise_quant(const bnb_tensor *x, const bnb_tensor *stats, float threshold, const bnb_tensor *outliers, int32_t by_column) {
    const char *function = "int8_vectorwise_quant";
    if (!is_tensor(x, function, "x") || !is_float(x->dtype, function, "x") || !is_threshold(threshold, function)) return NULL;
    bnb_device *device = x->buffer->device;
    if (!is_matrix(stats, BNB_F32, 1, by_column ? x->columns : x->rows, device, function, "stats") ||
        (outliers && !is_matrix(outliers, BNB_I32, 1, x->columns, device, function, "outliers")))
        return NULL;
    bnb_tensor *codes = tensor_new(device, BNB_I8, x->rows, x->columns);
    if (!codes) return NULL;
    count_operation(device);
    if (int8_quantize(&(struct int8_pass){x, threshold, outliers, by_column, false, stats, codes}) == BNB_OK) return codes;
    bnb_tensor_free(codes);
    return NULL;
}

/* ── Dequantising ───────────────────────────────────────────────────────────────────────────────────────────────── */

static void dequantize_host(const bnb_tensor *codes, const bnb_tensor *stats, const bnb_tensor *y) {
    struct int8_dequantize_job job = {buffer_host(codes->buffer), codes->columns, buffer_host(stats->buffer), buffer_host(y->buffer), y->dtype};
    parallel_for(codes->rows, ceil_div(1 << 15, codes->columns), cpu_forms()->int8_dequantize ? cpu_forms()->int8_dequantize : dequantize_plain, &job);
}

bnb_tensor *bnb_int8_vectorwise_dequant(const bnb_tensor *codes, const bnb_tensor *stats, bnb_dtype dtype) {
    const char *function = "int8_vectorwise_dequant";
    if (!is_tensor(codes, function, "codes") || !is_float(dtype, function, "dtype")) return NULL;
    bnb_device *device = codes->buffer->device;
    if (!is_matrix(codes, BNB_I8, codes->rows, codes->columns, device, function, "codes") ||
        !is_matrix(stats, BNB_F32, 1, codes->rows, device, function, "stats"))
        return NULL;
    bnb_tensor *y = tensor_new(device, dtype, codes->rows, codes->columns);
    if (!y) return NULL;
    count_operation(device);
    bnb_status status = device->gpu ? launch_dequantize(codes, stats, y) : BNB_UNSUPPORTED;
    if (status == BNB_UNSUPPORTED && fall_back(device, function) == BNB_OK) {
        dequantize_host(codes, stats, y);
        status = BNB_OK;
    }
    if (status == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}
