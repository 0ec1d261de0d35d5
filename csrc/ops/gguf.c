/* Tensors from GGUF files: GGML's blocks written out as floats, one plain loop a format. */
#include <stdlib.h>

#include "gguf_blocks.h"
#include "run.h"

enum { RUN = 256 }; /* elements written out at once: a multiple of every format's block */

static void expand_f32(const uint8_t *from, float *to) { memcpy(to, from, sizeof *to); }

static void expand_f16(const uint8_t *from, float *to) { *to = load_f16(from); }

static void expand_bf16(const uint8_t *from, float *to) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
    *to = bf16_to_f32(half);
}

/* 32 elements: the low nibbles are the first half, the high ones the second; `high` holds a fifth bit for each. */
static uint32_t nibble_of(const uint8_t *nibbles, uint32_t high, uint32_t i) {
    uint32_t low = i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
    return low | (high >> i & 1) << 4;
}

static const float NO_MINIMUM = -0.0f; /* adding it changes nothing, not even the sign of a zero */

static void expand_nibbles(const uint8_t *nibbles, uint32_t high, float scale, int32_t zero, float least, float *to) {
    for (uint32_t i = 0; i < 32; i++) {
        float product = (float)((int32_t)nibble_of(nibbles, high, i) - zero) * scale;
        to[i] = product + least;
    }
}

static void expand_q4_0(const uint8_t *from, float *to) {
    expand_nibbles(from + 2, 0, load_f16(from), 8, NO_MINIMUM, to);
}

static void expand_q4_1(const uint8_t *from, float *to) {
    expand_nibbles(from + 4, 0, load_f16(from), 0, load_f16(from + 2), to);
}

static void expand_q5_0(const uint8_t *from, float *to) {
    uint32_t high;
    memcpy(&high, from + 2, sizeof high);
    expand_nibbles(from + 6, high, load_f16(from), 16, NO_MINIMUM, to);
}

static void expand_q5_1(const uint8_t *from, float *to) {
    uint32_t high;
    memcpy(&high, from + 4, sizeof high);
    expand_nibbles(from + 8, high, load_f16(from), 0, load_f16(from + 2), to);
}

static void expand_q8_0(const uint8_t *from, float *to) {
    float scale = load_f16(from);
    for (uint32_t i = 0; i < 32; i++) to[i] = (float)(int8_t)from[2 + i] * scale;
}

/* The K formats: 256 elements in 8 groups of 32. Twelve bytes hold a 6-bit scale and a 6-bit minimum for each group:
 * the first four in the low bits of bytes 0 to 7, the others in bytes 8 to 11 and the two top bits of those before. */
static void group_scales(const uint8_t *packed, uint32_t group, uint32_t *scale, uint32_t *minimum) {
    if (group < 4) {
        *scale = packed[group] & 63;
        *minimum = packed[group + 4] & 63;
        return;
    }
    *scale = (packed[group + 4] & 15u) | (packed[group - 4] >> 6) << 4;
    *minimum = packed[group + 4] >> 4 | (packed[group] >> 6) << 4;
}

static void expand_k(const uint8_t *from, const uint8_t *high, const uint8_t *nibbles, float *to) {
    float scale = load_f16(from), minimum = load_f16(from + 2);
    for (uint32_t group = 0; group < 8; group++) {
        uint32_t step, least;
        group_scales(from + 4, group, &step, &least);
        float d = scale * (float)step, m = minimum * (float)least;
        for (uint32_t i = 0; i < 32; i++) {
            uint8_t  pair = nibbles[group / 2 * 32 + i];
            uint32_t code = group % 2 ? pair >> 4 : pair & 15;
            if (high) code |= (high[i] >> group & 1u) << 4;
            float product = d * (float)code;
            to[group * 32 + i] = product - m;
        }
    }
}

static void expand_q4_k(const uint8_t *from, float *to) { expand_k(from, NULL, from + 16, to); }

static void expand_q5_k(const uint8_t *from, float *to) { expand_k(from, from + 16, from + 48, to); }

/* Two halves of 128, each in 4 groups of 32: four low bits in 64 bytes, two high bits in 32; a signed scale for every
 * 16 elements. */
static void expand_q6_k(const uint8_t *from, float *to) {
    float scale = load_f16(from + 208);
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t half = i / 128, group = i % 128 / 32, lane = i % 32;
        uint8_t  low = from[half * 64 + group % 2 * 32 + lane], high = from[128 + half * 32 + lane];
        int32_t  code = (int32_t)((group < 2 ? low & 15u : low >> 4) | (high >> 2 * group & 3u) << 4) - 32;
        float    d = scale * (float)(int8_t)from[192 + i / 16];
        to[i] = d * (float)code;
    }
}

/* Two halves of 128 elements, each in 4 groups of 32 whose 2 bits stand above one another in the same 32 bytes. */
static uint32_t two_bits(const uint8_t *packed, uint32_t i) {
    return packed[i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3u;
}

/* A byte for every 16 elements: a 4-bit scale and a 4-bit minimum. */
static void expand_q2_k(const uint8_t *from, float *to) {
    float d = load_f16(from + 80), least = load_f16(from + 82);
    for (uint32_t i = 0; i < 256; i++) {
        float scale = d * (float)(from[i / 16] & 15), minimum = least * (float)(from[i / 16] >> 4);
        float product = scale * (float)two_bits(from + 16, i);
        to[i] = product - minimum;
    }
}

/* A third bit for each element in 32 bytes, where 1 means that nothing is taken off; twelve bytes of signed 6-bit
 * scales
 * for every 16 elements: four low bits in the first eight, two high bits in the rest. */
static void expand_q3_k(const uint8_t *from, float *to) {
    const uint8_t *scales = from + 96;
    float          d = load_f16(from + 108);
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t group = i / 16;
        uint32_t low = scales[group % 8] >> 4 * (group / 8) & 15u, high = scales[8 + group % 4] >> 2 * (group / 4) & 3u;
        float    scale = d * (float)((int32_t)(low | high << 4) - 32);
        int32_t  code = (int32_t)two_bits(from + 32, i) - (from[i % 32] >> i / 32 & 1 ? 0 : 4);
        to[i] = scale * (float)code;
    }
}

/* What llama.cpp keeps activations in: a float and signed bytes; the sums behind them are for its products. */
static void expand_q8_k(const uint8_t *from, float *to) {
    float d;
    memcpy(&d, from, sizeof d);
    for (uint32_t i = 0; i < 256; i++) to[i] = d * (float)(int8_t)from[4 + i];
}

static const float IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static void expand_iq4_nl(const uint8_t *from, float *to) {
    float d = load_f16(from);
    for (uint32_t i = 0; i < 32; i++) to[i] = d * IQ4_VALUES[nibble_of(from + 2, 0, i)];
}

/* The same values in groups of 32, whose signed 6-bit scales are split into two and four bits. */
static void expand_iq4_xs(const uint8_t *from, float *to) {
    float d = load_f16(from);
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t group = i / 32;
        uint32_t low = from[4 + group / 2] >> 4 * (group % 2) & 15u, high = from[2 + group / 4] >> 2 * (group % 4) & 3u;
        float    scale = d * (float)((int32_t)(low | high << 4) - 32);
        to[i] = scale * IQ4_VALUES[nibble_of(from + 8 + 16 * group, 0, i % 32)];
    }
}

/* -1, 0 and 1, five to a byte as digits of base 3, the first the most significant, of a fraction of 256. */
static float ternary(uint8_t packed, uint32_t digit) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    uint8_t              rest = (uint8_t)(packed * powers[digit]);
    return (float)((rest * 3) >> 8) - 1.0f;
}

/* 32 bytes, the first digits of all before the second; then 16 in the same way; then 4 of four digits. */
static void expand_tq1_0(const uint8_t *from, float *to) {
    float d = load_f16(from + 52);
    for (uint32_t i = 0; i < 160; i++) to[i] = d * ternary(from[i % 32], i / 32);
    for (uint32_t i = 0; i < 80; i++) to[160 + i] = d * ternary(from[32 + i % 16], i / 16);
    for (uint32_t i = 0; i < 16; i++) to[240 + i] = d * ternary(from[48 + i % 4], i / 4);
}

static void expand_tq2_0(const uint8_t *from, float *to) {
    float d = load_f16(from + 64);
    for (uint32_t i = 0; i < 256; i++) to[i] = d * ((float)two_bits(from, i) - 1.0f);
}

/* Twice the values of E2M1; the scales are halves. A zero has no sign. */
static const float E2M1_TWICE[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static void expand_mxfp4(const uint8_t *from, float *to) {
    uint32_t bits = from[0] < 2 ? 0x00200000u << from[0] : (uint32_t)(from[0] - 1) << 23; /* 2^(e-128) */
    float    d;
    memcpy(&d, &bits, sizeof d);
    for (uint32_t i = 0; i < 32; i++) to[i] = d * E2M1_TWICE[nibble_of(from + 1, 0, i)];
}

/* Half of an unsigned E4M3; its NaN counts as 0. */
static float half_e4m3(uint8_t bits) {
    uint32_t exponent = bits >> 3 & 15u, mantissa = bits & 7u;
    if (bits == 0 || bits == 0x7f) return 0;
    if (exponent == 0) return (float)mantissa * 0x1p-10f;
    return (float)(8 + mantissa) * (float)(1u << exponent) * 0x1p-11f;
}

/* Four scales, then four times 16 elements, of which the first eight are the low nibbles. */
static void expand_nvfp4(const uint8_t *from, float *to) {
    for (uint32_t i = 0; i < 64; i++) {
        uint32_t group = i / 16, lane = i % 8;
        uint8_t  pair = from[4 + 8 * group + lane];
        to[i] = half_e4m3(from[group]) * E2M1_TWICE[i % 16 < 8 ? pair & 15 : pair >> 4];
    }
}

/* By GGML's number of the type. */
static const struct format {
    const char *name;
    size_t      block, bytes;
    expander   *expand;
} formats[] = {
    [0] = {"F32", 1, 4, expand_f32},
    [1] = {"F16", 1, 2, expand_f16},
    [2] = {"Q4_0", 32, 18, expand_q4_0},
    [3] = {"Q4_1", 32, 20, expand_q4_1},
    [6] = {"Q5_0", 32, 22, expand_q5_0},
    [7] = {"Q5_1", 32, 24, expand_q5_1},
    [8] = {"Q8_0", 32, 34, expand_q8_0},
    [10] = {"Q2_K", 256, 84, expand_q2_k},
    [11] = {"Q3_K", 256, 110, expand_q3_k},
    [12] = {"Q4_K", 256, 144, expand_q4_k},
    [13] = {"Q5_K", 256, 176, expand_q5_k},
    [14] = {"Q6_K", 256, 210, expand_q6_k},
    [15] = {"Q8_K", 256, 292, expand_q8_k},
    [16] = {"IQ2_XXS", 256, 66, expand_iq2_xxs},
    [17] = {"IQ2_XS", 256, 74, expand_iq2_xs},
    [18] = {"IQ3_XXS", 256, 98, expand_iq3_xxs},
    [19] = {"IQ1_S", 256, 50, expand_iq1_s},
    [20] = {"IQ4_NL", 32, 18, expand_iq4_nl},
    [21] = {"IQ3_S", 256, 110, expand_iq3_s},
    [22] = {"IQ2_S", 256, 82, expand_iq2_s},
    [23] = {"IQ4_XS", 256, 136, expand_iq4_xs},
    [29] = {"IQ1_M", 256, 56, expand_iq1_m},
    [30] = {"BF16", 1, 2, expand_bf16},
    [34] = {"TQ1_0", 256, 54, expand_tq1_0},
    [35] = {"TQ2_0", 256, 66, expand_tq2_0},
    [39] = {"MXFP4", 32, 17, expand_mxfp4},
    [40] = {"NVFP4", 64, 36, expand_nvfp4},
};

struct gguf_job {
    const struct format *format;
    const uint8_t       *data;
    size_t               elements;
    void                *y;
    bnb_dtype            dtype;
};

static void expand_runs(const void *argument, size_t first, size_t last) {
    const struct gguf_job *job = argument;
    const struct format   *format = job->format;
    float                  values[RUN];
    for (size_t run = first; run < last; run++) {
        size_t begin = run * RUN, end = begin + RUN < job->elements ? begin + RUN : job->elements;
        for (size_t i = begin; i < end; i += format->block)
            format->expand(job->data + i / format->block * format->bytes, values + (i - begin));
        for (size_t i = begin; i < end; i++) put_element(job->y, job->dtype, i, values[i - begin]);
    }
}

static bnb_status expand_all(const void *argument) {
    const struct gguf_job *job = argument;
    parallel_for(ceil_div(job->elements, RUN), 64, expand_runs, job);
    return BNB_OK;
}

struct request {
    const struct format *format;
    const void          *data;
    const bnb_tensor    *y;
};

static bnb_status expand_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    const bnb_tensor     *y = r->y;
    struct gguf_job       job = {r->format, r->data, y->rows * y->columns, host_writes(host, y->buffer), y->dtype};
    return perform(host, expand_all, &job, sizeof job);
}

static bool is_gguf(uint32_t type, size_t rows, size_t columns, const void *data, size_t bytes) {
    const char *me = "tensor_from_gguf";
    if (!is_shape(rows, columns, me, "shape")) return false;
    if (type >= sizeof formats / sizeof *formats || !formats[type].expand) {
        fail(BNB_UNSUPPORTED, "%s: type is %u, expected a GGML type that holds weights", me, type);
        return false;
    }
    const struct format *format = &formats[type];
    if (columns % format->block) {
        fail(BNB_INVALID, "%s: columns is %zu, expected a multiple of %s's %zu", me, columns, format->name,
             format->block);
        return false;
    }
    size_t expected = rows * columns / format->block * format->bytes;
    if (data && bytes == expected) return true;
    fail(BNB_INVALID, "%s: data has %zu bytes, expected %zu for %s [%zu, %zu]", me, data ? bytes : 0, expected,
         format->name, rows, columns);
    return false;
}

bnb_tensor *bnb_tensor_from_gguf(bnb_device *device, uint32_t type, size_t rows, size_t columns, const void *data,
                                 size_t bytes, bnb_dtype dtype) {
    if (!is_device(device, "tensor_from_gguf") || !is_gguf(type, rows, columns, data, bytes) ||
        !is_float(dtype, "tensor_from_gguf", "dtype"))
        return NULL;
    bnb_tensor *tensor = tensor_new(device, dtype, rows, columns);
    if (!tensor) return NULL;
    struct request request = {&formats[type], data, tensor};
    if (run_on_host(device, expand_on_host, &request) == BNB_OK) return tensor;
    bnb_tensor_free(tensor);
    return NULL;
}
