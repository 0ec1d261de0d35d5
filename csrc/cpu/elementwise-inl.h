/* What is done to each element by itself, and softmax, which is a power of e over a row's sum of them. */
#include "simd.h"

#define REAL   floats
#define EXP(x) exponential(x)
#define RULE   INLINE
#include "../../metal/elementwise_rule.h"

/* Elements [i, i + count) of a vector's worth, the others zeros. */
INLINE floats load_part(const struct dense *x, size_t i, size_t count) {
    floats v = {0};
    for (size_t j = 0; j < count; j++) v[j] = element_of(x, i + j);
    return v;
}

INLINE void store_part(void *y, bnb_dtype dtype, size_t i, floats v, size_t count) {
    for (size_t j = 0; j < count; j++) put_element(y, dtype, i + j, v[j]);
}

INLINE void unary_run(const struct unary_job *job, size_t first, size_t last, bnb_dtype dtype, uint32_t kind) {
    size_t i = first;
    for (; i + WIDTH <= last; i += WIDTH) store(job->y, dtype, i, unary(kind, load(job->x.data, dtype, i), job->scale));
    if (i < last) store_part(job->y, dtype, i, unary(kind, load_part(&job->x, i, last - i), job->scale), last - i);
}

INLINE void unary_as(const struct unary_job *job, size_t first, size_t last, uint32_t kind) {
    switch (job->dtype) {
    case BNB_F16: unary_run(job, first, last, BNB_F16, kind); break;
    case BNB_BF16: unary_run(job, first, last, BNB_BF16, kind); break;
    default: unary_run(job, first, last, BNB_F32, kind); break;
    }
}

/* All but copies, which cast makes: y is in x's dtype. */
static void unary_form(const void *unary_job, size_t first, size_t last) {
    const struct unary_job *job = unary_job;
    switch (job->kind) {
    case UNARY_EXP: unary_as(job, first, last, UNARY_EXP); break;
    case UNARY_SIGMOID: unary_as(job, first, last, UNARY_SIGMOID); break;
    default: unary_as(job, first, last, UNARY_SCALE); break;
    }
}

INLINE void binary_run(const struct binary_job *job, size_t first, size_t last, bnb_dtype dtype, bnb_dtype other,
                       uint32_t kind) {
    size_t i = first;
    for (; i + WIDTH <= last; i += WIDTH)
        store(job->y, dtype, i, binary(kind, load(job->a.data, dtype, i), load(job->b.data, other, i), job->scale));
    if (i == last) return;
    floats a = load_part(&job->a, i, last - i), b = load_part(&job->b, i, last - i);
    store_part(job->y, dtype, i, binary(kind, a, b, job->scale), last - i);
}

INLINE void binary_as(const struct binary_job *job, size_t first, size_t last, bnb_dtype dtype, bnb_dtype other) {
    if (job->kind == BINARY_MULTIPLY)
        binary_run(job, first, last, dtype, other, BINARY_MULTIPLY);
    else
        binary_run(job, first, last, dtype, other, BINARY_ADD);
}

static void binary_form(const void *binary_job, size_t first, size_t last) {
    const struct binary_job *job = binary_job;
    bnb_dtype                a = job->a.dtype, b = job->b.dtype;
    if (a != b)
        binary_as(job, first, last, a, b); /* looked at for each vector */
    else if (a == BNB_F16)
        binary_as(job, first, last, BNB_F16, BNB_F16);
    else if (a == BNB_BF16)
        binary_as(job, first, last, BNB_BF16, BNB_BF16);
    else
        binary_as(job, first, last, BNB_F32, BNB_F32);
}

/* The largest of a row; NaN where there is one. */
INLINE float top_of(const struct dense *x, size_t at, bnb_dtype dtype) {
    floats tops = (floats)-__builtin_inff();
    size_t c = 0;
    for (; c + WIDTH <= x->columns; c += WIDTH) {
        floats v = load(x->data, dtype, at + c);
        tops = v <= tops ? tops : v;
    }
    float top = -__builtin_inff();
    for (size_t j = 0; j < WIDTH; j++) top = tops[j] <= top ? top : tops[j];
    for (; c < x->columns; c++) {
        float v = element_of(x, at + c);
        top = v <= top ? top : v;
    }
    return top;
}

INLINE void softmax_row(const struct softmax_job *job, size_t at, bnb_dtype dtype) {
    size_t columns = job->x.columns, c = 0;
    float  top = top_of(&job->x, at, dtype);
    floats sums = {0};
    for (; c + WIDTH <= columns; c += WIDTH) sums += exponential(load(job->x.data, dtype, at + c) - top);
    float  total = sum(sums);
    floats rest = exponential(load_part(&job->x, at + c, columns - c) - top);
    for (size_t j = 0; j < columns - c; j++) total += rest[j];
    float inverse = 1 / total;
    for (size_t i = 0; i < c; i += WIDTH)
        store(job->y, dtype, at + i, exponential(load(job->x.data, dtype, at + i) - top) * inverse);
    store_part(job->y, dtype, at + c, rest * inverse, columns - c);
}

static void softmax_form(const void *softmax_job, size_t first, size_t last) {
    const struct softmax_job *job = softmax_job;
    for (size_t row = first; row < last; row++) switch (job->x.dtype) {
        case BNB_F16: softmax_row(job, row * job->x.columns, BNB_F16); break;
        case BNB_BF16: softmax_row(job, row * job->x.columns, BNB_BF16); break;
        default: softmax_row(job, row * job->x.columns, BNB_F32); break;
        }
}
