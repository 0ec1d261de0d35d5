/* Casting among the three float dtypes. */
#include "simd.h"

/* Elements [first, last) of x to y[0…]. */
INLINE void cast_run(const struct dense *x, bnb_dtype from, size_t first, size_t last, void *y, bnb_dtype to) {
    size_t i = first;
    for (; i + WIDTH <= last; i += WIDTH) store(y, to, i - first, load(x->data, from, i));
    for (; i < last; i++) put_element(y, to, i - first, element_of(x, i));
}

INLINE void cast_from(const struct unary_job *job, size_t first, size_t last, bnb_dtype from) {
    char *y = job->y;
    switch (job->dtype) {
    case BNB_F16: cast_run(&job->x, from, first, last, y + first * 2, BNB_F16); break;
    case BNB_BF16: cast_run(&job->x, from, first, last, y + first * 2, BNB_BF16); break;
    default: cast_run(&job->x, from, first, last, y + first * 4, BNB_F32); break;
    }
}

static void cast(const void *unary_job, size_t first, size_t last) {
    const struct unary_job *job = unary_job;
    switch (job->x.dtype) {
    case BNB_F16: cast_from(job, first, last, BNB_F16); break;
    case BNB_BF16: cast_from(job, first, last, BNB_BF16); break;
    default: cast_from(job, first, last, BNB_F32); break;
    }
}

/* Elements [first, last) of x to y[0…]. */
static void widen(const struct dense *x, size_t first, size_t last, float *y) {
    switch (x->dtype) {
    case BNB_F16: cast_run(x, BNB_F16, first, last, y, BNB_F32); break;
    case BNB_BF16: cast_run(x, BNB_BF16, first, last, y, BNB_F32); break;
    default: cast_run(x, BNB_F32, first, last, y, BNB_F32); break;
    }
}

/* x[0, count) to y[at…]. */
static void narrow_run(const float *x, size_t count, void *y, bnb_dtype dtype, size_t at) {
    struct dense dense = {.data = x, .dtype = BNB_F32};
    switch (dtype) {
    case BNB_F16: cast_run(&dense, BNB_F32, 0, count, (uint16_t *)y + at, BNB_F16); break;
    case BNB_BF16: cast_run(&dense, BNB_F32, 0, count, (uint16_t *)y + at, BNB_BF16); break;
    default: memcpy((float *)y + at, x, count * sizeof *x); break;
    }
}
