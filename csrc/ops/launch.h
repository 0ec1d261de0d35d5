/* What the operations' launches share: memory as bindings, and quantised matrices as a kernel's arguments. */
#ifndef BNB_LAUNCH_H
#define BNB_LAUNCH_H

#include "../internal.h"

#include "../../metal/args.h"

/* Threadgroups of a kernel that loops over its elements: fills the largest GPU several times over. */
enum { GROUPS_MOST = 2048 };

static inline uint32_t groups_for(size_t elements, size_t of_a_group) {
    size_t groups = ceil_div(elements, of_a_group);
    return (uint32_t)(groups < GROUPS_MOST ? groups : GROUPS_MOST);
}

static inline struct binding binding_of(const struct buffer *buffer) {
    return (struct binding){.memory = buffer->memory};
}

/* The power of two that a block is, or 32 where it is none. */
static inline uint32_t shift_of(size_t block) {
    return block & (block - 1) || block > UINT32_MAX ? 32 : (uint32_t)__builtin_ctzll(block);
}

/* A codebook's copy on the GPU, made at its first use. */
bnb_status bind_codebook(bnb_codebook *codebook, bnb_device *device, struct binding *binding);

/* Binds codes, absmax, nested absmax, codebook and nested codebook, in this order; where there is no nested part its
 * place takes another, which the kernel won't touch. UNSUPPORTED where a size is beyond the kernels' 32 bits. */
bnb_status bind_quantized(const bnb_quantized *q, struct binding bindings[5], struct scale_args *scales);

size_t quantized_bytes(const bnb_quantized *q);

#endif
