/* Holds the forms of instruction sets, side by side, to the plain rules of codebook.h and forms.h: forms_test <isa>…
 * Or holds the pool of threads to its own: forms_test pool.
 *
 * Exits with 0 where all is right, 3 where this processor can't run any of the forms, 1 at the first difference; names
 * those that it can't run. Inputs end at a page that can't be read, less what forms.h lets a form read; outputs end at
 * one exactly. */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../csrc/fit.h"
#include "../../csrc/internal.h"

/* What only tests have: the portable backend at sixteen floats, and at four with ARM's matrix instruction; AVX-512's
 * with its instructions emulated; AVX2's or NEON's under the sanitizer, for what ships is here as it ships. */
extern const struct cpu_forms cpu_forms_wide, cpu_forms_checked;
#ifdef __x86_64__
extern const struct cpu_forms cpu_forms_narrow, cpu_forms_emulated;
#endif

/* Inputs and right answers take most of the time, and are made once for all that are tried. */
static const struct cpu_forms *tried[16];
static size_t                  tried_count;
static const struct cpu_forms *forms; /* the one at work */

static const bnb_dtype dtypes[] = {BNB_F32, BNB_F16, BNB_BF16};

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
#define EACH_FORM      for (size_t f = 0; f < tried_count && (forms = tried[f]); f++)

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

/* An output, for the next form, as nobody has written it. */
static void *untouched(void *output, size_t bytes) { return memset(output, 0xff, bytes); }

static size_t size_of(bnb_dtype dtype) { return dtype == BNB_F32 ? 4 : 2; }

/* The most that rounding to a dtype changes a value. */
static double rounded_by(bnb_dtype dtype, double value) {
    return dtype == BNB_F16 ? fabs(value) * 0x1p-11 + 0x1p-25 : dtype == BNB_BF16 ? fabs(value) * 0x1p-8 : 0;
}

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

#include "codebooks.c"

#include "quantize_forms.c"

/* ── Dequantise and cast ────────────────────────────────────────────────────────────────────────────────────────── */

/* How scales lie: floats; bytes by fp32, as bitsandbytes has them; 6-bit codes by fp16; these, and offsets alike;
 * scales and offsets of a dtype of their own. */
enum layout { PLAIN, NESTED, NARROW, NARROW_OFFSETS, AFFINE_F32, AFFINE_F16, AFFINE_BF16, LAYOUTS };

/* Each of them by turns, plain ones most often. */
static enum layout layout_of(size_t turn) { return turn % 2 ? PLAIN : NESTED + turn / 2 % (LAYOUTS - NESTED); }

static const uint8_t *random_bytes(size_t count, size_t slack) {
    uint8_t *bytes = guarded(count, slack);
    for (size_t i = 0; i < count; i++) bytes[i] = (uint8_t)(random_bits() >> 32);
    return bytes;
}

static const void *random_floats(size_t count, bnb_dtype dtype) { return dense_random(dtype, 1, count).data; }

static struct coded coded_random(const struct codebook *code, size_t rows, size_t columns, size_t block,
                                 enum layout layout) {
    size_t       count = rows * columns, blocks = (count + block - 1) / block, bytes = code_bytes_of(code, count);
    struct coded q = {.code = code, .rows = rows, .columns = columns, .block = block};
    q.codes = random_bytes(bytes, READ_SLACK);
    if (layout >= AFFINE_F32) {
        q.absmax_dtype = q.offsets_dtype = dtypes[layout - AFFINE_F32];
        const void *scales = random_floats(blocks, q.absmax_dtype);
        if (layout == AFFINE_F32)
            q.absmax = scales;
        else
            q.absmax_halves = scales;
        q.offsets = random_floats(blocks, q.offsets_dtype);
        return q;
    }
    if (layout == PLAIN) {
        float *absmax = guarded(blocks * sizeof *absmax, READ_SLACK);
        for (size_t b = 0; b < blocks; b++) absmax[b] = fabsf(normal());
        q.absmax = absmax;
        return q;
    }
    q.nested_block = (size_t[]){4, 24, 64}[random_bits() % 3]; /* fewer than a vector, vectors and a part, vectors */
    size_t groups = (blocks + q.nested_block - 1) / q.nested_block;
    q.nested_code = books[layout == NESTED ? DYNAMIC : OTHERS + 3], q.offset = 0.7f;
    q.absmax_codes = random_bytes(code_bytes_of(q.nested_code, blocks), READ_SLACK);
    if (layout == NESTED) {
        float *nested_absmax = guarded(groups * sizeof *nested_absmax, READ_SLACK);
        for (size_t g = 0; g < groups; g++) nested_absmax[g] = fabsf(normal());
        q.nested_absmax = nested_absmax;
        return q;
    }
    q.nested_absmax = random_floats(groups, BNB_F16), q.nested_dtype = BNB_F16;
    if (layout == NARROW) return q;
    q.offsets = random_bytes(code_bytes_of(q.nested_code, blocks), READ_SLACK);
    q.offsets_absmax = random_floats(groups, BNB_F16);
    return q;
}

static bool same_element(const void *a, const void *b, bnb_dtype dtype, size_t i) {
    struct dense x = {a, dtype, 1, 1}, y = {b, dtype, 1, 1};
    if (isnan(element_of(&x, i))) return isnan(element_of(&y, i));
    return !memcmp((const char *)a + i * size_of(dtype), (const char *)b + i * size_of(dtype), size_of(dtype));
}

/* Compares whole, and where that fails, as it does with a NaN, element by element. */
static void expect_elements(const void *right, const void *got, bnb_dtype dtype, size_t count, const char *of) {
    if (!memcmp(right, got, count * size_of(dtype))) return;
    struct dense wanted = {right, dtype, 1, count}, found = {got, dtype, 1, count};
    for (size_t i = 0; i < count; i++)
        EXPECT(same_element(right, got, dtype, i), "element %zu of %zu is %a, not %a (to dtype %d, from %s)", i, count,
               (double)element_of(&found, i), (double)element_of(&wanted, i), dtype, of);
}

static void check_dequantize(struct coded q, bnb_dtype dtype) {
    size_t count = q.rows * q.columns, blocks = (count + q.block - 1) / q.block;
    void  *right = malloc(count * size_of(dtype)), *y = guarded(count * size_of(dtype), 0);
    char   of[64];
    snprintf(of, sizeof of, "%u bits in blocks of %zu", q.code->bits, q.block);
    for (size_t i = 0; i < count; i++) put_element(right, dtype, i, decoded(&q, i));
    EACH_FORM {
        struct dequantize_job job = {q, untouched(y, count * size_of(dtype)), dtype};
        forms->dequantize(&job, 0, blocks / 3);
        forms->dequantize(&job, blocks / 3, blocks);
        expect_elements(right, y, dtype, count, of);
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
    size_t count = x.rows * x.columns;
    void  *right = malloc(count * size_of(dtype)), *y = guarded(count * size_of(dtype), 0);
    char   of[64];
    snprintf(of, sizeof of, "dtype %d", x.dtype);
    for (size_t i = 0; i < count; i++) put_element(right, dtype, i, element_of(&x, i));
    EACH_FORM {
        struct unary_job job = {.x = x, .y = untouched(y, count * size_of(dtype)), .dtype = dtype};
        forms->cast(&job, 0, count / 3);
        forms->cast(&job, count / 3, count);
        expect_elements(right, y, dtype, count, of);
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

#include "optimizer_forms.c"
#include "matmul_forms.c"
#include "backward_forms.c"
#include "elementwise_forms.c"
#include "layer_forms.c"
#include "int8_forms.c"
#include "scales_forms.c"
#include "pool_test.c"

/* ── The program ────────────────────────────────────────────────────────────────────────────────────────────────── */

static const struct cpu_forms *forms_named(const char *isa) {
    if (!strcmp(isa, "wide")) return &cpu_forms_wide;
    if (!strcmp(isa, "checked")) return &cpu_forms_checked;
#ifdef __x86_64__
    if (!strcmp(isa, "narrow")) return &cpu_forms_narrow;
    if (!strcmp(isa, "emulated")) return &cpu_forms_emulated;
#endif
    return cpu_forms_named(isa);
}

/* Says which form a crash was in. */
static void tell_form(int signal_number) {
    static const char said[] = ": the forms that crashed\n";
    if (write(STDERR_FILENO, forms->isa, strlen(forms->isa)) < 0 || write(STDERR_FILENO, said, sizeof said - 1) < 0)
        _exit(1);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static bool is_tried(const char *isa) {
    EACH_FORM if (!strcmp(forms->isa, isa)) return true;
    return false;
}

static void test_forms(void) {
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    forms = tried[0];
#if !__has_feature(address_sanitizer)
    EACH (c, crashes) signal(crashes[c], tell_form);
#endif
    make_books();
    test_quantize_sizes();
    test_quantize_every_threshold();
    test_quantize_extremes();
    test_quantize_shows_nan_and_infinity();
    test_scales();
    test_dequantize();
    test_cast();
    test_elementwise();
    test_rms_norm();
    test_activate();
    test_attention();
    test_optimizer();
    test_matmul();
    test_matmul_of_integers();
    test_matmul_of_whole_steps();
    test_matmul_at_the_bound();
    if (is_tried("i8mm")) test_matmul_is_that_of_dot_products(forms_named("i8mm"), cpu_forms_named("dotprod"));
    if (is_tried("narrow")) test_matmul_is_that_of_dot_products(forms_named("narrow"), &cpu_forms_wide);
    test_matmul_of_odd_numbers();
    test_matmul_backward();
    test_embedding();
    test_int8_quantize();
    test_int8_matmul();
}

int main(int count, char **arguments) {
    if (count < 2 || count > 16) return fprintf(stderr, "usage: forms_test <isa>…|pool\n"), 2;
    forms = cpu_forms_named("plain");
    if (!strcmp(arguments[1], "pool")) return test_pool(), 0;
    for (int i = 1; i < count; i++) {
        const struct cpu_forms *named = forms_named(arguments[i]);
        if (named)
            tried[tried_count++] = named;
        else
            printf("%s\n", arguments[i]);
    }
    if (!tried_count) return fprintf(stderr, "this processor has none of them\n"), 3;
    test_forms();
    return 0;
}
