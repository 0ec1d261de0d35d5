/* What a dtype is: its name, and the bytes of an element. */
#include "internal.h"

static const struct {
    const char *name;
    size_t      size;
} dtypes[] = {
    [BNB_F32] = {"float32", 4}, [BNB_F16] = {"float16", 2}, [BNB_BF16] = {"bfloat16", 2},
    [BNB_I8] = {"int8", 1},     [BNB_U8] = {"uint8", 1},    [BNB_I32] = {"int32", 4},
};

static bool known(bnb_dtype dtype) { return (unsigned)dtype < sizeof dtypes / sizeof *dtypes; }

size_t      dtype_size(bnb_dtype dtype) { return known(dtype) ? dtypes[dtype].size : 0; }
const char *dtype_name(bnb_dtype dtype) { return known(dtype) ? dtypes[dtype].name : "no dtype"; }
