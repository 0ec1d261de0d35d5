/* What the operations' launches share: memory as bindings, and quantised matrices as a kernel's arguments. */
#ifndef BNB_LAUNCH_H
#define BNB_LAUNCH_H

#include "run.h"

#include "../../metal/args.h"

/* Threadgroups of a kernel that loops over its elements: fills the largest GPU several times over. */
enum { GROUPS_MOST = 2048 };

static inline uint32_t groups_for(size_t elements, size_t of_a_group) {
    size_t groups = ceil_div(elements, of_a_group);
    return (uint32_t)(groups < GROUPS_MOST ? groups : GROUPS_MOST);
}

/* Memory as bindings, by what the kernel does with it; a place that it won't look at is unused, whatever is there. */
static inline struct binding reads(const struct buffer *buffer) {
    return (struct binding){buffer->memory, buffer->offset, READS, buffer};
}
static inline struct binding writes(const struct buffer *buffer) {
    return (struct binding){buffer->memory, buffer->offset, WRITES, buffer};
}
static inline struct binding updates(const struct buffer *buffer) {
    return (struct binding){buffer->memory, buffer->offset, UPDATES, buffer};
}
static inline struct binding unused(const struct buffer *buffer) {
    return (struct binding){buffer->memory, buffer->offset, UNUSED, buffer};
}
static inline struct binding reads_if(const struct buffer *buffer, const struct buffer *other) {
    return buffer ? reads(buffer) : unused(other);
}

/* The power of two that a block is, or 32 where it is none. */
static inline uint32_t shift_of(size_t block) {
    return block & (block - 1) || block > UINT32_MAX ? 32 : (uint32_t)__builtin_ctzll(block);
}

/* A codebook's copy on the GPU, made at its first use. */
bnb_status bind_codebook(bnb_codebook *codebook, bnb_device *device, struct binding *binding);

/* Binds codes, absmax, nested absmax, codebook and nested codebook, in this order, and the offsets of blocks, those of
 * nested blocks, and the scales of coded offsets; where a part is missing its place takes another, which the kernel
 * won't touch. UNSUPPORTED where a size is beyond the kernels' 32 bits. */
bnb_status bind_quantized(const bnb_quantized *q, struct binding bindings[5], struct binding offsets[3],
                          struct scale_layout *scales);

size_t quantized_bytes(const bnb_quantized *q);

/* How kernels are told that a matrix holds such codes, and how their scales and offsets are stored. */
static inline uint32_t store_of(const bnb_codebook *code) { return STORE_CODE + code->book.bits; }

static inline uint32_t scales_of(const bnb_quantized *q) {
    if (q->nested_offsets) return SCALES_JOINED;
    if (q->nested_code)
        return q->nested_code->book.bits == 8 && q->nested_dtype == BNB_F32 ? SCALES_NESTED : SCALES_CODED;
    return q->absmax_dtype == BNB_F32 ? SCALES_F32 : q->absmax_dtype == BNB_F16 ? SCALES_F16 : SCALES_BF16;
}

static inline uint32_t offsets_of(const bnb_quantized *q) {
    if (q->offsets_absmax) return OFFSETS_CODED;
    return q->offsets ? OFFSETS_F32 + q->offsets_dtype : OFFSETS_NONE;
}

/* What products multiply by: a dense matrix, or a quantised one where that is not NULL. */
struct operand {
    const bnb_tensor    *dense;
    const bnb_quantized *coded;
};

static inline size_t operand_rows(struct operand w) { return w.coded ? w.coded->rows : w.dense->rows; }
static inline size_t operand_columns(struct operand w) { return w.coded ? w.coded->columns : w.dense->columns; }
static inline const struct buffer *operand_buffer(struct operand w) {
    return w.coded ? w.coded->codes : w.dense->buffer;
}
static inline size_t operand_bytes(struct operand w) {
    return w.coded ? quantized_bytes(w.coded) : w.dense->buffer->bytes;
}
static inline uint32_t operand_store(struct operand w) {
    return w.coded ? store_of(w.coded->code) : (uint32_t)w.dense->dtype;
}
static inline uint32_t operand_scales(struct operand w) { return w.coded ? scales_of(w.coded) : SCALES_F32; }
static inline uint32_t operand_offsets(struct operand w) { return w.coded ? offsets_of(w.coded) : OFFSETS_NONE; }

/* As bind_quantized. */
bnb_status bind_operand(struct operand w, struct binding bindings[5], struct binding offsets[3],
                        struct scale_layout *scales);

/* Which loads fit kernels that take 8 elements of a row at once: WHOLE_… for multiples of 8. */
static inline uint32_t whole_of(const bnb_quantized *q, const struct scale_layout *scales) {
    if (q->columns % 8) return WHOLE_NOT;
    if (q->block == q->columns) return WHOLE_ROWS;
    return scales->shift >= 3 && scales->shift < 32 ? WHOLE_BLOCKS : WHOLE_NOT;
}

/* The rows of x that a vector kernel of int8 takes at once. */
static inline uint32_t vectors_of(size_t rows) { return rows == 1 ? 1 : rows == 2 ? 2 : 4; }

/* The side of the tiles of an output. */
static inline uint32_t side_of(const struct sizes *sizes, size_t rows, size_t columns) {
    return rows > 32 && ceil_div(rows, 64) * ceil_div(columns, 64) >= sizes->tiles_wanted / 2 ? 64 : 32;
}

/* The part of `depth` products that each of `tiles` tiles sums: all of it, or a multiple of TILE_DEPTH. */
uint32_t split_of(const struct sizes *sizes, uint32_t depth, size_t tiles);

/* y = the parts of a split, f32 [splits, y's rows, y's columns], added up; bias may be NULL. */
bnb_status launch_sum(const struct buffer *parts, uint32_t splits, const bnb_tensor *bias, const bnb_tensor *y);

#endif
