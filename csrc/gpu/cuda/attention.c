/* Attention by the kernels of cuda/, for tensor cores: over a cache of f16, by heads of some sizes. For everything else
 * UNSUPPORTED lets the portable kernels be launched. */
#include "cuda.h"

#include <string.h>

#include "../../../metal/args.h"

/* Places of attention's constants and of its result, as csrc/ops/attention_launch.c has them. */
enum { OF_STORE = 1, OF_KEY_BIAS = 5, OF_SPLIT = 6, ATTENTION_Y = 7 };

/* Of cuda/attention_tile.metal. */
enum { FLASH_ROWS = 64, FLASH_KEYS = 64, FLASH_THREADS = 128, FEW_KEYS = 32, FEW_HEADS = 16 };

/* Heads of 64, 96 and 128 columns have kernels: 0, 1 and 2; -1 for others. */
static int columns_of(const struct attention_args *args) {
    return args->d == 64 ? 0 : args->d == 96 ? 1 : args->d == 128 ? 2 : -1;
}

static uint32_t shared_of(const struct attention_args *args, uint32_t keys) { return 2 * keys * (2 * args->d + 16); }

static bnb_status many_rows(struct gpu *gpu, struct launch *launch, const struct attention_args *args) {
    static const char *const kernels[] = {"attention_tile_64", "attention_tile_96", "attention_tile_128"};
    launch->kernel = kernels[columns_of(args)];
    launch->groups[0] = args->heads, launch->groups[1] = (uint32_t)ceil_div(args->rows, FLASH_ROWS);
    launch->groups[2] = 1;
    launch->shared_bytes = 2 * shared_of(args, FLASH_KEYS); /* of two steps */
    return cuda_launch(gpu, launch);
}

static bnb_status merge(struct gpu *gpu, struct launch launch, void *partial, struct binding y) {
    const struct attention_args *args = launch.args;
    launch.family = "attention";
    launch.kernel = "attention_merge";
    launch.bindings[0] = (struct binding){partial, 0, READS, NULL}, launch.bindings[1] = y;
    launch.binding_count = 2;
    launch.groups[0] = args->rows * args->heads, launch.groups[1] = launch.groups[2] = 1;
    launch.threads = MERGE_THREADS;
    launch.shared_bytes = 0;
    return cuda_launch(gpu, &launch);
}

/* The keys are split, so that the threadgroups fill the GPU; one takes 128 at a time. */
static bnb_status few_rows(struct gpu *gpu, struct launch *launch, struct attention_args *args) {
    static const char *const kernels[] = {"attention_few_64", "attention_few_96", "attention_few_128"};
    enum { PART_KEYS = FEW_KEYS * FLASH_THREADS / 32, PARTS_MOST = MERGE_THREADS };
    size_t units = (size_t)args->rows * args->kv_heads, parts = ceil_div(2 * (size_t)gpu->multiprocessors, units);
    size_t most = args->reach / PART_KEYS < PARTS_MOST ? args->reach / PART_KEYS : PARTS_MOST;
    if (parts > most) parts = most ? most : 1;
    args->parts = (uint32_t)parts;
    launch->kernel = kernels[columns_of(args)];
    launch->constants[OF_SPLIT] = parts > 1;
    launch->groups[0] = args->kv_heads, launch->groups[1] = args->rows, launch->groups[2] = args->parts;
    launch->shared_bytes = FLASH_THREADS / 32 * shared_of(args, FEW_KEYS);
    if (parts == 1) return cuda_launch(gpu, launch);
    size_t         bytes = parts * args->rows * args->heads * (args->d + 2) * sizeof(float);
    struct binding y = launch->bindings[ATTENTION_Y];
    void          *partial = cuda_scratch(gpu, bytes);
    if (!partial) return bnb_last_status();
    launch->bindings[ATTENTION_Y] = (struct binding){partial, 0, WRITES, NULL};
    bnb_status status = cuda_launch(gpu, launch);
    if (status == BNB_OK) status = merge(gpu, *launch, partial, y);
    cuda_leave_scratch(gpu, partial);
    return status;
}

/* Over a cache of f16. Of each text one row, as where texts are written: few rows for its keys. */
bnb_status cuda_serve_attention(struct gpu *gpu, const struct launch *whole) {
    struct attention_args args;
    memcpy(&args, whole->args, sizeof args);
    if (columns_of(&args) < 0 || whole->constants[OF_STORE] != STORE_F16 || whole->constants[OF_KEY_BIAS])
        return cuda_no_kernel();
    struct launch launch = *whole;
    launch.family = "attention_tile";
    launch.args = &args;
    launch.threads = FLASH_THREADS;
    bool few = args.rows < 16 || args.rows <= args.texts;
    if (few && args.heads / args.kv_heads > FEW_HEADS) return cuda_no_kernel();
    return few ? few_rows(gpu, &launch, &args) : many_rows(gpu, &launch, &args);
}
