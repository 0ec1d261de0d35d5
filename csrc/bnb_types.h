/* The enums of the ABI that the CPU's forms know too: apart from bnb.h, so that a function more there does not compile
 * every instruction set anew. */
#ifndef BNB_TYPES_H
#define BNB_TYPES_H

typedef enum bnb_status {
    BNB_OK = 0,
    BNB_INVALID = 1,     /* the caller broke a rule of this header */
    BNB_UNSUPPORTED = 2, /* a correct request that nothing here can serve */
    BNB_OUT_OF_MEMORY = 3,
    BNB_DEVICE_LOST = 4, /* the driver failed: open the device again */
} bnb_status;

typedef enum bnb_dtype {
    BNB_F32 = 0,
    BNB_F16 = 1,
    BNB_BF16 = 2,
    BNB_I8 = 3,
    BNB_U8 = 4,
    BNB_I32 = 5,
} bnb_dtype;

/* How exact a matrix product must be at least. A more exact kernel may always serve. Accumulation is fp32 or better. */
typedef enum bnb_precision {
    BNB_PRECISION_DEFAULT = 0, /* highest for f32 activations, high for f16 and bf16 */
    BNB_PRECISION_HIGHEST = 1, /* products in fp32 */
    BNB_PRECISION_HIGH = 2,    /* activations and codebook in 16-bit integers, a scale a block: error about 1e-4 */
    BNB_PRECISION_MEDIUM = 3,  /* in 8-bit integers: error about 1e-2 */
} bnb_precision;

/* What a layer's products go through on their way. */
typedef enum bnb_activation {
    BNB_ACTIVATION_SILU = 0,      /* x / (1 + exp(-x)) */
    BNB_ACTIVATION_GELU = 1,      /* x · (1 + erf(x / √2)) / 2 */
    BNB_ACTIVATION_GELU_TANH = 2, /* x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2 */
    BNB_ACTIVATION_TANH = 3,
} bnb_activation;

#endif
