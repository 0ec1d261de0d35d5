/* Root mean square normalisation of runs: the residual goes in with the squares, then one pass writes. */
#include "simd.h"

INLINE float add_and_square(const struct rms_norm_job *job, size_t at, bnb_dtype dtype, bool adds) {
    struct dense x = {job->x, job->dtype, 1, 0};
    floats       squares[2] = {0};
    size_t       i = 0;
    for (; i + WIDTH <= job->d; i += WIDTH) {
        floats v = load(job->x, dtype, at + i);
        if (adds) {
            v = fma(load(job->residual.data, job->residual.dtype, at + i), (floats)job->scale, v);
            store(job->x, dtype, at + i, v);
            if (dtype != BNB_F32) v = load(job->x, dtype, at + i); /* as it was rounded */
        }
        squares[i / WIDTH % 2] = fma(v, v, squares[i / WIDTH % 2]);
    }
    float total = sum(squares[0] + squares[1]);
    for (; i < job->d; i++) {
        if (adds)
            put_element(job->x, dtype, at + i,
                        element_of(&x, at + i) + job->scale * element_of(&job->residual, at + i));
        total += element_of(&x, at + i) * element_of(&x, at + i);
    }
    return total;
}

INLINE void rms_norm_run(const struct rms_norm_job *job, size_t at, bnb_dtype dtype) {
    float total = job->residual.data ? add_and_square(job, at, dtype, true) : add_and_square(job, at, dtype, false);
    float inverse = 1 / __builtin_sqrtf(total / (float)job->d + job->eps);
    struct dense x = {job->x, job->dtype, 1, 0};
    size_t       i = 0;
    for (; i + WIDTH <= job->d; i += WIDTH)
        store(job->y, dtype, at + i,
              load(job->x, dtype, at + i) * inverse * (load_floats(job->weight + i) + job->offset));
    for (; i < job->d; i++)
        put_element(job->y, dtype, at + i, element_of(&x, at + i) * inverse * (job->weight[i] + job->offset));
}

static void rms_norm(const void *rms_norm_job, size_t first, size_t last) {
    const struct rms_norm_job *job = rms_norm_job;
    for (size_t run = first; run < last; run++) switch (job->dtype) {
        case BNB_F16: rms_norm_run(job, run * job->d, BNB_F16); break;
        case BNB_BF16: rms_norm_run(job, run * job->d, BNB_BF16); break;
        default: rms_norm_run(job, run * job->d, BNB_F32); break;
        }
}
