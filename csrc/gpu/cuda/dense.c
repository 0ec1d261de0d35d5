/* Products of dense matrices in half precision on tensor cores, and sums that are split so that tiles fill a GPU. */
#include "product.h"

/* ── Splits ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

uint32_t cuda_splits(const struct gpu *gpu, const struct tile *tile, uint32_t m, uint32_t n, uint32_t k) {
    size_t tiles = ceil_div(m, tile->rows) * ceil_div(n, tile->columns);
    size_t splits = (size_t)gpu->multiprocessors * tile->groups / tiles, most = k / 512;
    if (splits > most) splits = most;
    if (splits > 16) splits = 16;
    return splits > 1 ? (uint32_t)splits : 1;
}

/* Adds up the parts of a split, with the portable kernel for it. */
static bnb_status add_parts(struct gpu *gpu, struct sum_args args, struct binding parts, struct binding bias,
                            bool has_bias, struct binding y, uint32_t to) {
    return cuda_launch(gpu, &(struct launch){
                                .family = "matmul_tile",
                                .kernel = "matmul_sum",
                                .constants = {to, [4] = has_bias},
                                .constant_count = 5,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bindings = {parts, bias, y},
                                .binding_count = 3,
                                .groups = {(uint32_t)ceil_div(args.n, SUM_THREADS), args.m, 1},
                                .threads = SUM_THREADS,
                                .bytes_moved = (size_t)args.splits * args.m * args.n * 4,
                            });
}

bnb_status cuda_launch_split(struct gpu *gpu, struct launch *launch, uint32_t m, uint32_t n, uint32_t y_at,
                             struct binding bias, uint32_t splits) {
    if (splits == 1) return cuda_launch(gpu, launch);
    struct binding y = launch->bindings[y_at];
    uint32_t       to = launch->constants[TILE_Y], has_bias = launch->constants[TILE_BIAS];
    void          *parts = cuda_alloc(gpu, (size_t)splits * m * n * sizeof(float));
    if (!parts) return bnb_last_status();
    launch->bindings[y_at] = (struct binding){parts, 0, WRITES, NULL};
    launch->constants[TILE_Y] = STORE_F32;
    launch->constants[TILE_BIAS] = 0;
    bnb_status status = cuda_launch(gpu, launch);
    if (status == BNB_OK)
        status = add_parts(gpu, (struct sum_args){m, n, splits}, (struct binding){parts, 0, READS, NULL}, bias,
                           has_bias, y, to);
    cuda_free(gpu, parts);
    return status;
}

/* ── Products ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static const struct tile portable_tiles[2] = {
    {"matmul_dense", "matmul_dense_half_64", 64, 64, 128, 4 * 128 * 128, 3},
    {"matmul_dense", "matmul_dense_half_128", 128, 128, 128, 3 * 256 * 128, 2},
};

/* They bring 16 bytes of a stored row at a time. */
static bool is_aligned(const struct dense_product *p) {
    uint32_t of_a = p->a.transposed ? p->m : p->k, of_b = p->b.transposed ? p->n : p->k;
    return of_a % 8 == 0 && of_b % 8 == 0;
}

size_t dense_bytes(const struct dense_product *p) {
    return 2 * ((size_t)p->n + p->m) * p->k + (p->to == STORE_F32 ? 4 : 2) * (size_t)p->m * p->n;
}

bnb_status cuda_dense(struct gpu *gpu, const struct dense_product *p) {
    if (!is_aligned(p)) return cuda_no_kernel();
    bnb_status status = gpu->capability == HOPPER ? cuda_dense_hopper(gpu, p) : BNB_UNSUPPORTED;
    if (status != BNB_UNSUPPORTED) return status;
    const struct tile *tile = &portable_tiles[p->m > 64];
    uint32_t           splits = cuda_splits(gpu, tile, p->m, p->n, p->k);
    struct dense_args  args = {p->m, p->n, 2 * p->k, 0};
    uint32_t           steps = (uint32_t)ceil_div(args.bytes, 128);
    args.split = (uint32_t)ceil_div(steps, splits) * 128;
    splits = (uint32_t)ceil_div(steps, args.split / 128);
    struct launch launch = {
        .family = tile->family,
        .kernel = tile->kernel,
        .constants = {p->dtype, [TILE_Y] = p->to, 0, p->a.transposed, [TILE_BIAS] = p->has_bias, p->b.transposed},
        .constant_count = 6,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {p->a.of, p->b.of, {}, {}, p->bias, p->y},
        .binding_count = 6,
        .groups = {(uint32_t)(ceil_div(p->m, tile->rows) * ceil_div(p->n, tile->columns)), 1, splits},
        .threads = tile->threads,
        .shared_bytes = tile->shared,
        .bytes_moved = dense_bytes(p),
    };
    return cuda_launch_split(gpu, &launch, p->m, p->n, 5, p->bias, splits);
}

/* ── Quantised weights ──────────────────────────────────────────────────────────────────────────────────────────── */

static bnb_status write_out(struct gpu *gpu, const struct coded_weight *w, size_t count, uint32_t dtype, void *memory) {
    size_t                 groups = ceil_div(count, 8 * DEQUANTIZE_THREADS);
    struct dequantize_args args = {(uint32_t)count, (uint32_t)(count >> 32), w->layout};
    return cuda_launch(gpu, &(struct launch){
                                .family = "dequantize",
                                .kernel = "dequantize",
                                .constants = {w->store, dtype, w->scales, w->offsets},
                                .constant_count = 4,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bindings = {w->parts[0],
                                             w->parts[1],
                                             w->parts[2],
                                             w->parts[3],
                                             w->parts[4],
                                             {memory, 0, WRITES, NULL},
                                             w->offset_parts[0],
                                             w->offset_parts[1],
                                             w->offset_parts[2]},
                                .binding_count = 9,
                                .groups = {(uint32_t)(groups < 2048 ? groups : 2048), 1, 1},
                                .threads = DEQUANTIZE_THREADS,
                                .bytes_moved = count * 2 + count * (w->store - STORE_CODE) / 8,
                            });
}

bnb_status cuda_dense_coded(struct gpu *gpu, const struct dense_product *p, const struct coded_weight *w) {
    if (!is_aligned(p)) return cuda_no_kernel();
    size_t count = (size_t)p->n * p->k;
    void  *memory = cuda_alloc(gpu, count * 2);
    if (!memory) return bnb_last_status() == BNB_OUT_OF_MEMORY ? cuda_no_kernel() : bnb_last_status();
    bnb_status           status = write_out(gpu, w, count, p->dtype, memory);
    struct dense_product written = *p;
    written.b.of = (struct binding){memory, 0, READS, NULL};
    if (status == BNB_OK) status = cuda_dense(gpu, &written);
    cuda_free(gpu, memory);
    return status;
}
