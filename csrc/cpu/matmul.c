/* The kernels of the matrix product, and which one serves a job. */
#include "simd.h"

/* Best first: the first that is exact enough and takes the job. The last is exact and takes all. */
static const struct matmul_kernel {
    bnb_precision precision;
    bool (*takes)(const struct matmul_job *job); /* NULL: all */
    bnb_status (*run)(const struct matmul_job *job);
} matmul_kernels[] = {
    {BNB_PRECISION_HIGH, takes_vector_int16, matmul_vector_int16},
    {BNB_PRECISION_HIGHEST, takes_vector, matmul_vector},
    {BNB_PRECISION_HIGHEST, takes_kbits, matmul_kbits},
    {BNB_PRECISION_HIGHEST, NULL, matmul_panel},
};

static bnb_status matmul(const struct matmul_job *job) {
    const struct matmul_kernel *kernel = matmul_kernels;
    while (kernel->precision > job->precision || (kernel->takes && !kernel->takes(job))) kernel++;
    return kernel->run(job);
}
