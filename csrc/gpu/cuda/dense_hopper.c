/* Products of dense matrices in half precision on Hopper's tensor cores, whose tiles the GPU fetches on its own. */
#include "product.h"

/* As cuda/dense_hopper.metal has it: steps of 64 of k. */
struct hopper_args {
    struct tensor_map a, b;
    uint32_t          m, n, steps, split, splits;
};

enum {
    PAIR = 2,                                    /* threadgroups that share a factor's tile */
    SIDE = 128,                                  /* rows of a that each takes */
    SHARED = 12 * SIDE * 128 + 8 * 2048 + 2 * 64 /* tiles that are under way, a piece of y a simdgroup, counts */
};

/* By dtype, so that no branch stands among Hopper's instructions, and by columns of y. */
static const struct tile hopper_tiles[2][2] = {
    {{"dense_hopper", "dense_hopper_f16_128", SIDE, 128, 384, SHARED, 1},
     {"dense_hopper", "dense_hopper_f16_256", SIDE, 256, 384, SHARED, 1}},
    {{"dense_hopper", "dense_hopper_bf16_128", SIDE, 128, 384, SHARED, 1},
     {"dense_hopper", "dense_hopper_bf16_256", SIDE, 256, 384, SHARED, 1}},
};

/* Two tiles, side by side where there are no rows for them one below the other. */
static bool lie_side_by_side(const struct dense_product *p) { return p->m <= SIDE; }

static size_t pairs_of(const struct dense_product *p, const struct tile *tile) {
    if (lie_side_by_side(p)) return ceil_div(p->m, tile->rows) * ceil_div(p->n, PAIR * (size_t)tile->columns);
    return ceil_div(p->m, PAIR * (size_t)tile->rows) * ceil_div(p->n, tile->columns);
}

/* A wide one takes 1.9 times as long, as measured on an H200, and may leave more multiprocessors without one at the
 * end. */
static const struct tile *hopper_tile(const struct gpu *gpu, const struct dense_product *p) {
    const struct tile *of = hopper_tiles[p->dtype == STORE_BF16];
    size_t             at_once = (size_t)gpu->multiprocessors / PAIR;
    size_t             narrow = ceil_div(pairs_of(p, &of[0]), at_once), wide = ceil_div(pairs_of(p, &of[1]), at_once);
    return &of[19 * wide <= 10 * narrow];
}

/* False where it does not lie as the GPU can fetch it. */
static bool map_factor(struct tensor_map *map, const struct factor *factor, uint32_t rows, uint32_t depth) {
    const struct memory *memory = factor->of.memory;
    uint64_t             sides[2] = {factor->transposed ? rows : depth, factor->transposed ? depth : rows};
    uint64_t             pitch = 2 * sides[0];
    CUdeviceptr          at = memory->at + factor->of.offset;
    return at % 16 == 0 && libcuda.cuTensorMapEncodeTiled(map, TENSOR_U16, 2, (void *)(uintptr_t)at, sides, &pitch,
                                                          (unsigned[]){64, 64}, (unsigned[]){1, 1}, 0,
                                                          TENSOR_SWIZZLE_128, TENSOR_L2_128, 0) == CUDA_SUCCESS;
}

bnb_status cuda_dense_hopper(struct gpu *gpu, const struct dense_product *p) {
    struct hopper_args args = {.m = p->m, .n = p->n, .steps = (uint32_t)ceil_div(p->k, 64)};
    if (!libcuda.cuTensorMapEncodeTiled || !map_factor(&args.a, &p->a, p->m, p->k) ||
        !map_factor(&args.b, &p->b, p->n, p->k))
        return cuda_no_kernel();
    const struct tile *tile = hopper_tile(gpu, p);
    args.split = (uint32_t)ceil_div(args.steps, cuda_splits(gpu, tile, p->m, p->n, p->k));
    args.splits = (uint32_t)ceil_div(args.steps, args.split);
    size_t pairs = pairs_of(p, tile) * args.splits, at_once = (size_t)gpu->multiprocessors / PAIR;

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
        .groups = {(uint32_t)(PAIR * (pairs < at_once ? pairs : at_once)), 1, 1},
        .threads = tile->threads,
        .shared_bytes = tile->shared,
        .bytes_moved = 2 * ((size_t)p->n + p->m) * p->k + 2 * (size_t)p->m * p->n,
    };
    return cuda_launch_split(gpu, &launch, p->m, p->n, 1, p->bias, args.splits);
}
