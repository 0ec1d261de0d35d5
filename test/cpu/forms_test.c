/* Holds one instruction set's forms to the plain rules of codebook.h and forms.h: forms_test <isa>. Or holds the pool
 * of threads to its own: forms_test pool.
 *
 * Exits with 0 where all is right, 3 where this processor can't run the forms, 1 at the first difference. Inputs end at
 * a page that can't be read, less what forms.h lets a form read; outputs end at one exactly. */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../csrc/internal.h"

/* What only tests have: the portable backend at sixteen floats, and at four with ARM's matrix instruction; AVX-512's
 * with its instructions emulated; AVX2's or NEON's under the sanitizer, for what ships is here as it ships. */
extern const struct cpu_forms cpu_forms_wide, cpu_forms_checked;
#ifdef __x86_64__
extern const struct cpu_forms cpu_forms_narrow, cpu_forms_emulated;
#endif

static const struct cpu_forms *forms;
static const bnb_dtype         dtypes[] = {BNB_F32, BNB_F16, BNB_BF16};

bnb_status fail(bnb_status status, const char *sentence, ...) {
    va_list values;
    va_start(values, sentence);
    vfprintf(stderr, sentence, values);
    va_end(values);
    return status;
}

#define EXPECT(condition, ...)                                                                                         \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s: %s: ", forms->isa, __func__);                                                         \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fprintf(stderr, "\n");                                                                                     \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define EACH(i, array) for (size_t i = 0; i < sizeof(array) / sizeof *(array); i++)

/* ── Numbers and memory ─────────────────────────────────────────────────────────────────────────────────────────── */

static uint64_t state = 88172645463325252u;

static uint64_t random_bits(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static float uniform(void) { return (float)(random_bits() >> 40) / 0x1p23f - 1; }
static float normal(void) { return uniform() + uniform() + uniform(); }

struct region {
    char  *mapped;
    size_t span; /* bytes before the page that can't be touched */
    bool   taken;
};
static struct region regions[256];

/* Memory of that size before a page that can't be touched. It is mapped once: 200,000 times were a third of a run. */
static char *mapped_before_a_guard(size_t span, size_t page) {
    struct region *place = NULL;
    EACH (i, regions) {
        struct region *region = &regions[i];
        if (region->taken) continue;
        if (region->span == span) return region->taken = true, region->mapped;
        if (!place || !region->mapped) place = region;
    }
    if (!place) abort();
    if (place->mapped) munmap(place->mapped, place->span + page);
    char *mapped = mmap(NULL, span + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped + span, page, PROT_NONE)) abort();
    *place = (struct region){mapped, span, true};
    return mapped;
}

/* Memory of which nothing can be touched past the end and `slack` bytes; until release_all. */
static void *guarded(size_t bytes, size_t slack) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), span = (bytes + slack + page - 1) / page * page;
    char  *mapped = mapped_before_a_guard(span, page);
    memset(mapped, 0xff, span); /* NaN in every dtype: what is read past an end must not count */
    return mapped + span - slack - bytes;
}

static void release_all(void) {
    EACH (i, regions) regions[i].taken = false;
}

static size_t size_of(bnb_dtype dtype) { return dtype == BNB_F32 ? 4 : 2; }

static struct dense dense_from(const float *values, bnb_dtype dtype, size_t rows, size_t columns) {
    void *data = guarded(rows * columns * size_of(dtype), READ_SLACK);
    for (size_t i = 0; i < rows * columns; i++) put_element(data, dtype, i, values[i]);
    return (struct dense){data, dtype, rows, columns};
}

static struct dense dense_random(bnb_dtype dtype, size_t rows, size_t columns) {
    void *data = guarded(rows * columns * size_of(dtype), READ_SLACK);
    for (size_t i = 0; i < rows * columns; i++) put_element(data, dtype, i, normal());
    return (struct dense){data, dtype, rows, columns};
}

/* In place of the library's, for the forms: their working space is full of NaN too. */
void *aligned_alloc(size_t alignment, size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, alignment, bytes)) return NULL;
    return memset(memory, 0xff, bytes);
}

/* ── Codebooks, prepared by brute force ─────────────────────────────────────────────────────────────────────────── */

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static uint32_t below(const struct codebook *codes, float x) {
    uint32_t count = 0;
    while (count < codes->size - 1 && x > codes->thresholds[count]) count++;
    return count;
}

/* The last magnitude of a bucket that has the rank of its first, by bisection; false where a third rank follows. */
static bool entry_of(const struct codebook *codes, uint32_t shift, uint32_t least, uint32_t sign, uint32_t *entry) {
    uint32_t rank = below(codes, bits_float(least | sign)), low = 0, high = 1u << shift;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (below(codes, bits_float((least + middle) | sign)) == rank)
            low = middle;
        else
            high = middle;
    }
    *entry = rank << shift | low;
    uint32_t last = below(codes, bits_float((least + (1u << shift) - 1) | sign));
    return high == 1u << shift || last == (sign ? rank - 1 : rank + 1);
}

static void fill_entries(struct codebook *codes) {
    bool     negative = codes->values[codes->order[0]] < 0;
    uint32_t shift = negative ? 17 : 16, buckets = (32u << (23 - shift)) + 1, start = 95u << 23;
    for (uint32_t side = 0; side < (negative ? 2u : 1u); side++) {
        for (uint32_t b = 0; b < buckets; b++)
            if (!entry_of(codes, shift, start + (b << shift), side << 31, &codes->entries[side * buckets + b])) return;
        if (codes->entries[side * buckets] != (below(codes, bits_float(1 | side << 31)) << shift | ((1u << shift) - 1)))
            return;
    }
    bool zero_is_above = below(codes, 0) == below(codes, bits_float(1));
    if (!zero_is_above && !negative) return;
    codes->negative_below = zero_is_above ? 0 : bits_float(1), codes->entry_shift = shift;
}

static struct codebook *codes_of(const float *values, uint32_t bits) {
    struct codebook *codes = calloc(1, sizeof *codes);
    codes->bits = bits, codes->size = 1u << bits;
    memcpy(codes->values, values, codes->size * sizeof *values);
    float sorted[256];
    memcpy(sorted, values, codes->size * sizeof *values);
    codes->ascending = true;
    for (uint32_t i = 1; i < codes->size; i++) codes->ascending &= values[i - 1] <= values[i];
    qsort(sorted, codes->size, sizeof *sorted, ascending);
    bool used[256] = {0};
    for (uint32_t i = 0; i < codes->size; i++) {
        uint32_t code = 0;
        while (used[code] || values[code] != sorted[i]) code++;
        used[code] = true, codes->order[i] = (uint8_t)code;
        codes->thresholds[i] = i + 1 < codes->size ? (sorted[i] + sorted[i + 1]) / 2 : INFINITY;
    }
    for (int sign = 0; sign < 2; sign++)
        for (uint32_t bucket = 0; bucket < BUCKETS; bucket++) {
            uint32_t low = bucket ? (bucket + BUCKET_BASE) << BUCKET_SHIFT : 0;
            uint32_t high = ((bucket + 1 + BUCKET_BASE) << BUCKET_SHIFT) - 1;
            uint32_t minus = (uint32_t)sign << 31;
            uint32_t first = below(codes, bits_float((sign ? high : low) | minus));
            uint32_t last = below(codes, bits_float((sign ? low : high) | minus));
            codes->start[sign][bucket] = (uint8_t)first;
            if (last - first > codes->steps) codes->steps = last - first;
        }
    if (bits == 8) fill_entries(codes);
    return codes;
}

static const float nf4[16] = {
    -1,         -0.6961928f, -0.52507305f, -0.39491749f, -0.28444138f, -0.18477343f, -0.09105004f, 0,
    0.0795803f, 0.1609302f,  0.2461123f,   0.33791524f,  0.44070983f,  0.562617f,    0.72295684f,  1};
static const float fp4[16] = {0, 0.0052083335f,  0.6666667f,  1,  0.33333334f,  0.5f,  0.16666667f,  0.25f,
                              0, -0.0052083335f, -0.6666667f, -1, -0.33333334f, -0.5f, -0.16666667f, -0.25f};

static struct codebook *books[16];
enum { NF4, FP4, SCATTERED4, FAR4, DYNAMIC, ZEROS8, STEPPED, UNSIGNED, SCATTERED8, TINY8, FAR8, OTHERS };

static void make_books(void) {
    float values[256];
    books[NF4] = codes_of(nf4, 4);
    books[FP4] = codes_of(fp4, 4);
    for (int i = 0; i < 16; i++) values[i] = uniform();
    books[SCATTERED4] = codes_of(values, 4);
    for (int i = 0; i < 16; i++) values[i] = uniform() * 40;
    books[FAR4] = codes_of(values, 4);
    int n = 0;
    for (int e = 0; e < 7; e++)
        for (int i = 0; i < 1 << e; i++) {
            float magnitude = (0.1f + 0.9f * ((float)i + 0.5f) / (float)(1 << e)) * powf(10, (float)(e - 6));
            values[n++] = magnitude, values[n++] = -magnitude;
        }
    values[n++] = 0, values[n++] = 1;
    qsort(values, 256, sizeof *values, ascending);
    books[DYNAMIC] = codes_of(values, 8);
    values[255] = 0; /* a second zero: the threshold between the two is zero */
    qsort(values, 256, sizeof *values, ascending);
    books[ZEROS8] = codes_of(values, 8);
    if (books[ZEROS8]->negative_below == 0 || !books[ZEROS8]->entry_shift) abort();
    for (int i = 0; i < 256; i++) values[i] = (float)(int8_t)i * 0.007f;
    books[STEPPED] = codes_of(values, 8);
    books[STEPPED]->step = 0.007f;
    for (int e = n = 0; e < 7; e++)
        for (int i = 0; i < 2 << e; i++)
            values[n++] = (0.1f + 0.9f * ((float)i + 0.5f) / (float)(2 << e)) * powf(10, (float)(e - 6));
    values[n++] = 0, values[n++] = 1;
    qsort(values, 256, sizeof *values, ascending);
    books[UNSIGNED] = codes_of(values, 8);
    if (!books[DYNAMIC]->entry_shift || !books[UNSIGNED]->entry_shift) abort(); /* both ways to search are tested */
    if (books[DYNAMIC]->entry_shift == books[UNSIGNED]->entry_shift) abort();
    for (int i = 0; i < 256; i++) values[i] = uniform();
    books[SCATTERED8] = codes_of(values, 8);
    for (int i = 0; i < 256; i++) values[i] = uniform() * 1e-9f; /* all thresholds in one bucket */
    books[TINY8] = codes_of(values, 8);
    for (int i = 0; i < 256; i++) values[i] = uniform() * 5;
    books[FAR8] = codes_of(values, 8);
    static const uint32_t others[] = {2, 3, 5, 6, 7};
    EACH (o, others) {
        for (int i = 0; i < 1 << others[o]; i++) values[i] = uniform() * (o % 2 ? 1 : 1.2f);
        books[OTHERS + o] = codes_of(values, others[o]);
    }
}

/* ── Quantise ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static size_t code_bytes_of(const struct codebook *code, size_t count) { return (count * code->bits + 7) / 8; }

/* Runs the form in two calls, and compares every byte with nearest_code's. */
static void check_quantize(const struct codebook *code, struct dense x, size_t block) {
    size_t count = x.rows * x.columns, blocks = (count + block - 1) / block, bytes = code_bytes_of(code, count);
    struct quantize_job job = {x, code, block, guarded(bytes, 0), guarded(blocks * sizeof(float), 0)};
    forms->quantize(&job, 0, blocks / 2);
    forms->quantize(&job, blocks / 2, blocks);
    struct coded q = {.code = code, .codes = job.codes};
    for (size_t b = 0; b < blocks; b++) {
        float  absmax = 0;
        size_t end = (b + 1) * block < count ? (b + 1) * block : count;
        for (size_t i = b * block; i < end; i++) absmax = fmaxf(absmax, fabsf(element_of(&x, i)));
        EXPECT(job.absmax[b] == absmax, "absmax[%zu] is %g, not %g (dtype %d, block %zu)", b, (double)job.absmax[b],
               (double)absmax, x.dtype, block);
        float inverse = inverse_of(absmax);
        for (size_t i = b * block; i < end; i++) {
            uint8_t right = nearest_code(code, element_of(&x, i) * inverse);
            uint8_t got = code_at(&q, i);
            EXPECT(got == right, "code[%zu] of %zu is %d, not %d: x %a, absmax %a (dtype %d, block %zu)", i, count, got,
                   right, (double)element_of(&x, i), (double)absmax, x.dtype, block);
        }
    }
    for (size_t bit = count * code->bits; bit < bytes * 8; bit++) {
        uint32_t right = nearest_code(code, 0) >> (code->bits - 1 - bit % code->bits) & 1;
        EXPECT((job.codes[bit / 8] >> (7 - bit % 8) & 1) == right, "spare bit %zu of %zu codes is not of 0's", bit,
               count);
    }
}

static void test_quantize_sizes(void) {
    static const size_t counts[] = {1, 2, 3, 31, 32, 33, 63, 64, 65, 95, 127, 128, 129, 1000, 4095, 4096, 4097, 9001};
    static const size_t blocks4[] = {32, 64, 128, 256, 512, 1024, 2048, 4096},
                        blocks8[] = {1, 7, 32, 64, 100, 256, 4096, 100'000};
    EACH (b, books)
        EACH (d, dtypes)
            EACH (c, counts)
                EACH (k, blocks4) {
                    check_quantize(books[b], dense_random(dtypes[d], 1, counts[c]),
                                   books[b]->bits == 8 ? blocks8[k] : blocks4[k]);
                    release_all();
                }
}

/* A block of 4096 whose absmax is 1, so that its elements are compared as they are. */
static void flush_block(const struct codebook *code, float block[4096], size_t *used) {
    if (*used == 1) return;
    block[0] = 1;
    memset(block + *used, 0, (4096 - *used) * sizeof *block);
    check_quantize(code, dense_from(block, BNB_F32, 1, 4096), 4096);
    release_all();
    *used = 1;
}

static void test_quantize_every_threshold(void) {
    float block[4096];
    EACH (b, books) {
        size_t used = 1;
        for (uint32_t t = 0; t < books[b]->size - 1; t++)
            for (int32_t ulp = -64; ulp <= 64; ulp++) {
                float x = bits_float(float_bits(books[b]->thresholds[t]) + (uint32_t)ulp);
                if (!(fabsf(x) <= 1)) continue;
                block[used++] = x;
                if (used == 4096) flush_block(books[b], block, &used);
            }
        flush_block(books[b], block, &used);
        for (uint32_t sign = 0; sign < 2; sign++) /* the edges of the buckets, and floats of every size between */
            for (uint32_t bits = 0; bits <= 0x3f800000; bits += bits % (1 << BUCKET_SHIFT) == 1 ? 65'521 : 1) {
                if (bits % (1 << BUCKET_SHIFT) > 1 && bits + 65'521 > (bits | ((1 << BUCKET_SHIFT) - 1)))
                    bits |= (1 << BUCKET_SHIFT) - 1;
                block[used++] = bits_float(bits | sign << 31);
                if (used == 4096) flush_block(books[b], block, &used);
            }
        flush_block(books[b], block, &used);
    }
}

static void test_quantize_extremes(void) {
    static const float sizes[] = {0, 1e-45f, 1e-40f, 9e-39f, 1.2e-38f, 1e-20f, 1e30f, 3.4e38f};
    EACH (b, books)
        EACH (s, sizes)
            EACH (d, dtypes) {
                float values[100];
                for (int i = 0; i < 100; i++) values[i] = i % 3 ? uniform() * sizes[s] : i % 2 ? -0.0f : sizes[s];
                if (dtypes[d] != BNB_F32 && sizes[s] > 1e38f) continue; /* rounds to an infinity */
                if (dtypes[d] == BNB_F16 && sizes[s] > 65504) continue;
                check_quantize(books[b], dense_from(values, dtypes[d], 1, 100), 32);
                release_all();
            }
}

static void test_quantize_shows_nan_and_infinity(void) {
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    EACH (b, books)
        EACH (d, dtypes)
            EACH (v, bad)
                for (size_t at = 0; at < 75; at++) {
                    float values[75];
                    for (int i = 0; i < 75; i++) values[i] = normal();
                    values[at] = bad[v];
                    struct dense        x = dense_from(values, dtypes[d], 1, 75);
                    struct quantize_job job = {x, books[b], 32, guarded(code_bytes_of(books[b], 75), 0),
                                               guarded(12, 0)};
                    forms->quantize(&job, 0, 3);
                    for (size_t i = 0; i < 3; i++)
                        EXPECT(isfinite(job.absmax[i]) == (i != at / 32), "absmax[%zu] is %g with x[%zu] = %g", i,
                               (double)job.absmax[i], at, (double)bad[v]);
                    release_all();
                }
}

/* ── Dequantise and cast ────────────────────────────────────────────────────────────────────────────────────────── */

/* How scales lie: floats; bytes by fp32, as bitsandbytes has them; 6-bit codes by fp16; these, and offsets alike. */
enum layout { PLAIN, NESTED, NARROW, NARROW_OFFSETS };

/* Each of them by turns, plain ones most often. */
static enum layout layout_of(size_t turn) { return turn % 3 ? PLAIN : NESTED + turn / 3 % 3; }

static const uint8_t *random_bytes(size_t count, size_t slack) {
    uint8_t *bytes = guarded(count, slack);
    for (size_t i = 0; i < count; i++) bytes[i] = (uint8_t)(random_bits() >> 32);
    return bytes;
}

static const uint16_t *random_halves(size_t count) {
    uint16_t *halves = guarded(count * sizeof *halves, 0);
    for (size_t i = 0; i < count; i++) halves[i] = f32_to_f16(normal());
    return halves;
}

static struct coded coded_random(const struct codebook *code, size_t rows, size_t columns, size_t block,
                                 enum layout layout) {
    size_t       count = rows * columns, blocks = (count + block - 1) / block, bytes = code_bytes_of(code, count);
    struct coded q = {.code = code, .rows = rows, .columns = columns, .block = block};
    q.codes = random_bytes(bytes, READ_SLACK);
    if (layout == PLAIN) {
        float *absmax = guarded(blocks * sizeof *absmax, READ_SLACK);
        for (size_t b = 0; b < blocks; b++) absmax[b] = fabsf(normal());
        q.absmax = absmax;
        return q;
    }
    size_t groups = (blocks + 3) / 4;
    q.nested_code = books[layout == NESTED ? DYNAMIC : OTHERS + 3], q.nested_block = 4, q.offset = 0.7f;
    q.absmax_codes = random_bytes(code_bytes_of(q.nested_code, blocks), READ_SLACK);
    if (layout == NESTED) {
        float *nested_absmax = guarded(groups * sizeof *nested_absmax, 0);
        for (size_t g = 0; g < groups; g++) nested_absmax[g] = fabsf(normal());
        q.nested_absmax = nested_absmax;
        return q;
    }
    q.nested_absmax = random_halves(groups), q.nested_dtype = BNB_F16;
    if (layout == NARROW) return q;
    q.offsets = random_bytes(code_bytes_of(q.nested_code, blocks), 0), q.offsets_absmax = random_halves(groups);
    return q;
}

static bool same_element(const void *a, const void *b, bnb_dtype dtype, size_t i) {
    struct dense x = {a, dtype, 1, 1}, y = {b, dtype, 1, 1};
    if (isnan(element_of(&x, i))) return isnan(element_of(&y, i));
    return !memcmp((const char *)a + i * size_of(dtype), (const char *)b + i * size_of(dtype), size_of(dtype));
}

static void check_dequantize(struct coded q, bnb_dtype dtype) {
    size_t                count = q.rows * q.columns, blocks = (count + q.block - 1) / q.block;
    void                 *right = malloc(count * size_of(dtype));
    struct dequantize_job job = {q, guarded(count * size_of(dtype), 0), dtype};
    forms->dequantize(&job, 0, blocks / 3);
    forms->dequantize(&job, blocks / 3, blocks);
    for (size_t i = 0; i < count; i++) {
        put_element(right, dtype, i, decoded(&q, i));
        EXPECT(same_element(right, job.y, dtype, i), "element %zu of %zu differs (dtype %d, block %zu)", i, count,
               dtype, q.block);
    }
    free(right);
    release_all();
}

static void test_dequantize(void) {
    static const size_t counts[] = {1, 2, 31, 32, 33, 65, 127, 1000, 4097}, blocks4[] = {32, 64, 128, 4096},
                        blocks8[] = {1, 7, 64, 100};
    size_t              turn = 0;
    EACH (b, books)
        EACH (d, dtypes)
            EACH (c, counts)
                EACH (k, blocks4)
                    for (int nested = 0; nested < 2; nested++) {
                        size_t      block = books[b]->bits == 8 ? blocks8[k] : blocks4[k];
                        enum layout layout = nested ? layout_of(3 * turn++) : PLAIN;
                        check_dequantize(coded_random(books[b], 1, counts[c], block, layout), dtypes[d]);
                    }
    EACH (d, dtypes) { /* large enough to be streamed */
        check_dequantize(coded_random(books[NF4], 3001, 4096, 64, PLAIN), dtypes[d]);
        check_dequantize(coded_random(books[DYNAMIC], 3001, 4096, 256, PLAIN), dtypes[d]);
        check_dequantize(coded_random(books[OTHERS + d], 3001, 4096, 64, PLAIN), dtypes[d]);
    }
}

static void check_cast(struct dense x, bnb_dtype dtype) {
    size_t           count = x.rows * x.columns;
    void            *right = malloc(count * size_of(dtype));
    struct unary_job job = {.x = x, .y = guarded(count * size_of(dtype), 0), .dtype = dtype};
    forms->cast(&job, 0, count / 3);
    forms->cast(&job, count / 3, count);
    for (size_t i = 0; i < count; i++) {
        put_element(right, dtype, i, element_of(&x, i));
        EXPECT(same_element(right, job.y, dtype, i), "element %zu: %a (dtype %d to %d)", i, (double)element_of(&x, i),
               x.dtype, dtype);
    }
    free(right);
    release_all();
}

static void test_cast(void) {
    uint16_t *halves = malloc(65'536 * sizeof *halves);
    for (uint32_t i = 0; i < 65'536; i++) halves[i] = (uint16_t)i;
    EACH (to, dtypes) {
        check_cast((struct dense){halves, BNB_F16, 1, 65'536}, dtypes[to]);
        check_cast((struct dense){halves, BNB_BF16, 1, 65'536}, dtypes[to]);
        EACH (from, dtypes) check_cast(dense_random(dtypes[from], 1, 37), dtypes[to]);
        float *values = malloc(1'000'003 * sizeof *values); /* every exponent; halfway cases and their neighbours */
        for (uint32_t i = 0; i < 1'000'003; i++) {
            uint32_t              bits = (uint32_t)(random_bits() >> 32);
            static const uint32_t low[] = {0, 0x1000, 0x0fff, 0x1001, 0x8000, 0x7fff, 0x8001, 0x3000, 0x18000};
            values[i] = bits_float(i % 2 ? bits : (bits & 0xfffe0000) | low[bits % 9]);
        }
        check_cast((struct dense){values, BNB_F32, 1, 1'000'003}, dtypes[to]);
        free(values);
    }
    free(halves);
}

/* ── Optimizer ──────────────────────────────────────────────────────────────────────────────────────────────────── */

#define REAL    float
#define ROOT(x) sqrtf(x)
#define RULE    static inline
#include "../../metal/optimizer_rule.h"

static const struct optimizer_rule a_rule = {
    .keep_first = 0.9f,
    .take_first = 0.1f,
    .keep_second = 0.99f,
    .take_second = 0.01f,
    .keep_slow = 0.999f,
    .take_slow = 0.001f,
    .mix_first = 0.3f,
    .mix_slow = 2,
    .eps = 1e-6f,
    .rate = -0.1f,
    .shrink = 0.999f,
    .decay = 0.01f,
    .gradient_scale = 0.5f,
    .most = 1e18f,
};

/* A state of `count` elements that ends at memory which can't be touched, and a copy of it as floats. */
static struct optimizer_state state_random(const struct codebook *code, bool coded, size_t count, float *floats) {
    struct optimizer_state state = {.values = coded ? NULL : guarded(count * sizeof(float), READ_SLACK)};
    if (coded) {
        size_t blocks = (count + OPTIMIZER_BLOCK - 1) / OPTIMIZER_BLOCK;
        state.code = code, state.codes = guarded(count, READ_SLACK), state.absmax = guarded(blocks * sizeof(float), 0);
        for (size_t b = 0; b < blocks; b++) state.absmax[b] = fabsf(normal());
    }
    for (size_t i = 0; i < count; i++) {
        if (coded)
            state.codes[i] = (uint8_t)(127 + (random_bits() >> 57)); /* from 0 on in the dynamic map */
        else
            state.values[i] = fabsf(normal());
        floats[i] = coded ? code->values[state.codes[i]] * state.absmax[i / OPTIMIZER_BLOCK] : state.values[i];
    }
    return state;
}

/* The state holds those floats or, block by block, their nearest codes. */
static void expect_state(const struct optimizer_state *state, size_t count, const float *right) {
    for (size_t begin = 0; begin < count; begin += OPTIMIZER_BLOCK) {
        size_t end = begin + OPTIMIZER_BLOCK < count ? begin + OPTIMIZER_BLOCK : count;
        float  absmax = 0;
        for (size_t i = begin; i < end; i++) absmax = fmaxf(absmax, fabsf(right[i]));
        if (state->codes)
            EXPECT(state->absmax[begin / OPTIMIZER_BLOCK] == absmax, "absmax %g, not %g",
                   (double)state->absmax[begin / OPTIMIZER_BLOCK], (double)absmax);
        for (size_t i = begin; i < end; i++) {
            if (state->codes)
                EXPECT(state->codes[i] == nearest_code(state->code, right[i] * inverse_of(absmax)),
                       "code[%zu] of %zu is %d", i, count, state->codes[i]);
            else
                EXPECT(state->values[i] == right[i], "state[%zu] of %zu is %a, not %a", i, count,
                       (double)state->values[i], (double)right[i]);
        }
    }
}

static void check_optimizer(uint32_t kind, bool coded, size_t count, bnb_dtype p_dtype, bnb_dtype g_dtype) {
    size_t       blocks = (count + OPTIMIZER_BLOCK - 1) / OPTIMIZER_BLOCK;
    struct dense p = dense_random(p_dtype, 1, count), g = dense_random(g_dtype, 1, count);
    float       *first = malloc(count * sizeof *first), *second = malloc(count * sizeof *second),
          *slow = malloc(count * sizeof *slow);
    void *right = malloc(count * size_of(p_dtype));
    put_element((void *)g.data, g_dtype, count / 2, NAN);
    memset((char *)g.data + count * size_of(g_dtype), 0x3c,
           READ_SLACK); /* numbers, so that a step past the end would show */
    struct optimizer_job job = {
        .kind = kind,
        .rule = a_rule,
        .rate = a_rule.rate,
        .count = count,
        .p = (void *)p.data,
        .g = g.data,
        .p_dtype = p_dtype,
        .g_dtype = g_dtype,
        .coded = coded,
        .first = state_random(books[DYNAMIC], coded, count, first),
        .second = state_random(books[UNSIGNED], coded, count, second),
        .slow = state_random(books[SCATTERED8], coded, count, slow),
        .squares = guarded(blocks * sizeof(struct squares), 0),
    };
    forms->optimizer(&job, 0, blocks); /* sums only */
    double squares = 0, sums = 0;
    for (size_t i = 0; i < count; i++) {
        moments m = {first[i], second[i], slow[i]};
        stepped to = step_element(kind, a_rule, a_rule.rate, element_of(&p, i), element_of(&g, i), m);
        put_element(right, p_dtype, i, to.p);
        first[i] = to.m.first, second[i] = to.m.second, slow[i] = to.m.slow;
        squares += (double)(to.direction * to.direction) + (double)(element_of(&p, i) * element_of(&p, i));
    }
    for (size_t b = 0; b < blocks; b++) sums += (double)job.squares[b].p + (double)job.squares[b].direction;
    EXPECT(fabs(sums / squares - 1) < 1e-5, "sums of squares are %g, not %g", sums, squares);
    job.squares = NULL;
    forms->optimizer(&job, 0, blocks / 2);
    forms->optimizer(&job, blocks / 2, blocks);
    for (size_t i = 0; i < count; i++)
        EXPECT(same_element(right, p.data, p_dtype, i), "p[%zu] of %zu differs (kind %u, dtypes %d %d)", i, count, kind,
               p_dtype, g_dtype);
    for (size_t i = 0; i < READ_SLACK; i++)
        EXPECT(((uint8_t *)p.data)[count * size_of(p_dtype) + i] == 0xff, "wrote past the end of p");
    expect_state(&job.first, count, first);
    if (kind == RULE_ADAM || kind == RULE_ADEMAMIX) expect_state(&job.second, count, second);
    if (kind == RULE_ADEMAMIX) expect_state(&job.slow, count, slow);
    free(first), free(second), free(slow), free(right);
    release_all();
}

static void test_optimizer(void) {
    static const size_t counts[] = {1, 3, 15, 16, 17, 255, 256, 257, 2048, 5003};
    for (uint32_t kind = RULE_ADAM; kind <= RULE_ADAGRAD; kind++)
        EACH (c, counts)
            EACH (d, dtypes)
                EACH (e, dtypes)
                    for (int coded = 0; coded < 2; coded++)
                        check_optimizer(kind, coded, counts[c], dtypes[d], dtypes[e]);
}

/* ── Matmul ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static double weight_at(const struct matmul_job *job, size_t i) {
    if (!job->w.coded.code) return (double)element_of(&job->w.dense, i);
    if (job->w.coded.offsets) return (double)decoded(&job->w.coded, i); /* an offset may leave little but rounding */
    return (double)job->w.coded.code->values[code_at(&job->w.coded, i)] *
           (double)scale_of(&job->w.coded, i / job->w.coded.block);
}

/* The fewest steps from zero to the largest code, and to the largest magnitude of 64 elements of x, that a precision
 * may round to. Where bytes are multiplied two by two in an int16, MEDIUM has but 64 for x: its sums are
 * bounded too. */
static void steps_of(const struct matmul_job *job, double *code_steps, double *x_steps) {
    bool medium = job->precision == BNB_PRECISION_MEDIUM, few = job->x.rows <= 6;
    *code_steps = 0.8 * (medium ? 127 : few ? 16383 : 4095);
    *x_steps = medium ? 64 : few ? 16383 : 8191;
}

/* What y[m, n] should be, and how far off it may be: by the rounding of fp32 sums or, for HIGH and MEDIUM, by the half
 * steps that x and the codebook are rounded by. */
static void product_of(const struct matmul_job *job, size_t m, size_t n, double *right, double *within) {
    double code_steps, x_steps;
    steps_of(job, &code_steps, &x_steps);
    size_t columns = job->x.columns;
    double total = 0, magnitudes = 0, steps = 0, largest_code = 0;
    for (size_t c = 0; job->w.coded.code && c < job->w.coded.code->size; c++)
        largest_code = fmax(largest_code, fabs((double)job->w.coded.code->values[c]));
    for (size_t begin = 0; begin < columns; begin += 64) {
        double largest = 0;
        size_t end = begin + 64 < columns ? begin + 64 : columns;
        for (size_t k = begin; k < end; k++)
            largest = fmax(largest, fabs((double)element_of(&job->x, m * columns + k)));
        for (size_t k = begin; k < end; k++) {
            double x = (double)element_of(&job->x, m * columns + k), w = weight_at(job, n * columns + k);
            total += x * w, magnitudes += fabs(x * w);
            if (!job->w.coded.code) continue;
            double scale = fabs((double)scale_of(&job->w.coded, (n * columns + k) / job->w.coded.block));
            double step_x = largest * 0.5001 / x_steps, step_w = largest_code * scale * 0.5001 / code_steps;
            steps += fabs(w) * step_x + fabs(x) * step_w + step_x * step_w;
        }
    }
    if (job->bias) total += (double)job->bias[n], magnitudes += fabs((double)job->bias[n]);
    *within = magnitudes * 0x1p-24 * 8 * sqrt((double)columns + 1) + 1e-44;
    if (job->precision != BNB_PRECISION_HIGHEST) *within += steps;
    if (job->x.dtype == BNB_F16) *within += fabs(total) * 0x1p-11 + 0x1p-25;
    if (job->x.dtype == BNB_BF16) *within += fabs(total) * 0x1p-8;
    *right = total;
}

/* Holds a product to the bounds of a precision, which may be better than what it asks for. */
static void check_matmul_within(struct matmul_job job, bnb_precision precision) {
    size_t rows = job.x.rows, columns = weight_rows(&job.w);
    job.y = guarded(rows * columns * size_of(job.x.dtype), 0);
    EXPECT(forms->matmul(&job) == BNB_OK, "failed");
    struct dense y = {job.y, job.x.dtype, rows, columns};
    job.precision = precision;
    size_t step =
        rows * columns * job.x.columns / 20'000 + 1; /* some of the results: other jobs of this shape see others */
    for (size_t i = random_bits() % step; i < rows * columns; i += step) {
        double right, within, got = (double)element_of(&y, i);
        product_of(&job, i / columns, i % columns, &right, &within);
        EXPECT(fabs(got - right) <= within,
               "y[%zu, %zu] is %g, not %g within %g (k %zu, dtype %d, bits %u, block %zu, precision %d)", i / columns,
               i % columns, got, right, within, job.x.columns, job.x.dtype,
               job.w.coded.code ? job.w.coded.code->bits : 0, job.w.coded.block, job.precision);
    }
    release_all();
}

static void check_matmul(struct matmul_job job) { check_matmul_within(job, job.precision); }

static const float *bias_of(size_t columns, size_t turn) {
    if (turn % 2) return NULL;
    float *bias = guarded(columns * sizeof *bias, 0);
    for (size_t n = 0; n < columns; n++) bias[n] = normal();
    return bias;
}

static void test_matmul(void) {
    static const size_t shapes[][3] = {
        /* m, n, k */
        {1, 1, 1},    {1, 5, 64},   {1, 33, 128},  {1, 7, 4096}, {1, 3, 4160},   {1, 9, 8256},  {2, 6, 192},
        {3, 5, 320},  {4, 13, 576}, {1, 6, 63},    {1, 6, 33},   {2, 5, 96},     {3, 4, 1},     {4, 4, 513},
        {5, 9, 64},   {5, 11, 129}, {7, 10, 1100}, {12, 3, 40},  {13, 70, 65},   {25, 66, 520}, {70, 130, 97},
        {515, 5, 17}, {6, 5, 128},  {7, 5, 64},    {8, 33, 192}, {13, 19, 1152}, {25, 66, 576}, {513, 3, 64},
    };
    static const size_t blocks4[] = {64, 32, 128, 4096}, blocks8[] = {64, 1, 7, 256};
    size_t              turn = 0;
    EACH (s, shapes)
        EACH (d, dtypes) {
            size_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
            EACH (w, dtypes) {
                struct matmul_job job = {.x = dense_random(dtypes[d], m, k),
                                         .w.dense = dense_random(dtypes[w], n, k),
                                         .bias = bias_of(n, turn++),
                                         .precision = BNB_PRECISION_HIGHEST};
                check_matmul(job);
            }
            EACH (b, books)
                EACH (p, blocks4)
                    for (bnb_precision precision = BNB_PRECISION_HIGHEST; precision <= BNB_PRECISION_MEDIUM;
                         precision++) {
                        size_t            block = books[b]->bits == 8 ? blocks8[p] : blocks4[p];
                        struct matmul_job job = {.x = dense_random(dtypes[d], m, k),
                                                 .precision = precision,
                                                 .bias = bias_of(n, turn++)};
                        job.w.coded = coded_random(books[b], n, k, block, layout_of(turn));
                        check_matmul(job);
                    }
        }
}

/* The largest sums that there are, of all 64 products of a run and of each two, must not leave an int32 or int16. */
static void test_matmul_at_the_bound(void) {
    for (uint32_t turn = 0; turn < 16 * 3 * 2; turn++)
        for (size_t m = 1; m <= 9; m++) {
            uint32_t          code = turn % 16, pattern = turn / 16 % 3;
            struct matmul_job job = {.x = dense_random(BNB_F32, m, 256),
                                     .precision = turn < 48 ? BNB_PRECISION_HIGH : BNB_PRECISION_MEDIUM};
            for (size_t i = 0; i < m * 256; i++) {
                float large = (code + i / 64) % 2 ? 3 : -3, others[] = {large, 0, large * uniform()};
                ((float *)job.x.data)[i] = i % 4 < 2 ? large : others[pattern]; /* pairs are two apart */
            }
            job.w.coded = coded_random(books[code % 4], 5, 256, 64, PLAIN);
            memset((uint8_t *)job.w.coded.codes, (int)(code << 4 | code), 5 * 256 / 2);
            check_matmul(job);
        }
}

/* Where sums come from a matrix instruction, every bit of a product is that of the forms that have dot products: the
 * sums of runs are the same integers, added up in the same order. */
static void test_matmul_is_that_of_dot_products(const struct cpu_forms *dots) {
    for (size_t m = 9; m <= 40; m++) {
        size_t            n = 3 + m % 14, k = 64 * (1 + m % 20);
        struct matmul_job job = {.x = dense_random(dtypes[m % 3], m, k), .precision = BNB_PRECISION_MEDIUM};
        job.w.coded = coded_random(books[NF4], n, k, 64, m % 2 ? NESTED : PLAIN);
        job.y = guarded(m * n * size_of(job.x.dtype), 0);
        EXPECT(forms->matmul(&job) == BNB_OK, "failed");
        const void *y = job.y;
        job.y = guarded(m * n * size_of(job.x.dtype), 0);
        EXPECT(dots->matmul(&job) == BNB_OK, "failed");
        EXPECT(!memcmp(y, job.y, m * n * size_of(job.x.dtype)), "not as %s (m %zu, n %zu, k %zu)", dots->isa, m, n, k);
        release_all();
    }
}

/* What integers can't stand for takes the exact kernel: a NaN or an infinity shows, a tiny number counts. */
static void test_matmul_of_odd_numbers(void) {
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    EACH (v, odd)
        for (uint32_t turn = 0; turn < 4; turn++) {
            size_t            m = turn % 2 ? 2 : 9, at = (m - 1) * 128 + 77;
            struct matmul_job job = {.x = dense_random(BNB_F32, m, 128),
                                     .precision = turn < 2 ? BNB_PRECISION_HIGH : BNB_PRECISION_MEDIUM,
                                     .y = guarded(m * 3 * sizeof(float), 0)};
            ((float *)job.x.data)[at] = odd[v];
            job.w.coded = coded_random(books[NF4], 3, 128, 64, PLAIN);
            EXPECT(forms->matmul(&job) == BNB_OK, "failed");
            const float *last = (const float *)job.y + (m - 1) * 3;
            for (size_t n = 0; n < 3; n++) {
                float right = (float)weight_at(&job, n * 128 + 77) * odd[v], got = last[n];
                EXPECT(isfinite(((float *)job.y)[n]), "y[0, %zu] took something from another row", n);
                EXPECT(isnan(right) ? isnan(got) : got == right, "y[%zu, %zu] is %g, not %g", m - 1, n, (double)got,
                       (double)right);
            }
            release_all();
        }
    for (uint32_t turn = 0; turn < 4; turn++) {
        struct matmul_job job = {.x = dense_random(BNB_F32, turn % 2 ? 1 : 9, 128)};
        for (size_t i = 0; i < job.x.rows * 128; i++) ((float *)job.x.data)[i] *= 1e-36f;
        job.w.coded = coded_random(books[NF4], 3, 128, 64, PLAIN);
        job.precision = turn < 2 ? BNB_PRECISION_HIGH : BNB_PRECISION_MEDIUM;
        check_matmul_within(job, BNB_PRECISION_HIGHEST);
    }
}

#include "backward_forms.c"
#include "elementwise_forms.c"
#include "int8_forms.c"
#include "scales_forms.c"

/* ── The pool ───────────────────────────────────────────────────────────────────────────────────────────────────── */

struct counting {
    _Atomic uint32_t *times;
    bool              nests;
};

static void count_each(const void *counting, size_t first, size_t last) {
    const struct counting *job = counting;
    for (size_t i = first; i < last; i++) {
        atomic_fetch_add(&job->times[i], 1);
        if (!job->nests || i % 100) continue;
        _Atomic uint32_t inner[50] = {0};
        struct counting  nested = {inner, false};
        parallel_for(50, 1, count_each, &nested);
        for (int j = 0; j < 50; j++) EXPECT(inner[j] == 1, "nested index %d ran %u times", j, inner[j]);
    }
}

static void count_once(size_t count, size_t grain, bool nests) {
    _Atomic uint32_t *times = calloc(count + 1, sizeof *times);
    struct counting   job = {times, nests};
    parallel_for(count, grain, count_each, &job);
    for (size_t i = 0; i < count; i++) EXPECT(times[i] == 1, "index %zu of %zu ran %u times", i, count, times[i]);
    EXPECT(!times[count], "an index past the end ran");
    free(times);
}

static void *count_often(void *nests) {
    for (int round = 0; round < 2000; round++) count_once((size_t)round % 97 + 1, (size_t)round % 5 + 1, nests != NULL);
    return NULL;
}

struct presence {
    pthread_mutex_t mutex;
    pthread_t       threads[64];
    size_t          count;
};

static void be_present(const void *presence, size_t first, size_t last) {
    struct presence *job = *(struct presence *const *)presence;
    for (size_t i = first; i < last; i++) usleep(2000);
    pthread_mutex_lock(&job->mutex);
    size_t known = 0;
    while (known < job->count && !pthread_equal(job->threads[known], pthread_self())) known++;
    if (known == job->count) job->threads[job->count++] = pthread_self();
    pthread_mutex_unlock(&job->mutex);
}

/* Others take a share, also after they fell asleep. */
static void expect_company(const char *when) {
    struct presence presence = {.mutex = PTHREAD_MUTEX_INITIALIZER}, *job = &presence;
    usleep(2000);
    parallel_for(64, 1, be_present, &job);
    EXPECT(presence.count > 1 || thread_count() == 1, "only one thread worked %s", when);
}

static void test_pool(void) {
    static const size_t counts[] = {0, 1, 2, 3, 7, 16, 17, 1000, 65'537}, grains[] = {1, 2, 3, 64, 100'000};
    EACH (c, counts)
        EACH (g, grains) count_once(counts[c], grains[g], false);
    count_once(1000, 1, true);
    pthread_t callers[4];
    EACH (i, callers) pthread_create(&callers[i], NULL, count_often, i % 2 ? "nests" : NULL);
    EACH (i, callers) pthread_join(callers[i], NULL);
    for (int i = 0; i < 20; i++) {
        usleep(1000); /* the pool is asleep */
        count_once(1000, 1, false);
    }
    expect_company("after a pause");
    pthread_atfork(NULL, NULL, forget_threads); /* as csrc/lock.c does for the library */
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        expect_company("in a forked child");
        for (int i = 0; i < 100; i++) count_once(1000, 1, false);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    EXPECT(status == 0, "a forked child ended with status %d", status);
    count_once(1000, 1, false);
}

static const struct cpu_forms *forms_named(const char *isa) {
    if (!strcmp(isa, "wide")) return &cpu_forms_wide;
    if (!strcmp(isa, "checked")) return &cpu_forms_checked;
#ifdef __x86_64__
    if (!strcmp(isa, "narrow")) return &cpu_forms_narrow;
    if (!strcmp(isa, "emulated")) return &cpu_forms_emulated;
#endif
    return cpu_forms_named(isa);
}

int main(int count, char **arguments) {
    if (count != 2) return fprintf(stderr, "usage: forms_test <isa>|pool\n"), 2;
    bool pool = !strcmp(arguments[1], "pool");
    forms = forms_named(pool ? "plain" : arguments[1]);
    if (!forms) return fprintf(stderr, "this processor has no %s\n", arguments[1]), 3;
    if (pool) return test_pool(), 0;
    make_books();
    test_quantize_sizes();
    test_quantize_every_threshold();
    test_quantize_extremes();
    test_quantize_shows_nan_and_infinity();
    test_scales();
    test_dequantize();
    test_cast();
    test_elementwise();
    test_optimizer();
    test_matmul();
    test_matmul_at_the_bound();
    if (!strcmp(forms->isa, "i8mm")) test_matmul_is_that_of_dot_products(cpu_forms_named("dotprod"));
    if (!strcmp(forms->isa, "narrow")) test_matmul_is_that_of_dot_products(&cpu_forms_wide);
    test_matmul_of_odd_numbers();
    test_matmul_backward();
    test_embedding();
    test_int8_quantize();
    test_int8_matmul();
    return 0;
}
