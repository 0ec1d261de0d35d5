/* How a whole product comes to those who serve it. */
#ifndef BNB_CUDA_PRODUCT_H
#define BNB_CUDA_PRODUCT_H

#include "cuda.h"

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

#endif
