/* Products on Hopper by kernels whose threadgroups stay, in pairs, and whose tiles the GPU fetches on its own. */
#include "product.h"

#include "../../../metal/args.h"

enum {
    PAIR = 2,   /* threadgroups that share a factor's tile */
    SIDE = 128, /* rows of the other factor that each takes */
    THREADS = 384,
};

/* Bytes of threadgroup memory. */
enum {
    OUTPUT = 2048, /* for a piece of y, a simdgroup that multiplies */
    COUNTS = 2 * 16 * 8,
    DENSE_BYTES = 12 * SIDE * 128 + 8 * OUTPUT + COUNTS, /* with the tiles that are under way */
    CODES_BYTES = 32768 + 1024 + COUNTS,                 /* tables of values and of scales; tiles and pieces are more */
};

/* By how much longer a wide tile takes than one of half the width, in tenths, as measured on an H200. */
enum { WIDE = 19, WIDE_OF_CODES = 15 };

/* Of tiles of y[m, n], which lie side by side or one below the other. */
static size_t pairs_of(const struct tile *tile, uint32_t m, uint32_t n, bool side_by_side) {
    size_t rows = tile->rows, columns = tile->columns;
    return side_by_side ? ceil_div(m, rows) * ceil_div(n, PAIR * columns)
                        : ceil_div(m, PAIR * rows) * ceil_div(n, columns);
}

/* How many rounds of tiles all multiprocessors take. */
static size_t rounds_of(const struct gpu *gpu, size_t pairs) {
    return ceil_div(pairs, (size_t)gpu->multiprocessors / PAIR);
}

static uint32_t groups_of(const struct gpu *gpu, size_t pairs) {
    size_t at_once = (size_t)gpu->multiprocessors / PAIR;
    return (uint32_t)(PAIR * (pairs < at_once ? pairs : at_once));
}

/* ── Matrices that are fetched ──────────────────────────────────────────────────────────────────────────────────── */

/* In tiles of lines of 128 or of 32 bytes, in which pieces of 16 have changed places. */
enum fetched { HALVES, CODES };

/* A matrix [rows, columns] of 16-bit numbers, fetched 64 by 64, or of bytes, 32 columns of 128 rows. False where it
 * does not lie as the GPU can fetch it. */
static bool describe(struct tensor_map *map, enum fetched what, struct binding of, uint64_t rows, uint64_t columns) {
    const struct memory *memory = of.memory;
    CUdeviceptr          at = memory->at + of.offset;
    uint64_t             sides[2] = {columns, rows}, pitch = columns * (what == HALVES ? 2 : 1);
    unsigned             boxes[2][2] = {{64, 64}, {32, SIDE}};
    return libcuda.cuTensorMapEncodeTiled && at % 16 == 0 &&
           libcuda.cuTensorMapEncodeTiled(map, what == HALVES ? TENSOR_U16 : TENSOR_U8, 2, (void *)(uintptr_t)at, sides,
                                          &pitch, boxes[what], (unsigned[]){1, 1}, 0,
                                          what == HALVES ? TENSOR_SWIZZLE_128 : TENSOR_SWIZZLE_32, TENSOR_L2_128,
                                          0) == CUDA_SUCCESS;
}

static bool describe_factor(struct tensor_map *map, const struct factor *factor, uint32_t rows, uint32_t depth) {
    return describe(map, HALVES, factor->of, factor->transposed ? depth : rows, factor->transposed ? rows : depth);
}

/* ── Dense ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* As cuda/dense_hopper.metal has it: steps of 64 of k. */
struct dense_hopper_args {
    struct tensor_map a, b;
    uint32_t          m, n, steps, split, splits;
};

/* By dtype, so that no branch stands among Hopper's instructions, and by columns of y. */
static const struct tile dense_tiles[2][2] = {
    {{"dense_hopper", "dense_hopper_f16_128", SIDE, 128, THREADS, DENSE_BYTES, 1},
     {"dense_hopper", "dense_hopper_f16_256", SIDE, 256, THREADS, DENSE_BYTES, 1}},
    {{"dense_hopper", "dense_hopper_bf16_128", SIDE, 128, THREADS, DENSE_BYTES, 1},
     {"dense_hopper", "dense_hopper_bf16_256", SIDE, 256, THREADS, DENSE_BYTES, 1}},
};

/* Two tiles, side by side where there are no rows for them one below the other. */
static bool lie_side_by_side(const struct dense_product *p) { return p->m <= SIDE; }

static const struct tile *dense_tile(const struct gpu *gpu, const struct dense_product *p) {
    const struct tile *of = dense_tiles[p->dtype == STORE_BF16];
    bool               beside = lie_side_by_side(p);
    size_t             narrow = rounds_of(gpu, pairs_of(&of[0], p->m, p->n, beside));
    size_t             wide = rounds_of(gpu, pairs_of(&of[1], p->m, p->n, beside));
    return &of[WIDE * wide <= 10 * narrow];
}

bnb_status cuda_dense_hopper(struct gpu *gpu, const struct dense_product *p) {
    struct dense_hopper_args args = {.m = p->m, .n = p->n, .steps = (uint32_t)ceil_div(p->k, 64)};
    if (!describe_factor(&args.a, &p->a, p->m, p->k) || !describe_factor(&args.b, &p->b, p->n, p->k))
        return cuda_no_kernel();
    const struct tile *tile = dense_tile(gpu, p);
    args.split = (uint32_t)ceil_div(args.steps, cuda_splits(gpu, tile, p->m, p->n, p->k));
    args.splits = (uint32_t)ceil_div(args.steps, args.split);
    struct launch launch = {
        .family = tile->family,
        .kernel = tile->kernel,
        .constants =
            {[TILE_Y] = p->to, [TILE_BIAS] = p->has_bias, p->a.transposed, p->b.transposed, lie_side_by_side(p)},
        .constant_count = 8,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {p->bias, p->y},
        .binding_count = 2,
        .groups = {groups_of(gpu, pairs_of(tile, p->m, p->n, lie_side_by_side(p)) * args.splits), 1, 1},
        .threads = tile->threads,
        .shared_bytes = tile->shared,
        .bytes_moved = dense_bytes(p),
    };
    return cuda_launch_split(gpu, &launch, p->m, p->n, 1, p->bias, args.splits);
}

/* ── 4-bit codes ────────────────────────────────────────────────────────────────────────────────────────────────── */

/* As cuda/matmul_hopper.metal has it: steps of 64 of k. */
struct codes_hopper_args {
    struct tensor_map  x, codes;
    struct matmul_args of;
    uint32_t           splits;
};

/* By rows of x. With few of them, decoding is all the work, and twice as many simdgroups do it. */
#define CODES_TILE(dtype, rows, stages, simdgroups)                                                                    \
    {"matmul_hopper",                                                                                                  \
     "matmul_hopper_" #dtype "_" #rows,                                                                                \
     rows,                                                                                                             \
     16 * simdgroups,                                                                                                  \
     32 * (4 + simdgroups),                                                                                            \
     CODES_BYTES + simdgroups * OUTPUT + stages * (rows * 128 + simdgroups * 512),                                     \
     1}
static const struct tile codes_tiles[2][3] = {
    {CODES_TILE(f16, 64, 8, 16), CODES_TILE(f16, 128, 8, 8), CODES_TILE(f16, 256, 4, 8)},
    {CODES_TILE(bf16, 64, 8, 16), CODES_TILE(bf16, 128, 8, 8), CODES_TILE(bf16, 256, 4, 8)},
};

static const struct tile *codes_tile(const struct gpu *gpu, const struct matmul_args *of, uint32_t dtype) {
    const struct tile *tiles = codes_tiles[dtype == STORE_BF16];
    if (of->m <= 64) return &tiles[0];
    size_t narrow = rounds_of(gpu, pairs_of(&tiles[1], of->m, of->n, true)); /* on rows of w */
    size_t wide = rounds_of(gpu, pairs_of(&tiles[2], of->m, of->n, true));
    return &tiles[WIDE_OF_CODES * wide <= 10 * narrow ? 2 : 1];
}

bnb_status cuda_codes_hopper(struct gpu *gpu, struct launch *launch, const struct matmul_args *of, uint32_t dtype) {
    struct codes_hopper_args args = {.of = *of};
    if (!describe(&args.x, HALVES, launch->bindings[AT_X], of->m, of->k) ||
        !describe(&args.codes, CODES, launch->bindings[AT_CODES], of->n, of->k / 2))
        return cuda_no_kernel();
    const struct tile *tile = codes_tile(gpu, of, dtype);
    uint32_t           steps = (uint32_t)ceil_div(of->k, 64);
    args.of.split = (uint32_t)ceil_div(steps, cuda_splits(gpu, tile, of->m, of->n, of->k));
    args.splits = (uint32_t)ceil_div(steps, args.of.split);
    launch->family = tile->family;
    launch->kernel = tile->kernel;
    launch->args = &args;
    launch->args_bytes = sizeof args;
    launch->groups[0] = groups_of(gpu, pairs_of(tile, of->m, of->n, true) * args.splits);
    launch->groups[1] = launch->groups[2] = 1;
    launch->threads = tile->threads;
    launch->shared_bytes = tile->shared;
    return cuda_launch_split(gpu, launch, of->m, of->n, AT_Y, launch->bindings[AT_BIAS], args.splits);
}
