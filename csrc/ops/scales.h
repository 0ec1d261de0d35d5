/* The scales of least squared error, for quantising. */
#ifndef BNB_SCALES_H
#define BNB_SCALES_H

#include "../internal.h"

/* Whether a tensor, which may be NULL, weighs the columns of x: records its failure. */
bool is_importance(const bnb_tensor *importance, const bnb_tensor *x, const char *function);

/* absmax[b] = the scale of block b of x, by metal/scales_rule.h; a NaN or an infinity where the block has one. Done
 * when it returns. */
bnb_status find_scales(const bnb_tensor *x, bnb_codebook *code, size_t block, const bnb_tensor *importance,
                       const struct buffer *absmax);

#endif
