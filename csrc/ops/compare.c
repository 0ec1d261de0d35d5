/* How far one tensor is from another: the checks, the launch and the plain loop. */
#include <math.h>
#include <stdlib.h>

#include "launch.h"

enum {
    PIECE = 1 << 14, /* elements that are summed up on their own, so that the sum does not depend on the threads */
    RUN = 256,       /* elements that are turned into fp32 at once */
    LANES = 8,       /* sums that a run goes into side by side, so that the compiler can keep them in registers */
};

struct piece {
    double squares, squared_errors;
    float  largest_error;
    size_t finite;
};

struct compare_job {
    struct dense  a, b;
    float        *y;
    struct piece *pieces;
};

static void load_run(const struct dense *x, size_t begin, size_t count, float *to) {
    const uint16_t *halves = x->data;
    if (x->dtype == BNB_F32)
        memcpy(to, (const float *)x->data + begin, count * sizeof *to);
    else if (x->dtype == BNB_F16)
        for (size_t i = 0; i < count; i++) to[i] = f16_to_f32(halves[begin + i]);
    else
        for (size_t i = 0; i < count; i++) to[i] = bf16_to_f32(halves[begin + i]);
    for (size_t i = count; i < RUN; i++) to[i] = 0;
}

/* Adds a run to a piece. Places that are not finite are made equal, so that they add nothing. */
static void add_run(const float *a, const float *b, struct piece *piece) {
    double squares[LANES] = {0}, errors[LANES] = {0};
    float  largest[LANES] = {0};
    size_t finite = 0;
    for (size_t i = 0; i < RUN; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++) {
            float    x = a[i + lane], y = b[i + lane];
            uint32_t ok = (float_bits(x) & 0x7f800000) != 0x7f800000 && (float_bits(y) & 0x7f800000) != 0x7f800000;
            finite += ok;
            x = ok ? x : 0;
            float error = fabsf(x - (ok ? y : 0));
            squares[lane] += (double)x * x;
            errors[lane] += (double)error * error;
            largest[lane] = error > largest[lane] ? error : largest[lane];
        }
    for (size_t lane = 0; lane < LANES; lane++) {
        piece->squares += squares[lane];
        piece->squared_errors += errors[lane];
        piece->largest_error = fmaxf(piece->largest_error, largest[lane]);
    }
    piece->finite += finite;
}

static void compare_pieces(const void *argument, size_t first, size_t last) {
    const struct compare_job *job = argument;
    size_t                    elements = job->a.rows * job->a.columns;
    float                     a[RUN], b[RUN];
    for (size_t p = first; p < last; p++) {
        struct piece piece = {0};
        size_t       end = (p + 1) * PIECE < elements ? (p + 1) * PIECE : elements;
        for (size_t begin = p * PIECE; begin < end; begin += RUN) {
            size_t count = end - begin < RUN ? end - begin : RUN;
            load_run(&job->a, begin, count, a);
            load_run(&job->b, begin, count, b);
            add_run(a, b, &piece);
            piece.finite -= RUN - count; /* the zeros behind the end */
        }
        job->pieces[p] = piece;
    }
}

struct request {
    const bnb_tensor *a, *b, *y;
};

static bnb_status compare(const void *argument) {
    struct compare_job job = *(const struct compare_job *)argument;
    size_t             elements = job.a.rows * job.a.columns, pieces = ceil_div(elements, PIECE);
    job.pieces = malloc(pieces * sizeof *job.pieces);
    if (!job.pieces) return fail(BNB_OUT_OF_MEMORY, "compare: no memory for %zu sums", pieces);
    parallel_for(pieces, 4, compare_pieces, &job);

    struct piece sum = {0};
    for (size_t p = 0; p < pieces; p++) {
        sum.squares += job.pieces[p].squares;
        sum.squared_errors += job.pieces[p].squared_errors;
        sum.largest_error = fmaxf(sum.largest_error, job.pieces[p].largest_error);
        sum.finite += job.pieces[p].finite;
    }
    free(job.pieces);
    double count = sum.finite ? (double)sum.finite : 1;
    job.y[0] = (float)sqrt(sum.squares / count);
    job.y[1] = (float)sqrt(sum.squared_errors / count);
    job.y[2] = sum.largest_error;
    job.y[3] = (float)(elements - sum.finite);
    return BNB_OK;
}

static bnb_status compare_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct compare_job    job = {dense_of(host, r->a), dense_of(host, r->b), host_writes(host, r->y->buffer), NULL};
    return perform(host, compare, &job, sizeof job);
}

/* Two kernels: sums of each threadgroup's elements, then the results of the sums. */
static bnb_status launch(const void *request) {
    const bnb_tensor   *a = ((const struct request *)request)->a, *b = ((const struct request *)request)->b;
    const bnb_tensor   *y = ((const struct request *)request)->y;
    bnb_device         *device = a->buffer->device;
    size_t              elements = a->rows * a->columns;
    uint32_t            groups = groups_for(elements, COMPARE_THREADS * 8);
    struct compare_args args = {(uint32_t)elements, (uint32_t)(elements >> 32), groups};
    struct buffer      *parts = buffer_new(device, (size_t)args.parts * COMPARE_SUMS_BYTES);
    if (!parts) return bnb_last_status();
    struct launch launch = {
        .family = "compare",
        .kernel = "compare",
        .constants = {a->dtype, b->dtype},
        .constant_count = 2,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {reads(a->buffer), reads(b->buffer), writes(parts)},
        .binding_count = 3,
        .groups = {args.parts, 1, 1},
        .threads = COMPARE_THREADS,
        .bytes_moved = a->buffer->bytes + b->buffer->bytes,
    };
    bnb_status status = enqueue(device, &launch);
    if (status == BNB_OK) {
        launch.kernel = "compare_finish";
        launch.bindings[0] = reads(parts);
        launch.bindings[1] = writes(y->buffer);
        launch.binding_count = 2;
        launch.groups[0] = 1;
        launch.bytes_moved = parts->bytes;
        status = enqueue(device, &launch);
    }
    buffer_release(parts);
    return status;
}

bnb_tensor *bnb_compare(const bnb_tensor *a, const bnb_tensor *b) {
    if (!is_tensor(a, "compare", "a") || !is_float(a->dtype, "compare", "a") || !is_tensor(b, "compare", "b") ||
        !is_float(b->dtype, "compare", "b") || !on_device(b->buffer, a->buffer->device, "compare", "b"))
        return NULL;
    if (a->rows != b->rows || a->columns != b->columns)
        return refuse(BNB_INVALID, "compare: b is [%zu, %zu], expected [%zu, %zu] as a is", b->rows, b->columns,
                      a->rows, a->columns);
    bnb_tensor *y = tensor_new(a->buffer->device, BNB_F32, 1, 4);
    if (!y) return NULL;
    count_operation(a->buffer->device);
    if (run(&(struct operation){"compare", y->buffer->device, launch, compare_on_host, &(struct request){a, b, y}}) ==
        BNB_OK)
        return y;
    bnb_tensor_free(y);
    return NULL;
}
