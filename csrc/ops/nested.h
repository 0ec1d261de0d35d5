/* Scales that are quantised in turn ("double quantisation", QLoRA §3): what comes before and after that. */
#ifndef BNB_NESTED_H
#define BNB_NESTED_H

#include "../internal.h"

/* scales -= their mean, which is q's offset from then on. `largest` is what find_largest gives of them. */
bnb_status centre_scales(const struct buffer *scales, const struct buffer *largest, const bnb_quantized *q);

/* scales = those of q, as its readers will see them. */
bnb_status read_scales(const bnb_quantized *q, const struct buffer *scales);

#endif
