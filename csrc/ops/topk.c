/* The largest elements of each row, and a mixture's choice of experts by them: the checks, the launches and the
 * loops. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launch.h"

/* Most elements of a row that are kept: more are a sort, which is not what this is for. */
enum { TOPK_MOST = 1024 };

struct topk_job {
    struct dense x;
    size_t       count;
    bool         routes, normalised;
    int32_t     *y;
};

/* What orders elements: NaN comes after all else. */
static inline float key_of(float value) { return isnan(value) ? -INFINITY : value; }

struct candidate {
    float   key;
    int32_t index;
};

/* Whether a comes after b. */
static inline bool after(struct candidate a, struct candidate b) {
    return a.key < b.key || (a.key == b.key && a.index > b.index);
}

/* Moves an element of a heap, whose top comes last of all, down to its place. */
static void sift(struct candidate *heap, size_t at, size_t count) {
    struct candidate moving = heap[at];
    for (size_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && after(heap[child + 1], heap[child])) child++;
        if (!after(heap[child], moving)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

static int by_order(const void *a, const void *b) {
    struct candidate first = *(const struct candidate *)a, second = *(const struct candidate *)b;
    return after(first, second) ? 1 : -1; /* no two are the same */
}

static void largest(const struct dense *x, size_t row, size_t count, struct candidate *heap) {
    size_t columns = x->columns, from = row * columns;
    for (size_t i = 0; i < count; i++) heap[i] = (struct candidate){key_of(element_of(x, from + i)), (int32_t)i};
    for (size_t i = count / 2; i-- > 0;) sift(heap, i, count);
    for (size_t c = count; c < columns; c++) {
        struct candidate next = {key_of(element_of(x, from + c)), (int32_t)c};
        if (!after(heap[0], next)) continue;
        heap[0] = next;
        sift(heap, 0, count);
    }
    qsort(heap, count, sizeof *heap, by_order);
}

/* In place of values: their share of the softmax over the row, or among themselves. */
static void shares(const struct dense *x, size_t row, size_t count, bool normalised, const struct candidate *chosen,
                   float *out) {
    double total = 0;
    if (normalised)
        for (size_t i = 0; i < count; i++) total += exp((double)chosen[i].key - chosen[0].key);
    else
        for (size_t c = 0; c < x->columns; c++)
            total += exp((double)key_of(element_of(x, row * x->columns + c)) - chosen[0].key);
    for (size_t i = 0; i < count; i++) out[i] = (float)(exp((double)chosen[i].key - chosen[0].key) / total);
}

static void topk_rows(const void *argument, size_t first, size_t last) {
    const struct topk_job *job = argument;
    struct candidate       heap[TOPK_MOST];
    for (size_t row = first; row < last; row++) {
        int32_t *indices = job->y + row * 2 * job->count;
        float    values[TOPK_MOST];
        largest(&job->x, row, job->count, heap);
        for (size_t i = 0; i < job->count; i++) {
            indices[i] = heap[i].index;
            values[i] = element_of(&job->x, row * job->x.columns + (size_t)heap[i].index);
        }
        if (job->routes) shares(&job->x, row, job->count, job->normalised, heap, values);
        memcpy(indices + job->count, values, job->count * sizeof *values);
    }
}

struct request {
    const bnb_tensor *x;
    size_t            count;
    bool              routes, normalised;
    bnb_tensor       *y;
};

static bnb_status topk(const void *argument) {
    const struct topk_job *job = argument;
    parallel_for(job->x.rows, ceil_div(1 << 15, job->x.columns), topk_rows, job);
    return BNB_OK;
}

static bnb_status topk_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct topk_job job = {dense_of(host, r->x), r->count, r->routes, r->normalised, host_writes(host, r->y->buffer)};
    return perform(host, topk, &job, sizeof job);
}

/* Rows are gone through in parts where they are too few to fill a GPU, as those of logits are. A part is worth a
 * threadgroup from so many columns on. */
enum { PART_COLUMNS = 2048, PARTS_MOST = 64, PART_COUNT_MOST = 64 };

static struct topk_args args_of(const struct request *r) {
    struct topk_args args = {(uint32_t)r->x->columns, (uint32_t)r->count, 0, 1};
    size_t           columns = r->x->columns, parts = columns / PART_COLUMNS;
    if (parts > PARTS_MOST) parts = PARTS_MOST;
    if (r->routes || r->count > PART_COUNT_MOST || parts < 2) return args;
    args.part = (uint32_t)(ceil_div(ceil_div(columns, parts), TOPK_THREADS) * TOPK_THREADS);
    args.parts = (uint32_t)ceil_div(columns, args.part);
    return args;
}

static bnb_status launch(const void *request) {
    const struct request *r = request;
    bnb_device           *device = r->x->buffer->device;
    size_t                rows = r->x->rows;
    if (rows > INT32_MAX) return fail(BNB_UNSUPPORTED, "2^31 rows or more");
    struct topk_args args = args_of(r);
    if (rows > UINT16_MAX) args.parts = 1; /* a grid's second side */
    bool           parted = args.parts > 1;
    struct buffer *found = parted ? buffer_new(device, rows * args.parts * r->count * 2 * sizeof(uint32_t)) : NULL;
    if (parted && !found) return BNB_OUT_OF_MEMORY;
    struct launch launch = {
        .family = "topk",
        .kernel = "topk_part",
        .constants = {r->x->dtype, r->routes, r->normalised, parted},
        .constant_count = 4,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {reads(r->x->buffer), parted ? writes(found) : unused(r->x->buffer)},
        .binding_count = 2,
        .groups = {args.parts, (uint32_t)rows, 1},
        .threads = TOPK_THREADS,
        .bytes_moved = r->count * r->x->buffer->bytes,
    };
    bnb_status status = parted ? enqueue(device, &launch) : BNB_OK;
    if (status == BNB_OK) {
        launch.kernel = "topk";
        launch.bindings[1] = writes(r->y->buffer);
        launch.bindings[2] = reads_if(found, r->x->buffer);
        launch.binding_count = 3;
        launch.groups[0] = (uint32_t)rows, launch.groups[1] = 1;
        status = enqueue(device, &launch);
    }
    buffer_release(found); /* the driver keeps it until the work is done */
    return status;
}

static bnb_tensor *choose(const bnb_tensor *x, size_t count, bool routes, bool normalised, const char *function) {
    if (!is_tensor(x, function, "x") || !is_float(x->dtype, function, "x")) return NULL;
    if (!count || count > TOPK_MOST || count > x->columns)
        return refuse(BNB_INVALID, "%s: count is %zu, expected 1 to %zu", function, count,
                      x->columns < TOPK_MOST ? x->columns : TOPK_MOST);
    if (x->columns > INT32_MAX) return refuse(BNB_UNSUPPORTED, "%s: rows of 2^31 elements or more", function);
    bnb_device *device = x->buffer->device;
    bnb_tensor *y = tensor_new(device, BNB_I32, x->rows, 2 * count);
    if (!y) return NULL;
    count_operation(device);
    struct request r = {x, count, routes, normalised, y};
    if (run(&(struct operation){function, device, launch, topk_on_host, &r}) == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}

bnb_tensor *bnb_topk(const bnb_tensor *x, size_t count) { return choose(x, count, false, false, "topk"); }

bnb_tensor *bnb_route(const bnb_tensor *x, size_t count, int32_t normalised) {
    return choose(x, count, true, normalised != 0, "route");
}
