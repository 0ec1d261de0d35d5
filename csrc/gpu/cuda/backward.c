/* The gradients of products on tensor cores, dx = dy · w and dw = dyᵀ · x: they are products of which a factor or both
 * are stored the other way. For what has no half precision throughout, UNSUPPORTED lets the portable kernels be
 * launched. */
#include "product.h"

#include <string.h>

/* Where csrc/ops/matmul_backward.c has it otherwise than a product's launch. */
enum { OF_TRANSPOSED = 5, OF_GRADIENT = 6, OF_GRADIENT_OFFSETS = 7, AT_GRADIENT = 6, AT_GRADIENT_OFFSETS = 7 };

/* As of forward products: for fewer rows a weight is not written out, which moves nine times the bytes of 4-bit
 * codes. */
enum { CODED_LEAST = 9 };

bnb_status cuda_serve_backward(struct gpu *gpu, const struct launch *whole) {
    const struct binding *of = whole->bindings;
    const uint32_t       *constants = whole->constants, dtype = constants[OF_X], w = constants[OF_W];
    struct matmul_args    args;
    memcpy(&args, whole->args, sizeof args);
    const struct dense_product product = {
        .m = args.m,
        .n = args.k,
        .k = args.n,
        .dtype = dtype,
        .to = constants[OF_GRADIENT],
        .a = {of[AT_X], constants[OF_TRANSPOSED]},
        .b = {of[AT_CODES], true},
        .y = of[AT_GRADIENT],
    };
    if (dtype == STORE_F32) return cuda_no_kernel();
    if (w == dtype) return cuda_dense(gpu, &product); /* halves' products are exact in fp32 */
    if (w < STORE_CODE || args.m < CODED_LEAST || whole->precision == BNB_PRECISION_HIGHEST) return cuda_no_kernel();
    return cuda_dense_coded(gpu, &product,
                            &(struct coded_weight){w, constants[OF_SCALES], constants[OF_GRADIENT_OFFSETS], args.scales,
                                                   of + AT_CODES, of + AT_GRADIENT_OFFSETS});
}
