/* The things that calls are made of: a small model's worth of tensors, codebooks and quantised matrices. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

_Thread_local struct world world;

static _Thread_local uint64_t state;

void chance_seed(uint64_t seed) {
    state = seed;
    state = chance(); /* streams of seeds that follow one another must not be one stream, shifted */
}

uint64_t chance(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Bytes that decide in chance's place, as long as there are any: libFuzzer's. */
static _Thread_local const uint8_t *guide;
static _Thread_local size_t         guide_bytes;

void chance_guide(const uint8_t *data, size_t bytes) { guide = data, guide_bytes = bytes; }
bool chance_is_guided(void) { return guide_bytes > 0; }

size_t below(size_t bound) {
    if (!guide_bytes) return chance() % bound;
    size_t value = 0;
    for (size_t most = bound - 1; most && guide_bytes; most >>= 8, guide_bytes--) value = value << 8 | *guide++;
    return value % bound;
}

float normal(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)(chance() >> 40) / 0x1p24f - 0.5f;
    return sum * 1.7f;
}

static void *must(void *made) {
    if (!made) broken("the world can't be made: %s", bnb_last_error());
    return made;
}

static bnb_tensor *floats(bnb_dtype dtype, size_t rows, size_t columns, float outliers) {
    float *values = malloc(rows * columns * sizeof *values);
    for (size_t i = 0; i < rows * columns; i++) values[i] = normal() * (one_in(50) ? outliers : 1);
    bnb_tensor *wide =
        must(bnb_tensor_from(world.device, BNB_F32, rows, columns, values, rows * columns * sizeof *values));
    free(values);
    if (dtype == BNB_F32) return wide;
    bnb_tensor *narrow = must(bnb_cast(wide, dtype));
    bnb_tensor_free(wide);
    return narrow;
}

/* Positive numbers, as scales are. */
static bnb_tensor *scales(size_t count) {
    float *values = malloc(count * sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = fabsf(normal()) + 0.01f;
    bnb_tensor *tensor = must(bnb_tensor_from(world.device, BNB_F32, 1, count, values, count * sizeof *values));
    free(values);
    return tensor;
}

static bnb_tensor *bytes(bnb_dtype dtype, size_t rows, size_t columns) {
    uint8_t *values = malloc(rows * columns);
    for (size_t i = 0; i < rows * columns; i++) values[i] = (uint8_t)chance();
    bnb_tensor *tensor = must(bnb_tensor_from(world.device, dtype, rows, columns, values, rows * columns));
    free(values);
    return tensor;
}

static bnb_tensor *integers(size_t rows, size_t columns, size_t bound) {
    int32_t *values = malloc(rows * columns * sizeof *values);
    for (size_t i = 0; i < rows * columns; i++) values[i] = (int32_t)below(bound);
    bnb_tensor *tensor =
        must(bnb_tensor_from(world.device, BNB_I32, rows, columns, values, rows * columns * sizeof *values));
    free(values);
    return tensor;
}

/* Ascending columns, filled up with -1. */
static bnb_tensor *outlier_list(size_t columns) {
    int32_t *list = malloc(columns * sizeof *list);
    size_t   count = 0;
    for (size_t c = 0; c < columns; c++)
        if (one_in(8)) list[count++] = (int32_t)c;
    while (count < columns) list[count++] = -1;
    bnb_tensor *tensor = must(bnb_tensor_from(world.device, BNB_I32, 1, columns, list, columns * sizeof *list));
    free(list);
    return tensor;
}

static bnb_codebook *codebook(size_t size) {
    float values[256];
    for (size_t i = 0; i < size; i++) values[i] = normal();
    return must(bnb_codebook_from(values, size * sizeof *values));
}

static void choose_sizes(bool small) {
    static const size_t ms[] = {1, 1, 2, 3, 5, 8, 17, 33}, ks[] = {1, 7, 32, 64, 65, 96, 128, 255, 256, 320};
    world.m = ms[below(sizeof ms / sizeof *ms)];
    world.k = ks[below(sizeof ks / sizeof *ks)];
    world.n = 1 + below(small ? 24 : 70);
    if (!small && one_in(12)) world.m = 40 + below(60), world.k = 1024, world.n = 256; /* enough for several threads */
    world.block = (size_t)32 << below(4);
}

static void build_optimizer(void) {
    size_t m = world.m, k = world.k, blocks = (m * k + 255) / 256;
    for (int i = 0; i < 3; i++) world.p[i] = floats((bnb_dtype)i, m, k, 1), world.g[i] = floats((bnb_dtype)i, m, k, 1);
    for (int i = 0; i < 2; i++) {
        world.state[i] = must(bnb_tensor_zeros(world.device, BNB_F32, m, k));
        world.state8[i] = bytes(BNB_U8, m, k);
        world.absmax[i] = scales(blocks);
    }
    world.state_twice = must(bnb_tensor_zeros(world.device, BNB_F32, 2 * m, k));
    world.state8_twice = bytes(BNB_U8, 2 * m, k);
    world.absmax_twice = scales(2 * blocks);
    world.unorm = must(bnb_tensor_zeros(world.device, BNB_F32, 1, 1));
}

/* A text of m rows, and caches that hold it. */
static void build_cache(void) {
    size_t   m = world.m;
    int32_t *rows = malloc(m * 4 * sizeof *rows);
    for (size_t i = 0; i < m; i++)
        memcpy(rows + 4 * i, (int32_t[]){0, (int32_t)i, 0, (int32_t)i + 1}, 4 * sizeof *rows);
    world.rows = must(bnb_tensor_from(world.device, BNB_I32, m, 4, rows, m * 4 * sizeof *rows));
    free(rows);
    world.one = integers(1, 1, 1);
    world.capacity = world.k <= 96 && one_in(4) ? 640 : m; /* of which a row's keys are split over the GPU */
    world.cache[0] = must(bnb_cache_new(world.device, BNB_F32, 2, 2, 1, world.capacity, world.k));
    world.cache[1] = must(bnb_cache_new(world.device, BNB_I8, 1, 1, 1, world.capacity, world.k));
    world.cache[2] = must(bnb_cache_new(world.device, BNB_F16, 1, 1, 2, 16, 8));
}

/* The same with the codes of its scales as those of offsets too. */
static bnb_quantized *with_offsets(bnb_quantized *q) {
    bnb_tensor    *codes = must(bnb_quantized_part(q, BNB_PART_CODES));
    bnb_tensor    *absmax = must(bnb_quantized_part(q, BNB_PART_ABSMAX));
    bnb_tensor    *outer = must(bnb_quantized_part(q, BNB_PART_NESTED_ABSMAX));
    bnb_quantized *both =
        must(bnb_quantized_from(codes, bnb_quantized_rows(q), bnb_quantized_columns(q), world.dynamic,
                                bnb_quantized_block(q), absmax, absmax, world.dynamic, 256, outer, 0, NULL, outer));
    bnb_tensor_free(codes);
    bnb_tensor_free(absmax);
    bnb_tensor_free(outer);
    bnb_quantized_free(q);
    return both;
}

void world_build(bool small, bool cold) {
    const char *kind = getenv("FAULTS_DEVICE");
    world = (struct world){.device = must(bnb_device_open(kind ? kind : "cpu"))};
    choose_sizes(small);
    size_t m = world.m, k = world.k, n = world.n;
    for (int i = 0; i < 3; i++) world.x[i] = floats((bnb_dtype)i, m, k, 9);
    world.codes16 = codebook(16);
    world.codes256 = codebook(256);
    world.codes_other = codebook((size_t[]){4, 8, 32, 64, 128}[below(5)]);
    world.x_column_stats = scales(k);
    if (cold) return;
    for (int i = 0; i < 3; i++) {
        world.w[i] = floats((bnb_dtype)i, n, k, 1);
        world.dy[i] = floats((bnb_dtype)i, m, n, 1);
        world.bias[i] = floats((bnb_dtype)i, 1, n, 1);
        world.weight[i] = floats((bnb_dtype)i, 1, k, 1);
    }
    world.indices = integers(1, m, n);
    world.a = bytes(BNB_I8, m, k);
    world.b = bytes(BNB_I8, n, k);
    world.row_stats = scales(m);
    world.column_stats = scales(n);
    world.sums = integers(m, n, 1 << 20);
    world.outliers = outlier_list(k);
    world.nf4 = must(bnb_codebook_named("nf4"));
    world.dynamic = must(bnb_codebook_named("dynamic"));
    world.q[0] =
        must(bnb_quantize(world.w[0], one_in(2) ? world.nf4 : world.codes16, world.block, 0, BNB_SCALES_ABSMAX, NULL));
    world.q[1] = must(bnb_quantize(world.w[1], one_in(2) ? world.dynamic : world.codes256, 1 + below(300), 0,
                                   BNB_SCALES_ABSMAX, NULL));
    world.q[2] = must(bnb_quantize(world.w[2], world.nf4, world.block, 1 + below(300), BNB_SCALES_LEAST_SQUARES, NULL));
    world.q[3] = with_offsets(must(bnb_quantize(world.w[0], world.dynamic, world.block, 256, BNB_SCALES_ABSMAX, NULL)));
    world.q[5] =
        must(bnb_quantize(world.w[1], world.codes_other, world.block, one_in(2) ? 0 : 256, BNB_SCALES_ABSMAX, NULL));
    bnb_codebook *int8 = must(bnb_codebook_named("int8"));
    world.q[4] =
        must(bnb_quantized_from(world.b, n, k, int8, k, world.column_stats, NULL, NULL, 0, NULL, 0, NULL, NULL));
    bnb_codebook_free(int8);
    world.recording = must(made_recording());
    world.sixteens = floats(BNB_F32, 2, 32, 1);
    build_optimizer();
    build_cache();
}

void world_free(void) {
    struct world *w = &world;
    bnb_tensor  **tensors[] = {w->x, w->w, w->dy, w->bias, w->weight, w->p, w->g};
    for (size_t t = 0; t < sizeof tensors / sizeof *tensors; t++)
        for (int i = 0; i < 3; i++) bnb_tensor_free(tensors[t][i]);
    bnb_tensor *single[] = {w->indices,
                            w->a,
                            w->b,
                            w->row_stats,
                            w->column_stats,
                            w->x_column_stats,
                            w->sums,
                            w->outliers,
                            w->state[0],
                            w->state[1],
                            w->state_twice,
                            w->state8[0],
                            w->state8[1],
                            w->state8_twice,
                            w->absmax[0],
                            w->absmax[1],
                            w->absmax_twice,
                            w->unorm,
                            w->rows,
                            w->one};
    for (size_t t = 0; t < sizeof single / sizeof *single; t++) bnb_tensor_free(single[t]);
    bnb_recording_free(w->recording);
    bnb_tensor_free(w->sixteens);
    for (int i = 0; i < 6; i++) bnb_quantized_free(w->q[i]);
    for (int i = 0; i < 3; i++) bnb_cache_free(w->cache[i]);
    bnb_codebook *codebooks[] = {w->codes16, w->codes256, w->codes_other, w->nf4, w->dynamic};
    for (int i = 0; i < 5; i++) bnb_codebook_free(codebooks[i]);
    world = (struct world){};
}
