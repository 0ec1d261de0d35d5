/* The scales of least squared error, for quantising. */
#ifndef BNB_SCALES_H
#define BNB_SCALES_H

#include "../internal.h"

/* Whether a tensor, which may be NULL, weighs the columns of x: records its failure. */
bool is_importance(const bnb_tensor *importance, const bnb_tensor *x, const char *function);

/* absmax[b] = the scale of block b of x, by metal/scales_rule.h; a NaN or an infinity where the block has one. What a
 * GPU knows of an importance that nobody has looked at is `*weight` then, for check_importance and the caller to
 * release; else that stays as it is. */
bnb_status find_scales(const bnb_tensor *x, bnb_codebook *code, size_t block, const bnb_tensor *importance,
                       const struct buffer *absmax, struct buffer **weight);

/* Refuses an importance that has what is no weight: waits for what is known of it, which may be NULL. */
bnb_status check_importance(const bnb_tensor *importance, const struct buffer *weight);

#endif
