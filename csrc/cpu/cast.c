/* Casting among the three float dtypes. */
#include "simd.h"

/* Elements [first, last) of x to y[0…]. */
INLINE void cast_run(const struct dense *x, bnb_dtype from, size_t first, size_t last, void *y, bnb_dtype to) {
    size_t i = first;
    for (; i + WIDTH <= last; i += WIDTH) store(y, to, i - first, load(x->data, from, i));
    for (; i < last; i++) put_element(y, to, i - first, element_of(x, i));
}

INLINE void cast_from(const struct cast_job *job, size_t first, size_t last, bnb_dtype from) {
    char *y = job->y;
    switch (job->dtype) {
    case BNB_F16: cast_run(&job->x, from, first, last, y + first * 2, BNB_F16); break;
    case BNB_BF16: cast_run(&job->x, from, first, last, y + first * 2, BNB_BF16); break;
    default: cast_run(&job->x, from, first, last, y + first * 4, BNB_F32); break;
    }
}

static void cast(const void *cast_job, size_t first, size_t last) {
    const struct cast_job *job = cast_job;
    switch (job->x.dtype) {
    case BNB_F16: cast_from(job, first, last, BNB_F16); break;
    case BNB_BF16: cast_from(job, first, last, BNB_BF16); break;
    default: cast_from(job, first, last, BNB_F32); break;
    }
}
