/* LLM.int8()'s quantising and dequantising: the checks, the launches and the plain loops. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "finite.h"
#include "int8.h"
#include "record.h"

/* ── The plain loops ────────────────────────────────────────────────────────────────────────────────────────────── */

/* The larger of a magnitude and another element's, where that counts; a NaN is above an infinity, and that above all
 * else. */
static float larger(float largest, float element, float threshold) {
    float magnitude = fabsf(element);
    return magnitude >= threshold || float_bits(magnitude) < float_bits(largest) ? largest : magnitude;
}

static void rows_plain(const void *argument, size_t first, size_t last) {
    const struct int8_quantize_job *job = argument;
    size_t                          columns = job->x.columns;
    for (size_t row = first; row < last; row++) {
        float stats = 0;
        for (size_t i = row * columns; job->finds && i < (row + 1) * columns; i++)
            stats = larger(stats, element_of(&job->x, i), job->threshold);
        if (job->finds) job->stats[row] = stats;
        if (!job->codes) continue;
        float factor = int8_factor(job->stats[row]);
        for (size_t i = row * columns; i < (row + 1) * columns; i++)
            job->codes[i] = int8_code(element_of(&job->x, i), factor, job->threshold);
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
            job->codes[row * columns + c] =
                int8_code(element_of(&job->x, row * columns + c), int8_factor(job->stats[c]), job->threshold);
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

bnb_status int8_prepare(const char *kernel, const bnb_tensor *x, float threshold, struct int8_quantize_args *args,
                        struct launch *launch) {
    if (x->rows > UINT32_MAX || x->columns > INT32_MAX) return fail(BNB_UNSUPPORTED, "2^32 rows or 2^31 columns");
    *args =
        (struct int8_quantize_args){.rows = (uint32_t)x->rows, .columns = (uint32_t)x->columns, .threshold = threshold};
    *launch = (struct launch){
        .family = "int8_quantize",
        .kernel = kernel,
        .constants = {x->dtype, threshold != 0, [6] = x->columns % 8 == 0},
        .constant_count = 8,
        .args = args,
        .args_bytes = sizeof *args,
        .groups = {1, 1, 1},
        .threads = INT8_THREADS,
        .bytes_moved = x->buffer->bytes,
    };
    return BNB_OK;
}

static bnb_status launch_column_stats(const struct int8_pass *pass) {
    struct int8_quantize_args args;
    struct launch             launch;
    bnb_status                status = int8_prepare("int8_column_stats", pass->x, pass->threshold, &args, &launch);
    if (status) return status;
    launch.bindings[0] = reads(pass->x->buffer);
    launch.bindings[1] = writes(pass->stats->buffer);
    launch.binding_count = 2;
    launch.groups[0] = (uint32_t)ceil_div(pass->x->columns, 32);
    return enqueue(pass->x->buffer->device, &launch);
}

/* How many times 8 columns each thread of a row's keeps, where all that is wanted of it comes from one look: 0 where it
 * doesn't, or they would be too many. */
static uint32_t kept_of(const bnb_tensor *x, bool finds, bool codes) {
    size_t kept = ceil_div(x->columns, (size_t)8 * INT8_THREADS);
    return finds && codes && x->columns % 8 == 0 && kept <= INT8_KEPT_MOST ? (uint32_t)kept : 0;
}

static bnb_status launch_rows(const struct int8_pass *pass, bool finds) {
    struct int8_quantize_args args;
    struct launch             launch;
    bnb_status                status = int8_prepare("int8_rows", pass->x, pass->threshold, &args, &launch);
    if (status) return status;
    launch.constants[2] = pass->by_column;
    launch.constants[3] = finds;
    launch.constants[4] = pass->codes != NULL;
    launch.constants[5] = pass->outliers != NULL;
    launch.constants[7] = kept_of(pass->x, finds, pass->codes);
    launch.bindings[0] = reads(pass->x->buffer);
    launch.bindings[1] = reads_if(pass->outliers ? pass->outliers->buffer : NULL, pass->x->buffer);
    launch.bindings[2] = finds ? writes(pass->stats->buffer) : reads(pass->stats->buffer);
    launch.bindings[3] = pass->codes ? writes(pass->codes->buffer) : unused(pass->stats->buffer);
    launch.binding_count = 4;
    launch.groups[0] = args.rows;
    launch.bytes_moved += pass->codes ? pass->codes->buffer->bytes : 0;
    return enqueue(pass->x->buffer->device, &launch);
}

static bnb_status launch_pass(const void *request) {
    const struct int8_pass *pass = request;
    if (!pass->by_column) return launch_rows(pass, pass->finds);
    bnb_status status = pass->finds ? launch_column_stats(pass) : BNB_OK;
    return status || !pass->codes ? status : launch_rows(pass, false);
}

struct dequantize_request {
    const bnb_tensor *codes, *stats, *y;
};

static bnb_status launch_dequantize(const void *request) {
    const bnb_tensor *codes = ((const struct dequantize_request *)request)->codes;
    const bnb_tensor *stats = ((const struct dequantize_request *)request)->stats,
                     *y = ((const struct dequantize_request *)request)->y;
    struct int8_quantize_args args;
    struct launch             launch;
    bnb_status                status = int8_prepare("int8_dequantize", codes, 0, &args, &launch);
    if (status) return status;
    launch.constants[0] = y->dtype;
    launch.bindings[0] = reads(codes->buffer);
    launch.bindings[1] = reads(stats->buffer);
    launch.bindings[2] = writes(y->buffer);
    launch.binding_count = 3;
    launch.groups[0] = args.rows;
    launch.bytes_moved += y->buffer->bytes;
    return enqueue(codes->buffer->device, &launch);
}

/* ── Quantising ─────────────────────────────────────────────────────────────────────────────────────────────────── */

static void quantize_rows(const struct int8_quantize_job *job) {
    parallel_for(job->x.rows, ceil_div(1 << 15, job->x.columns),
                 cpu_forms()->int8_quantize ? cpu_forms()->int8_quantize : rows_plain, job);
}

static void quantize_columns(const struct int8_quantize_job *job) {
    size_t grain = ceil_div(1 << 15, job->x.rows) + 512; /* runs of memory */
    if (job->finds) parallel_for(job->x.columns, grain, column_stats_plain, job);
    if (job->codes) parallel_for(job->x.rows, ceil_div(1 << 15, job->x.columns), column_codes_plain, job);
}

struct pass_job {
    struct int8_quantize_job quantize; /* whose outliers are yet to be copied */
    bool                     by_column;
};

static bnb_status quantize(const void *argument) {
    struct pass_job job = *(const struct pass_job *)argument;
    int32_t        *outliers = NULL;
    if (job.quantize.outliers) {
        outliers = int8_copy_outliers(job.quantize.outliers, job.quantize.x.columns, &job.quantize.outlier_count);
        if (!outliers) return BNB_OUT_OF_MEMORY;
        job.quantize.outliers = outliers;
    }
    if (job.by_column)
        quantize_columns(&job.quantize);
    else
        quantize_rows(&job.quantize);
    free(outliers);
    return BNB_OK;
}

static bnb_status pass_on_host(const void *request, struct host *host) {
    const struct int8_pass *pass = request;
    const struct buffer    *stats = pass->stats->buffer;
    struct pass_job         job = {
        .quantize =
            {
                .x = dense_of(host, pass->x),
                .threshold = pass->threshold ? pass->threshold : NAN,
                .outliers = pass->outliers ? host_reads(host, pass->outliers->buffer) : NULL,
                .finds = pass->finds,
                .stats = pass->finds ? host_writes(host, stats) : (float *)host_reads(host, stats),
                .codes = pass->codes ? host_writes(host, pass->codes->buffer) : NULL,
            },
        .by_column = pass->by_column,
    };
    return perform(host, quantize, &job, sizeof job);
}

bnb_status int8_quantize(const struct int8_pass *pass) {
    return run(&(struct operation){"int8_quantize", pass->x->buffer->device, launch_pass, pass_on_host, pass});
}

/* Looks for the first NaN or infinity that shows in the stats: in x, or it is the stats that were given so. */
struct finite_job {
    struct dense x;
    const float *stats;
    bool         by_column;
};

static bnb_status find_infinite(const void *argument) {
    const struct finite_job *job = argument;
    const struct dense      *x = &job->x;
    size_t                   count = job->by_column ? x->columns : x->rows, bad = 0;
    while (bad < count && isfinite(job->stats[bad])) bad++;
    if (bad == count) return BNB_OK;
    size_t at = job->by_column ? bad : bad * x->columns, step = job->by_column ? x->columns : 1;
    size_t last = at + step * ((job->by_column ? x->rows : x->columns) - 1);
    /* Not by its bits: a kernel's conversion of a signalling NaN makes it another. An infinity may be an outlier. */
    while (at < last && (isnan(job->stats[bad]) ? !isnan(element_of(x, at)) : isfinite(element_of(x, at)))) at += step;
    if (isfinite(element_of(x, at)))
        return fail(BNB_INVALID, "int8_vectorwise_quant: stats[%zu] is %g, expected a finite number", bad,
                    job->stats[bad]);
    return fail(BNB_INVALID,
                "int8_vectorwise_quant: x[%zu, %zu] is %g, expected finite numbers: replace it before quantising",
                at / x->columns, at % x->columns, element_of(x, at));
}

static bnb_status finite_on_host(const void *request, struct host *host) {
    const struct int8_pass *pass = request;
    struct finite_job       job = {dense_of(host, pass->x), host_reads(host, pass->stats->buffer), pass->by_column};
    return perform(host, find_infinite, &job, sizeof job);
}

/* The CPU looks at x only where a GPU has not found all stats to be finite; nobody does while that is recorded. */
static bnb_status check_finite(const struct int8_pass *pass) {
    bnb_device    *device = pass->x->buffer->device;
    struct buffer *largest;
    if (is_recording(device)) return BNB_OK;
    bnb_status status = find_largest(pass->stats->buffer, &largest);
    if (status == BNB_OK && !are_finite(largest)) status = run_on_host(device, finite_on_host, pass);
    buffer_release(largest);
    return status;
}

bnb_tensor *bnb_int8_stats(const bnb_tensor *x, float threshold, int32_t by_column) {
    if (!is_tensor(x, "int8_stats", "x") || !is_float(x->dtype, "int8_stats", "x") ||
        !is_threshold(threshold, "int8_stats"))
        return NULL;
    bnb_tensor *stats = tensor_new(x->buffer->device, BNB_F32, 1, by_column ? x->columns : x->rows);
    if (!stats) return NULL;
    struct int8_pass pass = {.x = x, .threshold = threshold, .by_column = by_column, .finds = true, .stats = stats};
    count_operation(x->buffer->device);
    if (int8_quantize(&pass) == BNB_OK) return stats;
    bnb_tensor_free(stats);
    return NULL;
}

bool is_threshold(float threshold, const char *function) {
    if (threshold >= 0 && isfinite(threshold)) return true;
    fail(BNB_INVALID, "%s: threshold is %g, expected a finite number that is not negative", function, threshold);
    return false;
}

bool is_matrix(const bnb_tensor *tensor, bnb_dtype dtype, size_t rows, size_t columns, const bnb_device *device,
               const char *function, const char *argument) {
    if (!is_tensor(tensor, function, argument) || !on_device(tensor->buffer, device, function, argument)) return false;
    if (tensor->dtype == dtype && tensor->rows == rows && tensor->columns == columns) return true;
    fail(BNB_INVALID, "%s: %s is %s [%zu, %zu], expected %s [%zu, %zu]", function, argument, dtype_name(tensor->dtype),
         tensor->rows, tensor->columns, dtype_name(dtype), rows, columns);
    return false;
}

bnb_tensor *bnb_int8_vectorwise_quant(const bnb_tensor *x, const bnb_tensor *stats, float threshold,
                                      const bnb_tensor *outliers, int32_t by_column) {
    const char *function = "int8_vectorwise_quant";
    if (!is_tensor(x, function, "x") || !is_float(x->dtype, function, "x") || !is_threshold(threshold, function))
        return NULL;
    bnb_device *device = x->buffer->device;
    if (!is_matrix(stats, BNB_F32, 1, by_column ? x->columns : x->rows, device, function, "stats") ||
        (outliers && !is_matrix(outliers, BNB_I32, 1, x->columns, device, function, "outliers")))
        return NULL;
    bnb_tensor *codes = tensor_new(device, BNB_I8, x->rows, x->columns);
    if (!codes) return NULL;
    count_operation(device);
    struct int8_pass pass = {x, threshold, outliers, by_column, false, stats, codes};
    if (int8_quantize(&pass) == BNB_OK && check_finite(&pass) == BNB_OK) return codes;
    bnb_tensor_free(codes);
    return NULL;
}

/* ── Dequantising ───────────────────────────────────────────────────────────────────────────────────────────────── */

static bnb_status dequantize(const void *argument) {
    const struct int8_dequantize_job *job = argument;
    parallel_for(job->rows, ceil_div(1 << 15, job->columns),
                 cpu_forms()->int8_dequantize ? cpu_forms()->int8_dequantize : dequantize_plain, job);
    return BNB_OK;
}

static bnb_status dequantize_on_host(const void *request, struct host *host) {
    const struct dequantize_request *r = request;
    struct int8_dequantize_job       job = {
        .codes = host_reads(host, r->codes->buffer),
        .rows = r->codes->rows,
        .columns = r->codes->columns,
        .stats = host_reads(host, r->stats->buffer),
        .y = host_writes(host, r->y->buffer),
        .dtype = r->y->dtype,
    };
    return perform(host, dequantize, &job, sizeof job);
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
    struct dequantize_request request = {codes, stats, y};
    if (run(&(struct operation){function, device, launch_dequantize, dequantize_on_host, &request}) == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}
