/* What is done to each element by itself: a cast, a sum, a product, a power of e. One loop, one launch and one set of
 * checks for those of one tensor, and for those of two; metal/elementwise_rule.h has the arithmetic. */
#include <math.h>

#include "launch.h"

#define REAL   float
#define EXP(x) expf(x)
#define RULE   static inline
#include "../../metal/elementwise_rule.h"

/* ── Of one tensor ──────────────────────────────────────────────────────────────────────────────────────────────── */

static void unary_plain(const void *argument, size_t first, size_t last) {
    const struct unary_job *job = argument;
    for (size_t i = first; i < last; i++)
        put_element(job->y, job->dtype, i, unary(job->kind, element_of(&job->x, i), job->scale));
}

struct unary_request {
    const bnb_tensor *x;
    uint32_t          kind;
    float             scale;
    bnb_tensor       *y;
};

static bnb_status apply_unary(const void *argument) {
    const struct unary_job *job = argument;
    void (*form)(const void *, size_t, size_t) = job->kind == UNARY_COPY ? cpu_forms()->cast : cpu_forms()->unary;
    parallel_for(job->x.rows * job->x.columns, 1 << 15, form ? form : unary_plain, job);
    return BNB_OK;
}

static bnb_status unary_on_host(const void *request, struct host *host) {
    const struct unary_request *r = request;
    struct unary_job job = {dense_of(host, r->x), host_writes(host, r->y->buffer), r->y->dtype, r->kind, r->scale};
    return perform(host, apply_unary, &job, sizeof job);
}

static struct elementwise_args args_of(const bnb_tensor *y, float scale) {
    size_t elements = y->rows * y->columns;
    return (struct elementwise_args){(uint32_t)elements, (uint32_t)(elements >> 32), scale};
}

static bnb_status launch_unary(const void *request) {
    const struct unary_request *r = request;
    struct elementwise_args     args = args_of(r->y, r->scale);
    return enqueue(r->x->buffer->device,
                   &(struct launch){
                       .family = "elementwise",
                       .kernel = "unary",
                       .constants = {r->kind, r->x->dtype, r->y->dtype},
                       .constant_count = 3,
                       .args = &args,
                       .args_bytes = sizeof args,
                       .bindings = {reads(r->x->buffer), writes(r->y->buffer)},
                       .binding_count = 2,
                       .groups = {groups_for(r->y->rows * r->y->columns, ELEMENTWISE_THREADS * 8), 1, 1},
                       .threads = ELEMENTWISE_THREADS,
                       .bytes_moved = r->x->buffer->bytes + r->y->buffer->bytes,
                   });
}

/* y = the rule of x, which is a float tensor, in `dtype`. */
static bnb_tensor *unary_of(const char *name, uint32_t kind, const bnb_tensor *x, float scale, bnb_dtype dtype) {
    bnb_device *device = x->buffer->device;
    bnb_tensor *y = tensor_new(device, dtype, x->rows, x->columns);
    if (!y) return NULL;
    count_operation(device);
    struct unary_request r = {x, kind, scale, y};
    if (run(&(struct operation){name, device, launch_unary, unary_on_host, &r}) == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}

static bool is_operand(const bnb_tensor *x, const char *function, const char *argument) {
    return is_tensor(x, function, argument) && is_float(x->dtype, function, argument);
}

bnb_tensor *bnb_cast(const bnb_tensor *x, bnb_dtype dtype) {
    if (!is_operand(x, "cast", "x") || !is_float(dtype, "cast", "dtype")) return NULL;
    return unary_of("cast", UNARY_COPY, x, 1, dtype);
}

bool as_f32(const bnb_tensor **tensor, bnb_tensor **made) {
    if (!*tensor || (*tensor)->dtype == BNB_F32) return true;
    *made = bnb_cast(*tensor, BNB_F32);
    *tensor = *made;
    return *made;
}

bnb_tensor *bnb_exp(const bnb_tensor *x) {
    return is_operand(x, "exp", "x") ? unary_of("exp", UNARY_EXP, x, 1, x->dtype) : NULL;
}

bnb_tensor *bnb_sigmoid(const bnb_tensor *x) {
    return is_operand(x, "sigmoid", "x") ? unary_of("sigmoid", UNARY_SIGMOID, x, 1, x->dtype) : NULL;
}

/* ── Of two ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static void binary_plain(const void *argument, size_t first, size_t last) {
    const struct binary_job *job = argument;
    for (size_t i = first; i < last; i++)
        put_element(job->y, job->a.dtype, i,
                    binary(job->kind, element_of(&job->a, i), element_of(&job->b, i), job->scale));
}

struct binary_request {
    const bnb_tensor *a, *b;
    uint32_t          kind;
    float             scale;
    bnb_tensor       *y;
};

static bnb_status apply_binary(const void *argument) {
    const struct binary_job *job = argument;
    parallel_for(job->b.rows * job->b.columns, 1 << 15, cpu_forms()->binary ? cpu_forms()->binary : binary_plain, job);
    return BNB_OK;
}

static bnb_status binary_on_host(const void *request, struct host *host) {
    const struct binary_request *r = request;
    struct binary_job job = {dense_of(host, r->a), dense_of(host, r->b), host_writes(host, r->y->buffer), r->kind,
                             r->scale};
    return perform(host, apply_binary, &job, sizeof job);
}

static bnb_status launch_binary(const void *request) {
    const struct binary_request *r = request;
    struct elementwise_args      args = args_of(r->y, r->scale);
    return enqueue(r->y->buffer->device,
                   &(struct launch){
                       .family = "elementwise",
                       .kernel = "binary",
                       .constants = {r->kind, r->a->dtype, r->b->dtype},
                       .constant_count = 3,
                       .args = &args,
                       .args_bytes = sizeof args,
                       .bindings = {reads(r->a->buffer), reads(r->b->buffer), writes(r->y->buffer)},
                       .binding_count = 3,
                       .groups = {groups_for(r->y->rows * r->y->columns, ELEMENTWISE_THREADS * 8), 1, 1},
                       .threads = ELEMENTWISE_THREADS,
                       .bytes_moved = r->a->buffer->bytes + r->b->buffer->bytes + r->y->buffer->bytes,
                   });
}

/* y = the rule of a and b, in a's dtype. */
static bnb_tensor *binary_of(const char *name, uint32_t kind, const bnb_tensor *a, const bnb_tensor *b, float scale) {
    if (!is_operand(a, name, "a") || !is_operand(b, name, "b")) return NULL;
    bnb_device *device = b->buffer->device;
    if (!on_device(a->buffer, device, name, "a")) return NULL;
    if (a->rows != b->rows || a->columns != b->columns)
        return refuse(BNB_INVALID, "%s: a is [%zu, %zu] and b is [%zu, %zu]: the shapes must match", name, a->rows,
                      a->columns, b->rows, b->columns);
    bnb_tensor *y = tensor_new(device, a->dtype, b->rows, b->columns);
    if (!y) return NULL;
    count_operation(device);
    struct binary_request r = {a, b, kind, scale, y};
    if (run(&(struct operation){name, device, launch_binary, binary_on_host, &r}) == BNB_OK) return y;
    bnb_tensor_free(y);
    return NULL;
}

bnb_tensor *bnb_add(const bnb_tensor *a, const bnb_tensor *b, float scale) {
    if (!is_operand(b, "add", "b")) return NULL;
    if (!isfinite(scale)) return refuse(BNB_INVALID, "add: scale is %g, expected a finite number", (double)scale);
    return a ? binary_of("add", BINARY_ADD, a, b, scale) : unary_of("scale", UNARY_SCALE, b, scale, b->dtype);
}

bnb_tensor *bnb_mul(const bnb_tensor *a, const bnb_tensor *b) { return binary_of("mul", BINARY_MULTIPLY, a, b, 1); }
