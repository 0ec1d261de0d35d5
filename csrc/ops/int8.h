/* What the operations of LLM.int8() share: quantising without the wait that its own entry makes. */
#ifndef BNB_INT8_H
#define BNB_INT8_H

#include "launch.h"

/* One quantisation. by_column, stats belong to the columns. */
struct int8_pass {
    const bnb_tensor *x;
    float             threshold; /* 0: none */
    const bnb_tensor *outliers;  /* a list of columns, or NULL */
    bool              by_column;
    bool              finds; /* stats are found, else given */
    const bnb_tensor *stats;
    const bnb_tensor *codes; /* NULL: only stats are wanted */
};

bnb_status int8_quantize(const struct int8_pass *pass);

/* What the kernels of the family have in common: all but bindings and grid. */
bnb_status int8_prepare(const char *kernel, const bnb_tensor *x, float threshold, struct int8_quantize_args *args,
                        struct launch *launch);

/* Fills an i32 list of as many places as x has columns. */
bnb_status int8_list_outliers(const bnb_tensor *x, float threshold, const bnb_tensor *outliers);

/* A copy of the columns that a list in host memory holds, up to the first place that names none: each is read once, for
 * another thread may be writing. NULL and an error where there is no memory; the caller frees it. */
int32_t *int8_copy_outliers(const int32_t *list, size_t columns, size_t *count);

/* The checks of arguments that several entries take. Each records its failure. */
bool is_threshold(float threshold, const char *function);
bool is_matrix(const bnb_tensor *tensor, bnb_dtype dtype, size_t rows, size_t columns, const bnb_device *device,
               const char *function, const char *argument);

#endif
