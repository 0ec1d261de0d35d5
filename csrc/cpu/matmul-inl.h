/* The kernels of the matrix product, and which one serves a job. */
#include "simd.h"

/* Best first: the first that is exact enough and takes the job. One may still find an x that it can't do, and say
 * BNB_UNSUPPORTED: then the next has its turn. The last is exact and takes all. */
static const struct matmul_kernel {
    bnb_precision precision;
    bool (*takes)(const struct matmul_job *job); /* NULL: all */
    bnb_status (*run)(const struct matmul_job *job);
} matmul_kernels[] = {
    {BNB_PRECISION_MEDIUM, takes_vector_bytes, matmul_vector_bytes},
    {BNB_PRECISION_HIGH, takes_vector, matmul_vector_shorts},
    {BNB_PRECISION_HIGHEST, takes_vector, matmul_vector},
    {BNB_PRECISION_MEDIUM, takes_codes_bytes, matmul_codes_bytes},
    {BNB_PRECISION_HIGHEST, takes_codes, matmul_codes},
    {BNB_PRECISION_HIGHEST, takes_vector8, matmul_vector8},
    {BNB_PRECISION_MEDIUM, takes_lanes_bytes, matmul_lanes_bytes},
    {BNB_PRECISION_MEDIUM, takes_lanes_integers, matmul_lanes_integers},
    {BNB_PRECISION_HIGH, takes_lanes_shorts, matmul_lanes_shorts},
    {BNB_PRECISION_HIGHEST, takes_lanes, matmul_lanes},
    {BNB_PRECISION_HIGHEST, NULL, matmul_panel},
};

static bnb_status matmul(const struct matmul_job *job) {
    bnb_status status = BNB_UNSUPPORTED;
    for (const struct matmul_kernel *kernel = matmul_kernels; status == BNB_UNSUPPORTED; kernel++)
        if (kernel->precision <= job->precision && (!kernel->takes || kernel->takes(job))) status = kernel->run(job);
    return status;
}
