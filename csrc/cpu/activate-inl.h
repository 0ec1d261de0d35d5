/* Activations, and the gates that they are. */
#include "simd.h"

/* x times a sigmoid or a distribution's share, as ops/activate.c has them: gelu_tanh is x times the sigmoid of twice
 * what the tangent is taken of. */
INLINE floats activated(floats x, bnb_activation kind) {
    switch (kind) {
    case BNB_ACTIVATION_SILU: return x / (1 + exponential(-x));
    case BNB_ACTIVATION_GELU: return 0.5f * x * (1 + error_function(x * 0.70710678f));
    case BNB_ACTIVATION_TANH: return hyperbolic_tangent(x);
    default: return x / (1 + exponential(fma(x * x, (floats)-0.071354816f, (floats)-1.5957691f) * x));
    }
}

INLINE void activate_row(const struct activate_job *job, size_t row, bnb_dtype dtype, bnb_activation kind) {
    size_t from = row * job->x.columns, gate = row * job->up.columns + job->up_first, to = row * job->columns, c = 0;
    for (; c + WIDTH <= job->columns; c += WIDTH) {
        floats y = activated(load(job->x.data, dtype, from + c), kind);
        if (job->up.data) y = y * load(job->up.data, dtype, gate + c);
        store(job->y, dtype, to + c, y);
    }
    if (c == job->columns) return;
    floats x = {0};
    for (size_t i = 0; i < job->columns - c; i++) x[i] = element_of(&job->x, from + c + i);
    floats y = activated(x, kind);
    for (size_t i = 0; i < job->columns - c; i++)
        put_element(job->y, dtype, to + c + i, job->up.data ? y[i] * element_of(&job->up, gate + c + i) : y[i]);
}

INLINE void activate_as(const struct activate_job *job, size_t first, size_t last, bnb_activation kind) {
    for (size_t row = first; row < last; row++) switch (job->x.dtype) {
        case BNB_F16: activate_row(job, row, BNB_F16, kind); break;
        case BNB_BF16: activate_row(job, row, BNB_BF16, kind); break;
        default: activate_row(job, row, BNB_F32, kind); break;
        }
}

static void activate(const void *activate_job, size_t first, size_t last) {
    const struct activate_job *job = activate_job;
    switch (job->kind) {
    case BNB_ACTIVATION_SILU: activate_as(job, first, last, BNB_ACTIVATION_SILU); break;
    case BNB_ACTIVATION_GELU: activate_as(job, first, last, BNB_ACTIVATION_GELU); break;
    case BNB_ACTIVATION_TANH: activate_as(job, first, last, BNB_ACTIVATION_TANH); break;
    default: activate_as(job, first, last, BNB_ACTIVATION_GELU_TANH); break;
    }
}
