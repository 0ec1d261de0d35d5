/* One attention, as its checks hand it to its launches. */
#ifndef BNB_ATTENTION_H
#define BNB_ATTENTION_H

#include "../internal.h"

struct attention_request {
    bnb_attention_options options;
    const bnb_tensor     *q, *k, *v, *rows, *rope, *q_norm, *k_norm, *bias,
        *pages; /* norms are f32 by now; k and v are q where it holds all */
    size_t         heads, kv_heads, d;
    bool           joined; /* q holds keys and values too */
    bnb_cache     *cache;
    uint32_t       layer;
    struct buffer *queries,
        *kept; /* the queries as attention takes them; keys and values, as the cache lays them out */
    bnb_dtype   store;
    size_t      slots, capacity;
    size_t      texts, reach; /* what rows may name: texts, and keys of each */
    bnb_tensor *y;
};

bnb_status attention_launch(const void *attention_request);

#endif
