/* LLM.int8()'s products: the checks, the launches and the plain loops. */
#include <stdlib.h>
#include <string.h>

#include "int8.h"

enum { COLUMNS_MOST = 131'071 }; /* products of two bytes that surely add up in an int32 */

/* ── The plain loops ────────────────────────────────────────────────────────────────────────────────────────────── */

/* `added` may be NULL. */
static void put_output(const struct int8_output *to, size_t m, size_t n, int32_t sum, const float *added) {
    float value = int8_value(sum, to->row_stats[m], to->column_stats[n]);
    if (added) value += *added;
    if (to->bias) value += to->bias[n];
    put_element(to->y, to->dtype, m * to->columns + n, value);
}

/* Columns [first, last) of the output: rows of b. */
static void matmul_plain(const void *argument, size_t first, size_t last) {
    const struct int8_matmul_job *job = argument;
    size_t                        columns = job->columns;
    for (size_t n = first; n < last; n++) {
        const int8_t *b = job->b + n * columns;
        for (size_t m = 0; m < job->rows; m++) {
            const int8_t *a = job->a + m * columns;
            int32_t       sum = 0;
            for (size_t k = 0; k < columns; k++) sum += a[k] * b[k];
            if (!job->to.row_stats) {
                ((int32_t *)job->to.y)[m * job->to.columns + n] = sum;
                continue;
            }
            double added = 0;
            for (size_t o = 0; o < job->outlier_count; o++) {
                size_t k = (size_t)job->outliers[o];
                added += (double)element_of(&job->x, m * columns + k) * int8_weight(b[k], job->to.column_stats[n]);
            }
            put_output(&job->to, m, n, sum, job->outlier_count ? &(float){(float)added} : NULL);
        }
    }
}

static void mm_dequant_plain(const void *argument, size_t first, size_t last) {
    const struct int8_mm_dequant_job *job = argument;
    for (size_t m = first; m < last; m++)
        for (size_t n = 0; n < job->to.columns; n++)
            put_output(&job->to, m, n, job->sums[m * job->to.columns + n], NULL);
}

/* ── The launches ───────────────────────────────────────────────────────────────────────────────────────────────── */

/* One product. Without stats the sums are the output; x and outliers, or both NULL; bias, or NULL. */
struct product {
    const bnb_tensor *x, *a, *b;
    const bnb_tensor *row_stats, *column_stats, *outliers;
    const bnb_tensor *bias; /* f32 */
    bnb_tensor       *y;
};

static const struct buffer *buffer_of(const bnb_tensor *tensor) { return tensor ? tensor->buffer : NULL; }

static bnb_status launch(const void *request) {
    const struct product *p = request;
    size_t                m = p->y->rows, n = p->y->columns, k = p->b ? p->b->columns : 1;
    if (m > INT32_MAX || n > INT32_MAX) return fail(BNB_UNSUPPORTED, "a side of 2^31 elements or more");
    struct int8_matmul_args args = {.m = (uint32_t)m, .n = (uint32_t)n, .k = (uint32_t)k};
    const struct buffer    *y = p->y->buffer, *a = p->a->buffer;
    bnb_device             *device = y->device;
    struct binding          row_stats = reads_if(buffer_of(p->row_stats), a),
                            column_stats = reads_if(buffer_of(p->column_stats), a);
    struct binding          bias = reads_if(buffer_of(p->bias), a);
    struct launch           launch = {
        .family = "int8_matmul",
        .constants = {p->y->dtype, p->outliers != NULL, p->x ? p->x->dtype : 0, p->bias != NULL, k % VECTOR_CHUNK == 0},
        .constant_count = 5,
        .args = &args,
        .args_bytes = sizeof args,
        .groups = {1, 1, 1},
        .bytes_moved = p->a->buffer->bytes + (p->b ? p->b->buffer->bytes : 0) + y->bytes,
    };
    if (!p->b) {
        launch.kernel = "int8_mm_dequant";
        launch.groups[0] = args.m;
        launch.threads = INT8_THREADS;
        memcpy(launch.bindings, (struct binding[]){reads(a), row_stats, column_stats, bias, writes(y)},
               5 * sizeof *launch.bindings);
        launch.binding_count = 5;
        return enqueue(device, &launch);
    }
    memcpy(launch.bindings,
           (struct binding[]){reads(a), reads(p->b->buffer), row_stats, column_stats, reads_if(buffer_of(p->x), a),
                              reads_if(buffer_of(p->outliers), a), bias, writes(y)},
           8 * sizeof *launch.bindings);
    launch.binding_count = 8;
    bnb_status status = serve(device, &launch);
    if (status != BNB_UNSUPPORTED) return status;
    const struct sizes *sizes = &device->sizes;
    if (m <= sizes->vectors_most) {
        uint32_t vectors = vectors_of(m);
        launch.kernel = vectors == 1 ? "int8_vector_1" : vectors == 2 ? "int8_vector_2" : "int8_vector_4";
        launch.groups[0] = (uint32_t)ceil_div(n, VECTOR_COLUMNS);
        launch.groups[1] = (uint32_t)ceil_div(m, vectors);
        launch.threads = VECTOR_THREADS;
    } else {
        uint32_t side = side_of(sizes, m, n);
        launch.kernel = side == 64 ? "int8_tile_64" : "int8_tile_32";
        launch.groups[0] = (uint32_t)ceil_div(n, side);
        launch.groups[1] = (uint32_t)ceil_div(m, side);
        launch.threads = TILE_THREADS;
    }
    return enqueue(device, &launch);
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static struct int8_output output_to(const struct product *p, struct host *host) {
    return (struct int8_output){
        .columns = p->y->columns,
        .row_stats = p->row_stats ? host_reads(host, p->row_stats->buffer) : NULL,
        .column_stats = p->column_stats ? host_reads(host, p->column_stats->buffer) : NULL,
        .bias = p->bias ? host_reads(host, p->bias->buffer) : NULL,
        .y = host_writes(host, p->y->buffer),
        .dtype = p->y->dtype,
    };
}

static bnb_status multiply(const void *argument) {
    struct int8_matmul_job job = *(const struct int8_matmul_job *)argument;
    int32_t               *outliers = NULL;
    if (job.outliers) {
        outliers = int8_copy_outliers(job.outliers, job.columns, &job.outlier_count);
        if (!outliers) return BNB_OUT_OF_MEMORY;
        job.outliers = outliers;
    }
    bnb_status status = BNB_OK;
    if (cpu_forms()->int8_matmul)
        status = cpu_forms()->int8_matmul(&job);
    else
        parallel_for(job.to.columns, 1, matmul_plain, &job);
    free(outliers);
    return status;
}

static bnb_status mm_dequant(const void *argument) {
    const struct int8_mm_dequant_job *job = argument;
    parallel_for(job->rows, ceil_div(1 << 15, job->to.columns),
                 cpu_forms()->int8_mm_dequant ? cpu_forms()->int8_mm_dequant : mm_dequant_plain, job);
    return BNB_OK;
}

static bnb_status product_on_host(const void *request, struct host *host) {
    const struct product *p = request;
    struct int8_output    to = output_to(p, host);
    const void           *a = host_reads(host, p->a->buffer);
    if (!p->b) {
        struct int8_mm_dequant_job job = {a, p->a->rows, to};
        return perform(host, mm_dequant, &job, sizeof job);
    }
    struct int8_matmul_job job = {.a = a,
                                  .b = host_reads(host, p->b->buffer),
                                  .rows = p->a->rows,
                                  .columns = p->a->columns,
                                  .to = to};
    if (p->outliers) {
        job.x = dense_of(host, p->x);
        job.outliers = host_reads(host, p->outliers->buffer);
    }
    host->work = (double)p->a->rows * (double)p->a->columns * (double)p->y->columns;
    return perform(host, multiply, &job, sizeof job);
}

/* Makes y. */
static bnb_tensor *make(struct product p, size_t rows, size_t columns, bnb_dtype dtype, const char *function) {
    bnb_device *device = p.a->buffer->device;
    bnb_tensor *wide = NULL;
    if (!as_f32(&p.bias, &wide)) return NULL;
    p.y = tensor_new(device, dtype, rows, columns);
    count_operation(device);
    bnb_status status =
        p.y ? run(&(struct operation){function, device, launch, product_on_host, &p}) : BNB_OUT_OF_MEMORY;
    bnb_tensor_free(wide);
    if (status == BNB_OK) return p.y;
    bnb_tensor_free(p.y);
    return NULL;
}

/* ── The entries ────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Codes `b` that a matrix multiplies, which the caller calls `name`. */
static bool are_codes(const bnb_tensor *b, const char *argument, const bnb_tensor *a, const char *name,
                      const char *function) {
    if (!is_tensor(b, function, argument) ||
        !is_matrix(b, BNB_I8, b->rows, b->columns, a->buffer->device, function, argument) ||
        !is_shape(a->rows, b->rows, function, "the product"))
        return false;
    if (a->columns != b->columns)
        fail(BNB_INVALID, "%s: %s is [%zu, %zu] and %s is [%zu, %zu]: the columns must match", function, name, a->rows,
             a->columns, argument, b->rows, b->columns);
    else if (a->columns > COLUMNS_MOST)
        fail(BNB_UNSUPPORTED,
             "%s: %s has %zu columns, more than %d, whose sum could leave 32 bits: split them, and add the products",
             function, name, a->columns, COLUMNS_MOST);
    else
        return true;
    return false;
}

static bool is_codes(const bnb_tensor *a, const char *function) {
    return is_tensor(a, function, "a") && is_matrix(a, BNB_I8, a->rows, a->columns, a->buffer->device, function, "a");
}

/* A row of floats to add, or NULL. */
static bool is_bias(const bnb_tensor *bias, size_t columns, const bnb_device *device, const char *function) {
    return !bias || (is_tensor(bias, function, "bias") && is_float(bias->dtype, function, "bias") &&
                     is_matrix(bias, bias->dtype, 1, columns, device, function, "bias"));
}

/* What turns sums into an output. */
static bool are_scales(const bnb_tensor *row_stats, const bnb_tensor *column_stats, const bnb_tensor *bias, size_t rows,
                       size_t columns, bnb_dtype dtype, const bnb_device *device, const char *function) {
    return is_float(dtype, function, "dtype") &&
           is_matrix(row_stats, BNB_F32, 1, rows, device, function, "row_stats") &&
           is_matrix(column_stats, BNB_F32, 1, columns, device, function, "column_stats") &&
           is_bias(bias, columns, device, function);
}

bnb_tensor *bnb_int8_linear_matmul(const bnb_tensor *a, const bnb_tensor *b) {
    const char *function = "int8_linear_matmul";
    if (!is_codes(a, function) || !are_codes(b, "b", a, "a", function)) return NULL;
    return make((struct product){.a = a, .b = b}, a->rows, b->rows, BNB_I32, function);
}

bnb_tensor *bnb_int8_mm_dequant(const bnb_tensor *sums, const bnb_tensor *row_stats, const bnb_tensor *column_stats,
                                const bnb_tensor *bias, bnb_dtype dtype) {
    const char *function = "int8_mm_dequant";
    if (!is_tensor(sums, function, "sums")) return NULL;
    const bnb_device *device = sums->buffer->device;
    if (!is_matrix(sums, BNB_I32, sums->rows, sums->columns, device, function, "sums") ||
        !are_scales(row_stats, column_stats, bias, sums->rows, sums->columns, dtype, device, function))
        return NULL;
    return make((struct product){.a = sums, .row_stats = row_stats, .column_stats = column_stats, .bias = bias},
                sums->rows, sums->columns, dtype, function);
}

bnb_tensor *bnb_int8_scaled_mm(const bnb_tensor *a, const bnb_tensor *b, const bnb_tensor *row_stats,
                               const bnb_tensor *column_stats, const bnb_tensor *bias, bnb_dtype dtype) {
    const char *function = "int8_scaled_mm";
    if (!is_codes(a, function) || !are_codes(b, "b", a, "a", function) ||
        !are_scales(row_stats, column_stats, bias, a->rows, b->rows, dtype, a->buffer->device, function))
        return NULL;
    return make((struct product){.a = a, .b = b, .row_stats = row_stats, .column_stats = column_stats, .bias = bias},
                a->rows, b->rows, dtype, function);
}

bnb_tensor *bnb_int8_mixed_scaled_mm(const bnb_tensor *x, const bnb_tensor *a, const bnb_tensor *b,
                                     const bnb_tensor *row_stats, const bnb_tensor *column_stats,
                                     const bnb_tensor *outliers, const bnb_tensor *bias) {
    const char *function = "int8_mixed_scaled_mm";
    if (!is_tensor(x, function, "x") || !is_float(x->dtype, function, "x") || !is_codes(a, function) ||
        !are_codes(b, "b", a, "a", function))
        return NULL;
    const bnb_device *device = a->buffer->device;
    if (!is_matrix(x, x->dtype, a->rows, a->columns, device, function, "x") ||
        !are_scales(row_stats, column_stats, bias, a->rows, b->rows, x->dtype, device, function) ||
        (outliers && !is_matrix(outliers, BNB_I32, 1, a->columns, device, function, "outliers")))
        return NULL;
    return make((struct product){x, a, b, row_stats, column_stats, outliers, bias, NULL}, a->rows, b->rows, x->dtype,
                function);
}

bnb_tensor *bnb_int8_matmul(const bnb_tensor *x, const bnb_tensor *w, const bnb_tensor *stats, float threshold,
                            const bnb_tensor *bias) {
    const char *function = "int8_matmul";
    if (!is_tensor(x, function, "x") || !is_float(x->dtype, function, "x") || !is_threshold(threshold, function) ||
        !are_codes(w, "w", x, "x", function))
        return NULL;
    bnb_device *device = x->buffer->device;
    if (!is_matrix(stats, BNB_F32, 1, w->rows, device, function, "stats") || !is_bias(bias, w->rows, device, function))
        return NULL;

    /* x as codes exists only meanwhile. */
    bnb_tensor *a = tensor_new(device, BNB_I8, x->rows, x->columns),
               *row_stats = tensor_new(device, BNB_F32, 1, x->rows), *y = NULL;
    bnb_tensor *outliers = threshold ? tensor_new(device, BNB_I32, 1, x->columns) : NULL;
    bool        made = a && row_stats && (outliers || !threshold);
    if (made && (!outliers || int8_list_outliers(x, threshold, outliers) == BNB_OK) &&
        int8_quantize(&(struct int8_pass){x, threshold, outliers, false, true, row_stats, a}) == BNB_OK)
        y = make((struct product){x, a, w, row_stats, stats, outliers, bias, NULL}, x->rows, w->rows, x->dtype,
                 function);
    bnb_tensor_free(a);
    bnb_tensor_free(row_stats);
    bnb_tensor_free(outliers);
    return y;
}
