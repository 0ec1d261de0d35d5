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

/* Which loads fit kernels that take 8 elements of a row at once: WHOLE_… for multiples of 8. */
static inline uint32_t whole_of(const bnb_quantized *q, const struct scale_args *scales) {
    if (q->columns % 8) return WHOLE_NOT;
    if (q->block == q->columns) return WHOLE_ROWS;
    return scales->shift >= 3 && scales->shift < 32 ? WHOLE_BLOCKS : WHOLE_NOT;
}

/* Products in tiles need tiles enough to fill the GPU, else the sum is split, though not below SPLIT_LEAST. */
enum { TILES_WANTED = 256, SPLIT_LEAST = 512 };

/* The part of `depth` products that each of `tiles` tiles sums: all of it, or a multiple of TILE_DEPTH. */
uint32_t split_of(uint32_t depth, size_t tiles);

/* y = the parts of a split, f32 [splits, y's rows, y's columns], added up; bias may be NULL. */
bnb_status launch_sum(const struct buffer *parts, uint32_t splits, const bnb_tensor *bias, const bnb_tensor *y);

#endif
