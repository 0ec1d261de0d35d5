/* A call of every entry that must succeed, made of the world's things: a new entry of bnb.h needs a row here. */
#define _DEFAULT_SOURCE /* mkstemp, ftruncate */
#include "recipes.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define P(pointer) {.p = (void *)(pointer)}
#define N(number)  {.n = (number)}
#define U(number)  {.u = (uint32_t)(number)}
#define I(number)  {.i = (int32_t)(number)}
#define F(number)  {.f = (float)(number)}
#define D(number)  {.d = (number)}
#define GIVE(...)                                                                                                      \
    do {                                                                                                               \
        union arg given[] = {__VA_ARGS__};                                                                             \
        memcpy(args, given, sizeof given);                                                                             \
    } while (0)
#define VALID(entry) void valid_##entry([[maybe_unused]] union arg *args)
#define ROW(entry, ...)                                                                                                \
    VALID(entry) { GIVE(__VA_ARGS__); }
#define EMPTY(entry)                                                                                                   \
    VALID(entry) {}

#define ANY(three)  (three)[below(3)]
#define FLOAT_DTYPE I(below(3))
#define PRECISION   I(below(4))
#define ANY_CODES   (bnb_codebook *[]){world.codes16, world.codes256, world.codes_other}[below(3)]
#define OPTIONAL(x) (one_in(2) ? (x) : NULL)

EMPTY(bnb_last_status)
EMPTY(bnb_last_error)
EMPTY(bnb_version)
EMPTY(bnb_deallocator)

/* ── Devices ────────────────────────────────────────────────────────────────────────────────────────────────────── */

ROW(bnb_device_kind, U(below(5)))
ROW(bnb_device_open, P(bnb_device_name(world.device)))
ROW(bnb_device_lacks_kernels, P("cuda"))
VALID(bnb_device_take_kernels) {
    static const char kernels[] = "// bnb a b sm_80 7\n// a b\n";
    char             *copy = memcpy(scratch(sizeof kernels), kernels, sizeof kernels);
    GIVE(P("cuda"), P(copy), N(sizeof kernels - 1));
}
ROW(bnb_device_name, P(world.device))
ROW(bnb_device_describe, P(world.device))
ROW(bnb_device_wait, P(world.device))
ROW(bnb_device_idle, P(world.device))
ROW(bnb_device_counter, P(world.device), I(below(7)))
ROW(bnb_device_fallbacks, P(world.device))

/* ── Tensors ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static const size_t sizes[] = {4, 2, 2, 1, 1, 4};

static size_t bytes_of(const bnb_tensor *tensor) {
    return bnb_tensor_rows(tensor) * bnb_tensor_columns(tensor) * sizes[bnb_tensor_dtype(tensor)];
}

ROW(bnb_tensor_zeros, P(world.device), I(below(6)), N(1 + below(40)), N(1 + below(200)))

VALID(bnb_tensor_from) {
    size_t dtype = below(6), rows = 1 + below(40), columns = 1 + below(200), bytes = rows * columns * sizes[dtype];
    GIVE(P(world.device), I(dtype), N(rows), N(columns), P(scratch(bytes)), N(bytes));
}

/* Of 64 KB, all zeros, under no name. */
static int            file;
static pthread_once_t file_once = PTHREAD_ONCE_INIT;

static void make_file(void) {
    char path[] = "/tmp/bnb-faults-XXXXXX";
    file = mkstemp(path);
    if (file < 0 || unlink(path) || ftruncate(file, 64 << 10)) broken("no file could be made in /tmp");
}

VALID(bnb_tensor_from_file) {
    pthread_once(&file_once, make_file);
    size_t dtype = below(6), rows = 1 + below(40), columns = 1 + below(200), offset = below(100);
    GIVE(P(world.device), I(dtype), N(rows), N(columns), I(file), N(offset), P("world.bin"), I(one_in(2)));
}

VALID(bnb_tensor_from_gguf) {
    static const struct {
        uint32_t type, block, bytes;
    } types[] = {{0, 1, 4},      {1, 1, 2},     {2, 32, 18},    {3, 32, 20},    {6, 32, 22},    {7, 32, 24},
                 {8, 32, 34},    {10, 256, 84}, {11, 256, 110}, {12, 256, 144}, {13, 256, 176}, {14, 256, 210},
                 {15, 256, 292}, {16, 256, 66}, {17, 256, 74},  {18, 256, 98},  {19, 256, 50},  {20, 32, 18},
                 {21, 256, 110}, {22, 256, 82}, {23, 256, 136}, {29, 256, 56},  {30, 1, 2},     {34, 256, 54},
                 {35, 256, 66},  {39, 32, 17},  {40, 64, 36}};
    size_t t = below(sizeof types / sizeof *types), rows = 1 + below(5), blocks = 1 + below(4),
           bytes = rows * blocks * types[t].bytes;
    GIVE(P(world.device), U(types[t].type), N(rows), N(blocks * types[t].block), P(scratch(bytes)), N(bytes),
         FLOAT_DTYPE);
}

VALID(bnb_tensor_write) {
    bnb_tensor *tensor = ANY(world.p);
    GIVE(P(tensor), P(scratch(bytes_of(tensor))), N(bytes_of(tensor)));
}

VALID(bnb_tensor_read) {
    bnb_tensor *tensor = ANY(world.w);
    GIVE(P(tensor), P(scratch(bytes_of(tensor))), N(bytes_of(tensor)));
}

ROW(bnb_tensor_host, P(ANY(world.p)))
ROW(bnb_tensor_to, P(ANY(world.w)), P(world.device))
ROW(bnb_tensor_slice, P(ANY(world.x)), N(below(world.m)), N(1))
ROW(bnb_tensor_put, P(world.m >= world.n ? world.x[0] : world.w[0]), N(0),
    P(world.m >= world.n ? world.w[0] : world.x[0]))
ROW(bnb_tensor_reshape, P(ANY(world.x)), N(world.k), N(world.m))
ROW(bnb_tensor_dtype, P(ANY(world.x)))
ROW(bnb_tensor_rows, P(ANY(world.x)))
ROW(bnb_tensor_columns, P(ANY(world.x)))
ROW(bnb_tensor_free, P(made_tensor()))

/* ── Codebooks ──────────────────────────────────────────────────────────────────────────────────────────────────── */

VALID(bnb_codebook_named) {
    static const char *const names[] = {"nf4",  "fp4", "af4", "dynamic", "dynamic_unsigned",
                                        "int8", "nf2", "nf3", "nf5",     "nf6"};
    GIVE(P(names[below(10)]));
}

static const float *values(size_t count) {
    float *made = scratch(count * sizeof *made);
    for (size_t i = 0; i < count; i++) made[i] = one_in(20) ? 0 : normal();
    return made;
}

VALID(bnb_codebook_from) {
    size_t count = (size_t)4 << below(7);
    GIVE(P(values(count)), N(count * sizeof(float)));
}

VALID(bnb_codebook_read) {
    bnb_codebook *codebook = ANY_CODES;
    size_t        bytes = bnb_codebook_size(codebook) * sizeof(float);
    GIVE(P(codebook), P(scratch(bytes)), N(bytes));
}

VALID(bnb_codebook_fp8) {
    uint32_t exponent = 1 + (uint32_t)below(4), sign = (uint32_t)below(2),
             precision = 1 + (uint32_t)below(7 - sign - exponent);
    GIVE(I(sign), U(exponent), U(precision), U(exponent + precision + sign));
}

ROW(bnb_codebook_dynamic, I(below(2)), U(7), U(8))
ROW(bnb_codebook_linear, I(below(2)), U(2 + below(7)), I(below(2)))
ROW(bnb_codebook_normal, D(0.9 + 0.09 * ((double)below(100) / 100)), I(below(2)), U(2 + below(7)))
ROW(bnb_codebook_size, P(world.codes16))
ROW(bnb_codebook_free, P(bnb_codebook_linear(1, 8, 1)))

/* ── Quantised matrices ─────────────────────────────────────────────────────────────────────────────────────────── */

ROW(bnb_quantized_from, P(world.b), N(world.n), N(world.k), P(world.codes256), N(world.k), P(world.column_stats),
    P(NULL), P(NULL), N(0), P(NULL), F(0), P(NULL), P(NULL))
ROW(bnb_quantized_part, P(world.q[2 + below(2)]), I(below(5)))
ROW(bnb_quantized_rows, P(world.q[0]))
ROW(bnb_quantized_columns, P(world.q[1]))
ROW(bnb_quantized_block, P(world.q[2]))
ROW(bnb_quantized_nested_block, P(world.q[2]))
ROW(bnb_quantized_offset, P(world.q[3]))
ROW(bnb_device_size, P(world.device), I(below(6)), D(-1))
ROW(bnb_record, P(world.device))
VALID(bnb_record_end) {
    bnb_record(world.device);
    bnb_tensor_free(bnb_cast(ANY(world.x), BNB_F32));
    (void)args;
}
ROW(bnb_replay, P(world.recording))
ROW(bnb_recording_free, P(made_recording()))
ROW(bnb_quantized_free, P(bnb_quantize(world.x[0], world.codes16, 64, 0, BNB_SCALES_ABSMAX, NULL)))

/* ── Operations ─────────────────────────────────────────────────────────────────────────────────────────────────── */

#define QUANTIZED_W world.q[below(6)]

ROW(bnb_cast, P(ANY(world.x)), FLOAT_DTYPE)
ROW(bnb_quantize_affine, P(world.sixteens), U(2 + below(7)), N(16))
VALID(bnb_quantize) {
    bool searched = one_in(2);
    GIVE(P(ANY(world.x)), P(ANY_CODES), N(world.block), N(one_in(2) ? 0 : 1 + below(300)),
         I(searched ? BNB_SCALES_LEAST_SQUARES : BNB_SCALES_ABSMAX),
         P(searched ? OPTIONAL(world.x_column_stats) : NULL));
}

ROW(bnb_dequantize, P(QUANTIZED_W), FLOAT_DTYPE)
ROW(bnb_matmul, P(ANY(world.x)), P(ANY(world.w)), P(OPTIONAL(ANY(world.bias))), PRECISION)
ROW(bnb_matmul_quantized, P(ANY(world.x)), P(QUANTIZED_W), P(OPTIONAL(ANY(world.bias))), PRECISION)
ROW(bnb_matmul_backward, P(ANY(world.dy)), P(ANY(world.w)))
ROW(bnb_matmul_quantized_backward, P(ANY(world.dy)), P(QUANTIZED_W))
ROW(bnb_matmul_backward_weight, P(ANY(world.dy)), P(ANY(world.x)), FLOAT_DTYPE)
ROW(bnb_embedding, P(world.indices), P(ANY(world.w)), FLOAT_DTYPE)
ROW(bnb_embedding_quantized, P(world.indices), P(QUANTIZED_W), FLOAT_DTYPE)
ROW(bnb_embedding_backward, P(ANY(world.x)), P(world.indices), N(world.n), I((int)below(world.n + 1) - 1), FLOAT_DTYPE)
ROW(bnb_layer_norm, P(ANY(world.x)), P(ANY(world.weight)), P(ANY(world.weight)), F(1e-5))
ROW(bnb_layer_norm_backward, P(ANY(world.x)), P(ANY(world.x)), P(ANY(world.weight)), F(1e-5))
ROW(bnb_layer_norm_backward_weight, P(ANY(world.x)), P(ANY(world.x)), F(1e-5))
ROW(bnb_mul, P(ANY(world.x)), P(ANY(world.x)))
ROW(bnb_exp, P(ANY(world.x)))
ROW(bnb_sigmoid, P(ANY(world.x)))
ROW(bnb_transpose, P(ANY(world.x)))
ROW(bnb_softmax, P(ANY(world.x)))
ROW(bnb_add, P(OPTIONAL(ANY(world.x))), P(ANY(world.x)), F(normal()))
ROW(bnb_int8_outliers, P(ANY(world.x)), F(6))
ROW(bnb_int8_stats, P(ANY(world.x)), F(one_in(2) ? 0 : 6), I(below(2)))

VALID(bnb_int8_vectorwise_quant) {
    bool by_column = one_in(2);
    GIVE(P(ANY(world.x)), P(by_column ? world.x_column_stats : world.row_stats), F(one_in(2) ? 0 : 6),
         P(OPTIONAL(world.outliers)), I(by_column));
}

ROW(bnb_int8_vectorwise_dequant, P(world.a), P(world.row_stats), FLOAT_DTYPE)
ROW(bnb_int8_linear_matmul, P(world.a), P(world.b))
ROW(bnb_int8_mm_dequant, P(world.sums), P(world.row_stats), P(world.column_stats), P(OPTIONAL(ANY(world.bias))),
    FLOAT_DTYPE)
ROW(bnb_int8_scaled_mm, P(world.a), P(world.b), P(world.row_stats), P(world.column_stats), P(OPTIONAL(ANY(world.bias))),
    FLOAT_DTYPE)
ROW(bnb_int8_mixed_scaled_mm, P(ANY(world.x)), P(world.a), P(world.b), P(world.row_stats), P(world.column_stats),
    P(OPTIONAL(world.outliers)), P(OPTIONAL(ANY(world.bias))))
ROW(bnb_int8_matmul, P(ANY(world.x)), P(world.b), P(world.column_stats), F(one_in(2) ? 0 : 6),
    P(OPTIONAL(ANY(world.bias))))
ROW(bnb_compare, P(ANY(world.x)), P(ANY(world.x)))

VALID(bnb_optimizer_step) {
    bnb_optimizer kind = (bnb_optimizer)below(6);
    bool          twice = kind == BNB_OPTIMIZER_ADEMAMIX, coded = one_in(2), second = kind <= BNB_OPTIMIZER_ADEMAMIX,
                  trust = one_in(4);
    bnb_hyperparameters *h = scratch(sizeof *h);
    *h = (bnb_hyperparameters){.lr = 1e-3,
                               .beta1 = 0.9,
                               .beta2 = 0.99,
                               .beta3 = 0.999,
                               .alpha = 5,
                               .eps = 1e-8,
                               .gnorm_scale = 1,
                               .max_unorm = trust ? 0.1 : 0,
                               .step = 1 + (double)below(100)};
    bnb_tensor *first = coded   ? (twice ? world.state8_twice : world.state8[0])
                        : twice ? world.state_twice
                                : world.state[0];
    GIVE(I(kind), P(h), P(ANY(world.p)), P(ANY(world.g)), P(first),
         P(coded ? (twice ? world.absmax_twice : world.absmax[0]) : NULL), P(coded ? world.dynamic : NULL),
         P(!second ? NULL
           : coded ? world.state8[1]
                   : world.state[1]),
         P(coded && second ? world.absmax[1] : NULL), P(coded && second ? world.dynamic : NULL),
         P(trust ? world.unorm : NULL));
}

/* ── Whole models ───────────────────────────────────────────────────────────────────────────────────────────────── */

ROW(bnb_rms_norm, P(ANY(world.p)), P(OPTIONAL(ANY(world.g))), F(normal()), P(ANY(world.weight)), F(below(2)), F(1e-6))

VALID(bnb_activate) {
    bnb_tensor *x = ANY(world.x);
    GIVE(P(x), P(OPTIONAL(x)), I(0), I(below(4)));
}

/* Each layer is of less than what is kept for reuse once it is freed. */
ROW(bnb_cache_new, P(world.device), I(((int[]){BNB_F32, BNB_F16, BNB_I8}[below(3)])), N(1 + below(3)), N(1 + below(3)),
    N(1 + below(3)), N(1 + below(40)), N(1 + below(12)))
ROW(bnb_cache_resize, P(world.cache[2]), N(1 + below(3)), N(1 + below(60)))

static void span(union arg *args, bnb_cache *cache) {
    size_t length = below(world.m + 1), bytes = length * bnb_cache_row_bytes(cache);
    GIVE(P(cache), N(0), N(length), P(scratch(bytes + 1)), N(bytes));
}

VALID(bnb_cache_read) { span(args, world.cache[below(2)]); }
VALID(bnb_cache_write) { span(args, world.cache[below(2)]); }
ROW(bnb_cache_row_bytes, P(world.cache[below(2)]))
ROW(bnb_cache_free, P(bnb_cache_new(world.device, BNB_F16, 1, 1, 1, 16, 8)))

VALID(bnb_attention) {
    bnb_attention_options *o = scratch(sizeof *o);
    *o = (bnb_attention_options){.heads = 1,
                                 .kv_heads = 1,
                                 .scale = 0.1,
                                 .softcap = one_in(2) ? 0 : 30,
                                 .norm_eps = 1e-6};
    bool        kept = 2 * world.m * world.k * sizeof(float) >= 1 << 16; /* memory of the call's own would be */
    bnb_tensor *x = ANY(world.x), *norm = OPTIONAL(ANY(world.weight));
    bnb_cache  *cache = kept || one_in(2) ? world.cache[below(2)] : NULL;
    bnb_tensor *rope = world.n >= world.m && world.k % 2 == 0 ? OPTIONAL(world.w[0]) : NULL;
    bnb_tensor *bias = world.k % 2 ? OPTIONAL(world.weight[0]) : NULL;
    size_t      room = (world.capacity + 15) / 16 * 16; /* which pages want to be a power of two */
    if (!cache && world.k % 3 == 0 && one_in(2))        /* keys and values beside the queries */
        GIVE(P(o), P(x), P(NULL), P(NULL), P(world.rows), P(NULL), P(NULL), P(NULL), P(bias), P(NULL), U(0), P(NULL));
    else
        GIVE(P(o), P(x), P(x), P(x), P(world.rows), P(rope), P(norm), P(norm), P(bias), P(cache), U(0),
             P(cache && !(room & (room - 1)) ? OPTIONAL(world.one) : NULL));
}

ROW(bnb_topk, P(ANY(world.x)), N(1 + below(world.k)))
ROW(bnb_route, P(ANY(world.x)), N(1 + below(world.k)), I(below(2)))
ROW(bnb_scatter_add, P(ANY(world.dy)), P(ANY(world.bias)), P(world.one), P(world.unorm))

VALID(bnb_tensor_join) {
    size_t dtype = below(3);
    GIVE(P(world.x[dtype]), P(world.w[dtype]));
}

VALID(bnb_quantized_join) {
    bnb_quantized *whole = (world.n * world.k) % world.block ? NULL : world.q[2];
    GIVE(P(whole ? whole : world.q[4]), P(whole ? whole : world.q[4]));
}
