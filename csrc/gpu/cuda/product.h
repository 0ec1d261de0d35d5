/* How a whole product comes to those who serve it, and what they share. */
#ifndef BNB_CUDA_PRODUCT_H
#define BNB_CUDA_PRODUCT_H

#include "cuda.h"

#include "../../../metal/args.h"

/* Places of a product's bindings, as csrc/ops/matmul.c has them, and of its constants. */
enum {
    AT_X,
    AT_CODES,
    AT_ABSMAX,
    AT_NESTED_ABSMAX,
    AT_CODE,
    AT_NESTED_CODE,
    AT_BIAS,
    AT_Y,
    AT_OFFSETS,
    AT_NESTED_OFFSETS,
    AT_OFFSETS_ABSMAX
};
enum { OF_X, OF_W, OF_SCALES, OF_WHOLE, OF_BIAS, OF_Y, OF_OFFSETS };

enum { HOPPER = 90 };

/* A kernel of tiles: `rows` of x by `columns` of w a threadgroup. */
struct tile {
    const char *family, *kernel;
    uint32_t    rows, columns, threads, shared;
    uint32_t    groups; /* that a multiprocessor runs at once */
};

/* Of every kernel of tiles' constants, the dtype of y and whether there is a bias. */
enum { TILE_Y = 1, TILE_BIAS = 4 };

/* Into how many parts a sum is split, so that the tiles fill the GPU: not below 512 products a part. */
uint32_t cuda_splits(const struct gpu *gpu, const struct tile *tile, uint32_t m, uint32_t n, uint32_t k);

/* Launches a kernel of tiles for y[m, n], its binding `y_at`; where the sum is split that is memory for the parts,
 * which are added up. */
bnb_status cuda_launch_split(struct gpu *gpu, struct launch *launch, uint32_t m, uint32_t n, uint32_t y_at,
                             struct binding bias, uint32_t splits);

/* ── Dense ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* As cuda/matmul_dense.metal and matmul_hopper.metal have it: `bytes` of the depth. */
struct dense_args {
    uint32_t m, n, bytes, split;
};

/* A matrix [rows, depth], or where it is transposed stored as [depth, rows]. */
struct factor {
    struct binding of;
    bool           transposed;
};

/* y[m, n] = Σk a[m, k] · b[n, k] + bias[n] */
struct dense_product {
    uint32_t       m, n, k;
    uint32_t       dtype; /* of a and b: STORE_F16 or STORE_BF16 */
    uint32_t       to;    /* of y: any float */
    struct factor  a, b;
    bool           has_bias;
    struct binding bias, y;
};

size_t dense_bytes(const struct dense_product *p); /* that it moves at least, for a profile */

/* Either is UNSUPPORTED where a factor does not lie as the GPU fetches tiles, or the driver knows no such tiles. */
bnb_status cuda_dense_hopper(struct gpu *gpu, const struct dense_product *p);

/* x by 4-bit codes in half precision: `launch` has a product's bindings, and constants as kernels of tiles have them.
 */
bnb_status cuda_codes_hopper(struct gpu *gpu, struct launch *launch, const struct matmul_args *of, uint32_t dtype);

/* UNSUPPORTED where a row as it is stored is no multiple of 16 bytes. */
bnb_status cuda_dense(struct gpu *gpu, const struct dense_product *p);

/* A quantised matrix, as a whole product has it: any codebook, block and width. */
struct coded_weight {
    uint32_t              store, scales, offsets; /* STORE_…, SCALES_… and OFFSETS_… */
    struct scale_layout   layout;
    const struct binding *parts, *offset_parts; /* five and three, as bind_quantized in csrc/ops/launch.h gives them */
};

/* The same where b is a weight that has first to be written out in the dtype that is multiplied in; UNSUPPORTED where
 * there is no memory for that either, which the portable kernels do without. */
bnb_status cuda_dense_coded(struct gpu *gpu, const struct dense_product *p, const struct coded_weight *w);

#endif
