/* Layer normalisation of each row (Ba et al. 2016), and its gradients: the checks, the launches and the plain loops. */
#include <math.h>
#include <stdlib.h>

#include "launch.h"

/* ── The plain loops ────────────────────────────────────────────────────────────────────────────────────────────── */

enum direction { FORWARD, BACKWARD, BACKWARD_WEIGHT };

struct layer_norm_job {
    enum direction direction;
    struct dense   x, dy;         /* dy backward only */
    const float   *weight, *bias; /* bias forward only */
    float          eps;
    struct stats  *stats; /* of every row, where the gradient of the weight is asked for */
    void          *y;
    bnb_dtype      dtype;
};

struct stats {
    double mean, inverse; /* of the square root of variance + eps */
};

static struct stats stats_of(const struct layer_norm_job *job, size_t row) {
    size_t columns = job->x.columns;
    double sum = 0, squares = 0;
    for (size_t c = 0; c < columns; c++) sum += element_of(&job->x, row * columns + c);
    double mean = sum / (double)columns;
    for (size_t c = 0; c < columns; c++) {
        double deviation = element_of(&job->x, row * columns + c) - mean;
        squares += deviation * deviation;
    }
    return (struct stats){mean, 1 / sqrt(squares / (double)columns + job->eps)};
}

static void layer_norm_plain(const void *argument, size_t first, size_t last) {
    const struct layer_norm_job *job = argument;
    size_t                       columns = job->x.columns;
    for (size_t row = first; row < last; row++) {
        struct stats stats = stats_of(job, row);
        for (size_t c = 0; c < columns; c++) {
            double normal = (element_of(&job->x, row * columns + c) - stats.mean) * stats.inverse;
            put_element(job->y, job->dtype, row * columns + c, (float)(normal * job->weight[c] + job->bias[c]));
        }
    }
}

/* With g = dy · weight and n the normalised x: dx = (g - mean(g) - n · mean(g · n)) · inverse. */
static void layer_norm_backward_plain(const void *argument, size_t first, size_t last) {
    const struct layer_norm_job *job = argument;
    size_t                       columns = job->x.columns;
    for (size_t row = first; row < last; row++) {
        struct stats stats = stats_of(job, row);
        double       sum = 0, product = 0;
        for (size_t c = 0; c < columns; c++) {
            double g = (double)element_of(&job->dy, row * columns + c) * job->weight[c];
            sum += g;
            product += g * (element_of(&job->x, row * columns + c) - stats.mean) * stats.inverse;
        }
        for (size_t c = 0; c < columns; c++) {
            double g = (double)element_of(&job->dy, row * columns + c) * job->weight[c];
            double normal = (element_of(&job->x, row * columns + c) - stats.mean) * stats.inverse;
            double dx = (g - sum / (double)columns - normal * product / (double)columns) * stats.inverse;
            put_element(job->y, job->dtype, row * columns + c, (float)dx);
        }
    }
}

static void layer_norm_stats_plain(const void *argument, size_t first, size_t last) {
    const struct layer_norm_job *job = argument;
    for (size_t row = first; row < last; row++) job->stats[row] = stats_of(job, row);
}

/* Columns [first, last) of the weight's gradient: Σ dy · n over the rows. */
static void layer_norm_backward_weight_plain(const void *argument, size_t first, size_t last) {
    const struct layer_norm_job *job = argument;
    size_t                       columns = job->x.columns;
    for (size_t c = first; c < last; c++) {
        double sum = 0;
        for (size_t row = 0; row < job->x.rows; row++) {
            double normal = (element_of(&job->x, row * columns + c) - job->stats[row].mean) * job->stats[row].inverse;
            sum += element_of(&job->dy, row * columns + c) * normal;
        }
        ((float *)job->y)[c] = (float)sum;
    }
}

/* ── One request ────────────────────────────────────────────────────────────────────────────────────────────────── */

struct request {
    enum direction    direction;
    const bnb_tensor *x, *dy;        /* dy is NULL forward */
    const bnb_tensor *weight, *bias; /* f32; NULL where they play no part */
    float             eps;
    bnb_tensor       *y;
};

static bnb_status layer_norm(const void *argument) {
    struct layer_norm_job job = *(const struct layer_norm_job *)argument;
    size_t                rows = job.x.rows, columns = job.x.columns, grain = ceil_div(1 << 13, columns);
    if (job.direction != BACKWARD_WEIGHT) {
        parallel_for(rows, grain, job.direction == FORWARD ? layer_norm_plain : layer_norm_backward_plain, &job);
        return BNB_OK;
    }
    job.stats = malloc(rows * sizeof *job.stats);
    if (!job.stats)
        return fail(BNB_OUT_OF_MEMORY,
                    "layer_norm_backward_weight: no memory for %zu rows; free something and try again", rows);
    parallel_for(rows, grain, layer_norm_stats_plain, &job);
    parallel_for(columns, ceil_div(1 << 13, rows), layer_norm_backward_weight_plain, &job);
    free(job.stats);
    return BNB_OK;
}

static bnb_status layer_norm_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct layer_norm_job job = {
        .direction = r->direction,
        .x = dense_of(host, r->x),
        .eps = r->eps,
        .y = host_writes(host, r->y->buffer),
        .dtype = r->y->dtype,
    };
    if (r->dy) job.dy = dense_of(host, r->dy);
    if (r->weight) job.weight = host_reads(host, r->weight->buffer);
    if (r->bias) job.bias = host_reads(host, r->bias->buffer);
    return perform(host, layer_norm, &job, sizeof job);
}

/* The rows of a part of the weight's gradient, at least. */
enum { ROWS_LEAST = 32 };

/* The weight's gradient: the rows' stats, sums over parts of the rows, so that few columns fill the GPU too, and their
 * sum. */
static bnb_status launch_weight(const struct request *r, struct launch *launch) {
    bnb_device    *device = r->x->buffer->device;
    size_t         rows = r->x->rows, columns = r->x->columns, across = ceil_div(columns, LAYER_NORM_THREADS);
    size_t         wanted = ceil_div(device->sizes.tiles_wanted, across), most = rows / ROWS_LEAST;
    size_t         parts = wanted < most ? wanted : most ? most : 1;
    struct buffer *stats = buffer_new(device, rows * 2 * sizeof(float));
    struct buffer *sums = stats && parts > 1 ? buffer_new(device, parts * columns * sizeof(float)) : NULL;
    bnb_status     status = !stats || (parts > 1 && !sums) ? bnb_last_status() : BNB_OK;
    if (status == BNB_OK) {
        launch->bindings[4] = writes(stats);
        launch->bindings[5] = unused(r->y->buffer);
        status = enqueue(device, launch);
        launch->bindings[4] = reads(stats);
        launch->bindings[5] = writes(sums ? sums : r->y->buffer);
        launch->kernel = "layer_norm_backward_weight";
        launch->groups[0] = (uint32_t)across;
        launch->groups[1] = (uint32_t)parts;
        if (status == BNB_OK) status = enqueue(device, launch);
        if (status == BNB_OK && sums) status = launch_sum(sums, (uint32_t)parts, NULL, r->y);
    }
    if (sums) buffer_release(sums); /* the driver keeps both until the work is done */
    if (stats) buffer_release(stats);
    return status;
}

/* Constants: the dtypes of x, of dy and of y. Every kernel has x, dy, weight, bias, the rows' stats and y bound,
 * whether it looks at them or not. */
static bnb_status launch(const void *request) {
    const struct request *r = request;
    size_t                rows = r->x->rows, columns = r->x->columns;
    if (rows > INT32_MAX || columns > INT32_MAX) return fail(BNB_UNSUPPORTED, "a side of 2^31 elements or more");
    static const char *const kernels[] = {"layer_norm", "layer_norm_backward", "layer_norm_stats"}; /* by direction */
    bnb_device              *device = r->x->buffer->device;
    struct layer_norm_args   args = {.rows = (uint32_t)rows, .columns = (uint32_t)columns, .eps = r->eps};
    const struct buffer     *x = r->x->buffer;
    struct launch            launch = {
        .family = "layer_norm",
        .kernel = kernels[r->direction],
        .constants = {r->x->dtype, r->dy ? r->dy->dtype : r->x->dtype, r->y->dtype},
        .constant_count = 3,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {reads(x), reads_if(r->dy ? r->dy->buffer : NULL, x),
                     reads_if(r->weight ? r->weight->buffer : NULL, x), reads_if(r->bias ? r->bias->buffer : NULL, x),
                     unused(x), writes(r->y->buffer)},
        .binding_count = 6,
        .groups = {(uint32_t)rows, 1, 1},
        .threads = LAYER_NORM_THREADS,
        .bytes_moved = r->x->buffer->bytes + (r->dy ? r->dy->buffer->bytes : 0) + r->y->buffer->bytes,
    };
    if (r->direction != BACKWARD_WEIGHT) return enqueue(device, &launch);

    return launch_weight(r, &launch);
}

static bool is_affine(const bnb_tensor *tensor, const bnb_tensor *x, const char *function, const char *argument) {
    if (!is_tensor(tensor, function, argument) || !is_float(tensor->dtype, function, argument) ||
        !on_device(tensor->buffer, x->buffer->device, function, argument))
        return false;
    if (tensor->rows == 1 && tensor->columns == x->columns) return true;
    fail(BNB_INVALID, "%s: %s is [%zu, %zu], expected [1, %zu], an element for each column of x", function, argument,
         tensor->rows, tensor->columns, x->columns);
    return false;
}

static bool is_request(const struct request *r, const char *function) {
    if (!is_tensor(r->x, function, "x") || !is_float(r->x->dtype, function, "x")) return false;
    if (r->direction != FORWARD) {
        if (!is_tensor(r->dy, function, "dy") || !is_float(r->dy->dtype, function, "dy") ||
            !on_device(r->dy->buffer, r->x->buffer->device, function, "dy"))
            return false;
        if (r->dy->rows != r->x->rows || r->dy->columns != r->x->columns)
            return fail(BNB_INVALID, "%s: dy is [%zu, %zu] and x is [%zu, %zu]: the shapes must match", function,
                        r->dy->rows, r->dy->columns, r->x->rows, r->x->columns),
                   false;
    }
    if (r->direction != BACKWARD_WEIGHT && !is_affine(r->weight, r->x, function, "weight")) return false;
    if (r->direction == FORWARD && !is_affine(r->bias, r->x, function, "bias")) return false;
    if (isfinite(r->eps) && r->eps >= 0) return true;
    fail(BNB_INVALID, "%s: eps is %g, expected a finite number of at least 0", function, (double)r->eps);
    return false;
}

static bnb_tensor *normalise(struct request r, const char *function, bnb_dtype dtype, size_t rows) {
    bnb_device *device = r.x->buffer->device;
    bnb_tensor *weight = NULL, *bias = NULL;
    if (as_f32(&r.weight, &weight) && as_f32(&r.bias, &bias)) r.y = tensor_new(device, dtype, rows, r.x->columns);
    count_operation(device);
    bnb_status status =
        r.y ? run(&(struct operation){function, device, launch, layer_norm_on_host, &r}) : BNB_OUT_OF_MEMORY;
    bnb_tensor_free(weight);
    bnb_tensor_free(bias);
    if (status == BNB_OK) return r.y;
    bnb_tensor_free(r.y);
    return NULL;
}

bnb_tensor *bnb_layer_norm(const bnb_tensor *x, const bnb_tensor *weight, const bnb_tensor *bias, float eps) {
    struct request r = {.direction = FORWARD, .x = x, .weight = weight, .bias = bias, .eps = eps};
    return is_request(&r, "layer_norm") ? normalise(r, "layer_norm", x->dtype, x->rows) : NULL;
}

bnb_tensor *bnb_layer_norm_backward(const bnb_tensor *dy, const bnb_tensor *x, const bnb_tensor *weight, float eps) {
    struct request r = {.direction = BACKWARD, .x = x, .dy = dy, .weight = weight, .eps = eps};
    return is_request(&r, "layer_norm_backward") ? normalise(r, "layer_norm_backward", dy->dtype, x->rows) : NULL;
}

bnb_tensor *bnb_layer_norm_backward_weight(const bnb_tensor *dy, const bnb_tensor *x, float eps) {
    struct request r = {.direction = BACKWARD_WEIGHT, .x = x, .dy = dy, .eps = eps};
    return is_request(&r, "layer_norm_backward_weight") ? normalise(r, "layer_norm_backward_weight", BNB_F32, 1) : NULL;
}
