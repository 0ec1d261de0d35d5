/* Products of one row with codes of a byte, by a kernel of cuda/. For everything else UNSUPPORTED lets the portable
 * kernels be launched. */
#include "product.h"

#include <string.h>

/* Of cuda/matmul_bytes.metal. */
enum { BYTES_THREADS = 512, BYTES_ROWS = 4 };

/* One row of x, which it multiplies in fp32: as exact as any precision asks. Blocks lie behind each other: a scale for
 * a whole row, of any length, is the portable kernels'. */
static bool takes_bytes(const struct launch *whole, const struct matmul_args *args) {
    return args->m == 1 && args->k % 16 == 0 && args->scales.shift >= 4 && args->scales.shift <= 31 &&
           whole->constants[OF_W] == STORE_CODE8 && whole->constants[OF_WHOLE] != WHOLE_ROWS &&
           whole->constants[OF_SCALES] == SCALES_F32 && whole->constants[OF_OFFSETS] == OFFSETS_NONE;
}

bnb_status cuda_serve_bytes(struct gpu *gpu, const struct launch *whole) {
    struct matmul_args args;
    memcpy(&args, whole->args, sizeof args);
    if (!takes_bytes(whole, &args)) return cuda_no_kernel();
    size_t        groups = ceil_div(args.n, BYTES_ROWS * (BYTES_THREADS / 32)), most = 4 * (size_t)gpu->multiprocessors;
    struct launch launch = *whole;
    launch.family = launch.kernel = "matmul_bytes";
    launch.groups[0] = (uint32_t)(groups < most ? groups : most);
    launch.groups[1] = launch.groups[2] = 1;
    launch.threads = BYTES_THREADS;
    return cuda_launch(gpu, &launch);
}
