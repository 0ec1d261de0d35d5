/* What the loops that write out GGML's blocks share: how one is called, and a scale in half precision. */
#pragma once
#include "../internal.h"

/* Each expands one block. Where a product is added to, it stands in a statement of its own: fused into one rounding, as
 * processors with such an instruction do within a statement, the sum would differ from GGML's own loops. */
typedef void expander(const uint8_t *from, float *to);

static inline float load_f16(const uint8_t *from) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
    return f16_to_f32(half);
}

/* The types that choose among points of a grid: gguf_grids.c. */
expander expand_iq1_s, expand_iq1_m, expand_iq2_xxs, expand_iq2_xs, expand_iq2_s, expand_iq3_xxs, expand_iq3_s;
