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
bnb_status bind_quantized(const bnb_quantized *q, struct binding bindings[5], struct scale_layout *scales);

size_t quantized_bytes(const bnb_quantized *q);

/* How kernels are told that a matrix holds such codes. */
static inline uint32_t store_of(const bnb_codebook *code) { return STORE_CODE + code->book.bits; }

/* Which loads fit kernels that take 8 elements of a row at once: WHOLE_… for multiples of 8. */
static inline uint32_t whole_of(const bnb_quantized *q, const struct scale_layout *scales) {
    if (q->columns % 8) return WHOLE_NOT;
    if (q->block == q->columns) return WHOLE_ROWS;
    return scales->shift >= 3 && scales->shift < 32 ? WHOLE_BLOCKS : WHOLE_NOT;
}

/* Up to VECTORS_MOST rows of x, kernels read w anew for every 4; beyond, decoding it for a tile pays: MLX crosses over
 * between 10 and 13 on an M3 Max (ml-explore/mlx, pull request 3863). Products in tiles need tiles enough to fill the
 * GPU, else the tiles are small and the sum is split, though not below SPLIT_LEAST. */
enum { VECTORS_MOST = 8, TILES_WANTED = 256, SPLIT_LEAST = 512 };

/* The rows of x that a vector kernel takes at once. */
static inline uint32_t vectors_of(size_t rows) { return rows == 1 ? 1 : rows == 2 ? 2 : 4; }

/* The side of the tiles of an output. */
static inline uint32_t side_of(size_t rows, size_t columns) {
    return rows > 32 && ceil_div(rows, 64) * ceil_div(columns, 64) >= TILES_WANTED / 2 ? 64 : 32;
}

/* The part of `depth` products that each of `tiles` tiles sums: all of it, or a multiple of TILE_DEPTH. */
uint32_t split_of(uint32_t depth, size_t tiles);

/* y = the parts of a split, f32 [splits, y's rows, y's columns], added up; bias may be NULL. */
bnb_status launch_sum(const struct buffer *parts, uint32_t splits, const bnb_tensor *bias, const bnb_tensor *y);

#endif
