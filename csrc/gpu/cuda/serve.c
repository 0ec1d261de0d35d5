/* Whole products by the kernels of cuda/, for tensor cores: which of them, with what grid, and on what in between.
 *
 * They round the weight's values to the dtype of x, and with many rows its scales too, which is within what
 * BNB_PRECISION_HIGH allows, and take what most models are: 4-bit codes in blocks that are powers of two, halves, int8.
 * For
 * everything else UNSUPPORTED lets the portable kernels be launched; a profile shows by their names which ran. */
#include "product.h"

#include <string.h>

/* One product on its way to kernels. */
struct product {
    struct gpu          *gpu;
    const struct launch *whole;
    struct matmul_args   args;
    uint32_t             dtype; /* that the kernels multiply in: STORE_F16 or STORE_BF16 */
    uint32_t             to;    /* of y */
    bool                 hopper;
};

/* ── 4-bit codes ────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool takes_codes(const struct product *p) {
    uint32_t shift = p->args.scales.shift, k = p->args.k;
    if (p->whole->constants[OF_W] != STORE_CODE4 || shift < 5 || shift > 31 || k % 32) return false;
    uint32_t scales = p->whole->constants[OF_SCALES];
    if ((scales != SCALES_F32 && scales != SCALES_NESTED) || p->whole->constants[OF_OFFSETS] != OFFSETS_NONE)
        return false;
    bool nested = scales == SCALES_NESTED; /* a span of 128 has one group's scales */
    if (nested && (p->args.scales.nested_shift < 2 || p->args.scales.nested_shift > 31 || k % 128)) return false;
    return k % (shift == 5 ? 32 : shift == 6 ? 64 : 128) == 0; /* so that a lane's weights have one scale */
}

/* The launch of a kernel, which may be named later, that takes a product's bindings as they are, and behind y the
 * offset of nested scales. */
static struct launch launch_of(const struct product *p, const char *family, const char *kernel) {
    struct launch launch = *p->whole;
    launch.family = family;
    launch.kernel = kernel;
    launch.args = &p->args;
    launch.bindings[AT_OFFSETS] = p->whole->bindings[AT_NESTED_OFFSETS]; /* blocks have none */
    launch.binding_count = AT_OFFSETS + 1;
    launch.constant_count = 6;
    memcpy(launch.constants,
           (uint32_t[]){p->dtype, p->to, p->whole->constants[OF_SCALES], 0, p->whole->constants[OF_BIAS], 0},
           6 * sizeof *launch.constants);
    launch.groups[0] = launch.groups[1] = launch.groups[2] = 1;
    return launch;
}

/* Of 128 weights: a kernel for few rows gives each block columns of its own. */
static uint32_t blocks_of_128(const struct product *p) {
    return p->args.scales.shift == 5 ? 4 : p->args.scales.shift == 6 ? 2 : 1;
}

static bnb_status few(const struct product *p) {
    uint32_t      blocks = blocks_of_128(p), tiles = (uint32_t)ceil_div((size_t)p->args.m * blocks, 8);
    bool          tall = p->args.n >= 8192 || tiles > 1; /* as measured on an H100 */
    const char   *kernel = tiles > 2   ? "matmul_few_4_2_8"
                           : tiles > 1 ? "matmul_few_2_2_8"
                           : tall      ? "matmul_few_1_2_8_choose"
                                       : "matmul_few_1_1_8";
    struct launch launch = launch_of(p, "matmul_few", kernel);
    launch.constants[3] = blocks;
    launch.constants[5] = p->args.k % 256 == 0;
    launch.groups[0] = (uint32_t)ceil_div(p->args.n, tall ? 32 : 16);
    launch.threads = 256;
    return cuda_launch(p->gpu, &launch);
}

static const struct tile portable_tiles[3] = {
    {"matmul_many", "matmul_many_2_4_1_4_4", 32, 128, 128, 32768 + 1024 + 4 * 32 * 144, 3},
    {"matmul_many", "matmul_many_4_4_1_4_4", 64, 128, 128, 32768 + 1024 + 4 * 64 * 144, 2},
    {"matmul_many", "matmul_many_4_4_2_4_3", 128, 128, 256, 32768 + 1024 + 3 * 128 * 144, 1},
};

static bnb_status many_on_hopper(const struct product *p) {
    struct launch launch = launch_of(p, NULL, NULL);
    launch.constants[3] = p->args.scales.shift == 5;
    return cuda_codes_hopper(p->gpu, &launch, &p->args, p->dtype);
}

static bnb_status many(const struct product *p) {
    bnb_status status = p->hopper ? many_on_hopper(p) : BNB_UNSUPPORTED;
    if (status != BNB_UNSUPPORTED) return status;
    uint32_t           m = p->args.m, n = p->args.n;
    const struct tile *tile = &portable_tiles[m <= 32 ? 0 : m <= 64 ? 1 : 2];
    uint32_t           splits = cuda_splits(p->gpu, tile, m, n, p->args.k), steps = (uint32_t)ceil_div(p->args.k, 64);
    struct product     split = *p;
    split.args.split = (uint32_t)ceil_div(steps, splits) * 64;
    splits = (uint32_t)ceil_div(steps, split.args.split / 64);

    struct launch launch = launch_of(&split, tile->family, tile->kernel);
    launch.constants[3] = p->args.scales.shift == 5;
    launch.groups[0] = (uint32_t)ceil_div(n, tile->columns);
    launch.groups[1] = (uint32_t)ceil_div(m, tile->rows);
    launch.groups[2] = splits;
    launch.threads = tile->threads;
    launch.shared_bytes = tile->shared;
    return cuda_launch_split(p->gpu, &launch, m, n, AT_Y, launch.bindings[AT_BIAS], splits);
}

/* ── Choosing ───────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Up to so many columns, of rows of x by blocks, each code is decoded once for all (few), and up to so many rows once a
 * tile (many). Hopper's tiles are ahead of more than two columns' tiles where there are enough of them. As measured on
 * an H100 and an H200. */
enum { FEW_COLUMNS = 32, FEW_COLUMNS_HOPPER = 16, TILED_FROM_HOPPER = 8192, MANY_MOST_HOPPER = 2048, MANY_MOST = 512 };

static bool are_few(const struct product *p) {
    bool tiled = p->hopper && p->args.n >= TILED_FROM_HOPPER;
    return p->args.m * blocks_of_128(p) <= (tiled ? FEW_COLUMNS_HOPPER : FEW_COLUMNS);
}

bnb_status cuda_no_kernel(void) { return fail(BNB_UNSUPPORTED, "CUDA's own kernels don't take this case"); }

/* By tiles, where they have rows enough. With many rows, decoding the weight once and multiplying whole is ahead of
 * decoding it for each tile. */
static bnb_status multiply_whole(const struct product *p) {
    const struct binding      *of = p->whole->bindings;
    const uint32_t            *constants = p->whole->constants, w = constants[OF_W];
    const struct dense_product dense = {
        .m = p->args.m,
        .n = p->args.n,
        .k = p->args.k,
        .dtype = p->dtype,
        .to = p->to,
        .a = {of[AT_X], false},
        .b = {of[AT_CODES], false},
        .has_bias = constants[OF_BIAS],
        .bias = of[AT_BIAS],
        .y = of[AT_Y],
    };
    if (p->args.m <= 8 || (w < STORE_CODE && w != p->dtype)) return cuda_no_kernel();
    if (w < STORE_CODE) return cuda_dense(p->gpu, &dense);
    return cuda_dense_coded(p->gpu, &dense,
                            &(struct coded_weight){w, constants[OF_SCALES], constants[OF_OFFSETS], p->args.scales,
                                                   of + AT_CODES, of + AT_OFFSETS});
}

static bnb_status multiply(const struct product *p) {
    uint32_t m = p->args.m;
    bool     codes = takes_codes(p);
    if (codes && are_few(p)) return few(p);
    if (codes && m <= (p->hopper ? MANY_MOST_HOPPER : MANY_MOST)) return many(p);
    return multiply_whole(p);
}

/* x in fp32, where half precision's rounding is allowed. */
static bnb_status multiply_rounded(struct product *p) {
    struct launch whole = *p->whole;
    size_t        count = (size_t)p->args.m * p->args.k, groups = ceil_div(count, 8 * ELEMENTWISE_THREADS);
    void         *x = cuda_scratch(p->gpu, count * 2);
    if (!x) return bnb_last_status();
    struct elementwise_args args = {(uint32_t)count, (uint32_t)(count >> 32), 1};
    bnb_status status = cuda_launch(p->gpu, &(struct launch){
                                                .family = "elementwise",
                                                .kernel = "unary",
                                                .constants = {UNARY_COPY, STORE_F32, p->dtype},
                                                .constant_count = 3,
                                                .args = &args,
                                                .args_bytes = sizeof args,
                                                .bindings = {whole.bindings[AT_X], {x, 0, WRITES, NULL}},
                                                .binding_count = 2,
                                                .groups = {(uint32_t)(groups < 2048 ? groups : 2048), 1, 1},
                                                .threads = ELEMENTWISE_THREADS,
                                                .bytes_moved = count * 6,
                                            });
    whole.bindings[AT_X] = (struct binding){x, 0, READS, NULL};
    p->whole = &whole;
    if (status == BNB_OK) status = multiply(p);
    cuda_leave_scratch(p->gpu, x);
    return status;
}

static bnb_status serve_matmul(struct gpu *gpu, const struct launch *whole) {
    uint32_t       x = whole->constants[OF_X], w = whole->constants[OF_W];
    struct product p = {.gpu = gpu, .whole = whole, .dtype = x, .to = x, .hopper = gpu->capability == HOPPER};
    memcpy(&p.args, whole->args, sizeof p.args);
    if (whole->constants[OF_WHOLE] == WHOLE_ROWS) p.args.scales.shift = 32; /* blocks of no power of two */
    bnb_status by_bytes = cuda_serve_bytes(gpu, whole);
    if (by_bytes != BNB_UNSUPPORTED) return by_bytes;
    if (x == STORE_F32) {
        if (whole->precision != BNB_PRECISION_MEDIUM || w == STORE_F32) return cuda_no_kernel();
        p.dtype = w < STORE_CODE ? w : STORE_BF16;
        return multiply_rounded(&p);
    }
    if (whole->precision == BNB_PRECISION_HIGHEST && w >= STORE_CODE) return cuda_no_kernel();
    return multiply(&p);
}

/* ── LLM.int8() ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* The larger one where it makes tiles enough to fill the GPU twice. */
static const struct tile int8_tiles[2][2] = {
    {{"matmul_dense", "matmul_dense_int8_64", 64, 64, 128, 4 * 128 * 128, 3},
     {"matmul_dense", "matmul_dense_int8_128", 128, 128, 128, 3 * 256 * 128, 2}},
    {{"int8_hopper", "int8_hopper_128", 128, 128, 256, 7 * 256 * 128, 1},
     {"int8_hopper", "int8_hopper_256", 256, 128, 256, 4 * 384 * 128, 1}},
};

static const struct tile *int8_tile(const struct gpu *gpu, uint32_t m, uint32_t n) {
    const struct tile *of = int8_tiles[gpu->capability == HOPPER], *large = &of[1];
    return ceil_div(m, large->rows) * ceil_div(n, large->columns) >= 2 * (size_t)gpu->multiprocessors ? large : &of[0];
}

static bnb_status serve_int8(struct gpu *gpu, const struct launch *whole) {
    struct int8_matmul_args of;
    memcpy(&of, whole->args, sizeof of);
    uint32_t to = whole->constants[0], outliers = whole->constants[1], bias = whole->constants[3];
    if (outliers || of.k % 16 || of.m <= 16) return cuda_no_kernel();
    const struct tile    *tile = int8_tile(gpu, of.m, of.n);
    const struct binding *from = whole->bindings;
    struct dense_args     args = {of.m, of.n, of.k, of.k};
    return cuda_launch(gpu,
                       &(struct launch){
                           .family = tile->family,
                           .kernel = tile->kernel,
                           .constants = {0, [TILE_Y] = to, to != STORE_I32, 0, [TILE_BIAS] = bias, 0},
                           .constant_count = 6,
                           .args = &args,
                           .args_bytes = sizeof args,
                           .bindings = {from[0], from[1], from[2], from[3], from[6], from[7]},
                           .binding_count = 6,
                           .groups = {(uint32_t)(ceil_div(of.m, tile->rows) * ceil_div(of.n, tile->columns)), 1, 1},
                           .threads = tile->threads,
                           .shared_bytes = tile->shared,
                           .bytes_moved = whole->bytes_moved,
                       });
}

/* ── Kernels that take another's place ──────────────────────────────────────────────────────────────────────────── */

static bool is_of(const struct launch *launch, const char *kernel) {
    return !strcmp(launch->family, kernel) && !strcmp(launch->kernel, kernel);
}

/* 4-bit codes in blocks of 32 and more, powers of two, whose scales are as bitsandbytes has them. */
static bool fits_dequantize4(const struct launch *launch, const struct scale_layout *scales) {
    bool nested = launch->constants[2] == SCALES_NESTED;
    if (launch->constants[0] != STORE_CODE4 || launch->constants[3] != OFFSETS_NONE) return false;
    if (nested ? scales->nested_shift > 31 : launch->constants[2] != SCALES_F32) return false;
    return scales->shift >= 5 && scales->shift < 32;
}

/* A simdgroup for each whole span, and one for each 32 elements of the rest. */
static uint32_t dequantize4_groups(const struct dequantize_args *args) {
    uint64_t count = (uint64_t)args->count_high << 32 | args->count_low;
    uint64_t simdgroups = count / DEQUANTIZE4_SPAN + ceil_div(count % DEQUANTIZE4_SPAN, 32);
    return (uint32_t)ceil_div(simdgroups, DEQUANTIZE_THREADS / 32);
}

void cuda_replace(struct launch *launch) {
    if (is_of(launch, "quantize") && launch->constants[1] == STORE_CODE4) {
        launch->family = launch->kernel = "quantize4"; /* with the same arguments, grid and bytes */
    } else if (is_of(launch, "dequantize")) {
        struct dequantize_args args;
        memcpy(&args, launch->args, sizeof args);
        if (!fits_dequantize4(launch, &args.scales)) return;
        launch->family = launch->kernel = "dequantize4"; /* with the same arguments and bytes */
        launch->groups[0] = dequantize4_groups(&args);
    }
}

bnb_status cuda_serve(void *gpu, const struct launch *whole) {
    if (!strcmp(whole->family, "matmul")) return serve_matmul(gpu, whole);
    if (!strcmp(whole->family, "matmul_backward")) return cuda_serve_backward(gpu, whole);
    if (!strcmp(whole->family, "int8_matmul")) return serve_int8(gpu, whole);
    if (!strcmp(whole->family, "attention")) return cuda_serve_attention(gpu, whole);
    return cuda_no_kernel();
}
