/* Codebooks: the named ones, bitsandbytes' maps, and how any of them is prepared for quantising. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#include "codebook_values.h"

/* ── Preparing ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* The order of the values, smallest first; equal ones keep theirs. It decides what FP4's two zeros stand for. */
static void sort_codes(struct codebook *book) {
    for (uint32_t i = 0; i < book->size; i++) {
        uint32_t at = i;
        for (; at && book->values[book->order[at - 1]] > book->values[i]; at--) book->order[at] = book->order[at - 1];
        book->order[at] = (uint8_t)i;
    }
    book->ascending = true;
    for (uint32_t i = 0; i < book->size; i++) book->ascending &= book->order[i] == i;
}

/* Between two values the midpoint in fp32 decides. At the midpoint itself 8-bit codes take the even index
 * (bitsandbytes' CUDA dQuantize), narrower ones the smaller value (its default quantize_4bit). */
static void set_thresholds(struct codebook *book) {
    for (uint32_t i = 0; i + 1 < book->size; i++) {
        float below = book->values[book->order[i]], above = book->values[book->order[i + 1]];
        float middle = book->bits == 8 ? (below + above) * 0.5f : (below + above) / 2;
        bool  upper_at_tie = book->bits == 8 && i % 2 && below < above;
        book->thresholds[i] = upper_at_tie ? nextafterf(middle, -INFINITY) : middle;
    }
    book->thresholds[book->size - 1] = INFINITY;
}

static uint32_t thresholds_below(const struct codebook *book, float x) {
    uint32_t below = 0;
    while (below < book->size - 1 && x > book->thresholds[below]) below++;
    return below;
}

/* Each bucket's magnitudes run from `least` to `most`; on the negative side the smallest value is -most. */
static void set_buckets(struct codebook *book) {
    for (uint32_t bucket = 0; bucket < BUCKETS; bucket++) {
        float least = bucket ? bits_float((bucket + BUCKET_BASE) << BUCKET_SHIFT) : 0;
        float most = bucket == BUCKETS - 1 ? 1 : bits_float(((bucket + BUCKET_BASE + 1) << BUCKET_SHIFT) - 1);
        for (int sign = 0; sign < 2; sign++) {
            uint32_t first = thresholds_below(book, sign ? -most : least),
                     last = thresholds_below(book, sign ? -least : most);
            book->start[sign][bucket] = (uint8_t)first;
            if (last - first > book->steps) book->steps = last - first;
        }
    }
}

static bool has_integers(const struct codebook *book) {
    for (uint32_t code = 0; code < book->size; code++) {
        int32_t integer = (book->is_signed ? (int8_t)code : (int32_t)code) - book->zero;
        if (book->values[code] != (float)integer * book->step) return false;
    }
    return true;
}

/* With such a codebook a code is decoded by arithmetic, which is faster than looking it up. */
static void set_step(struct codebook *book) {
    float step = book->values[1] - book->values[0], zero = -book->values[0] / step;
    if (!(step > 0 && step < INFINITY && zero >= 0 && zero <= 255)) return;
    book->step = step;
    book->zero = (int32_t)zero;
    book->is_signed = book->bits == 8 && book->values[255] < 0;
    if (!has_integers(book)) book->step = 0;
}

/* The entry of the bucket that starts at `least`, on the side of `sign`; false where one can't say it all. */
static bool set_entry(const struct codebook *book, uint32_t shift, uint32_t least, uint32_t sign, uint32_t *entry) {
    uint32_t mask = (1u << shift) - 1, limit = mask;
    uint32_t first = thresholds_below(book, bits_float(least | sign)),
             last = thresholds_below(book, bits_float(least | mask | sign));
    if (last > first) limit = float_bits(book->thresholds[first]) & mask;
    if (last < first) limit = (float_bits(book->thresholds[last]) & mask) - 1;
    *entry = first << shift | limit;
    return last <= first + 1 && first <= last + 1;
}

static void set_entries(struct codebook *book) {
    bool     negative = book->values[book->order[0]] < 0;
    uint32_t shift = negative ? BUCKET_SHIFT : BUCKET_SHIFT - 1,
             buckets = negative ? ENTRY_BUCKETS : 2 * ENTRY_BUCKETS - 1;
    for (uint32_t i = 0; i < (negative ? 2 : 1) * buckets; i++) {
        uint32_t least = ENTRY_LEAST + (i % buckets << shift), sign = i < buckets ? 0 : 1u << 31;
        if (!set_entry(book, shift, least, sign, &book->entries[i])) return;
    }
    /* What is smaller than all buckets, but for 0 itself, shares the first, which must hold no threshold then. */
    uint32_t mask = (1u << shift) - 1, above = thresholds_below(book, bits_float(1)),
             under = thresholds_below(book, -bits_float(1));
    if (book->entries[0] != (above << shift | mask) || (negative && book->entries[buckets] != (under << shift | mask)))
        return;
    uint32_t zero = thresholds_below(book, 0);
    if (zero != above && (!negative || zero != under)) return;
    book->negative_below = zero == above ? 0 : bits_float(1);
    book->entry_shift = shift;
}

/* Of a power of two of values, from 4 to 256. One count is the caller's. */
static bnb_codebook *codebook_new(const float *values, size_t size) {
    bnb_codebook *codebook = handle_new(TAG_CODEBOOK, sizeof *codebook);
    if (!codebook) return refuse(BNB_OUT_OF_MEMORY, "no memory for a codebook");
    codebook->refs = 1;
    struct codebook *book = &codebook->book;
    book->size = (uint32_t)size;
    book->bits = (uint32_t)__builtin_ctzll(size);
    memcpy(book->values, values, size * sizeof *values);
    sort_codes(book);
    set_thresholds(book);
    if (book->bits == 8) set_buckets(book), set_entries(book);
    set_step(book);
    return codebook;
}

bnb_codebook *codebook_share(bnb_codebook *codebook) {
    codebook->refs++;
    return codebook;
}

void bnb_codebook_free(bnb_codebook *codebook) {
    if (!codebook || !is_codebook(codebook, "codebook_free", "codebook") || --codebook->refs) return;
    for (int i = 0; i < UPLOADS_MOST; i++) buffer_release(codebook->uploaded[i]);
    handle_free(codebook);
}

bnb_codebook *bnb_codebook_from(const float *values, size_t bytes) {
    if (!values) return refuse(BNB_INVALID, "codebook_from: values is NULL");
    size_t size = bytes / sizeof *values;
    if (bytes % sizeof *values || size < 4 || size > 256 || size & (size - 1))
        return refuse(BNB_INVALID, "codebook_from: values has %zu bytes, expected 4, 8, 16, 32, 64, 128 or 256 floats",
                      bytes);
    for (size_t i = 0; i < size; i++)
        if (!isfinite(values[i]))
            return refuse(BNB_INVALID, "codebook_from: values[%zu] is %g, expected a finite number", i, values[i]);
    return codebook_new(values, size);
}

size_t bnb_codebook_size(const bnb_codebook *codebook) {
    return is_codebook(codebook, "codebook_size", "codebook") ? codebook->book.size : 0;
}

bnb_status bnb_codebook_read(const bnb_codebook *codebook, float *values, size_t bytes) {
    if (!is_codebook(codebook, "codebook_read", "codebook")) return BNB_INVALID;
    if (!values) return fail(BNB_INVALID, "codebook_read: values is NULL");
    if (bytes != codebook->book.size * sizeof *values)
        return fail(BNB_INVALID, "codebook_read: values has %zu bytes, expected %zu", bytes,
                    codebook->book.size * sizeof *values);
    memcpy(values, codebook->book.values, bytes);
    return BNB_OK;
}

/* ── bitsandbytes' maps ─────────────────────────────────────────────────────────────────────────────────────────── */

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Upstream fills every map up with zeros to 256 values, whatever its bits: here it has 2^bits. What is not set is
 * zero. */
struct map {
    float    values[256];
    uint32_t count;
};

static void put(struct map *map, float value) { map->values[map->count++] = value; }

static bnb_codebook *codebook_of(struct map *map, uint32_t bits) {
    size_t size = (size_t)1 << bits;
    qsort(map->values, size, sizeof *map->values, ascending);
    return codebook_new(map->values, size);
}

/* torch.linspace in fp32, which counts from the nearer end and rounds once. */
static float linspace(float from, float to, uint32_t count, uint32_t i) {
    if (count == 1) return from;
    float step = (to - from) / (float)(count - 1);
    return i < count / 2 ? fmaf(step, (float)i, from) : fmaf(-step, (float)(count - 1 - i), to);
}

/* The middles of `items` equal pieces of [0.1, 1], times a power of ten. */
static void put_decade(struct map *map, bool is_signed, uint32_t items, float power) {
    for (uint32_t k = 0; k < items; k++) {
        float middle = (linspace(0.1f, 1, items + 1, k) + linspace(0.1f, 1, items + 1, k + 1)) / 2;
        put(map, power * middle);
        if (is_signed) put(map, -power * middle);
    }
}

bnb_codebook *bnb_codebook_dynamic(int32_t is_signed, uint32_t max_exponent_bits, uint32_t total_bits) {
    if (total_bits < 2 || total_bits > 8)
        return refuse(BNB_INVALID, "codebook_dynamic: total_bits is %u, expected 2 to 8", total_bits);
    uint32_t value_bits = total_bits - 1; /* upstream counts a sign bit for unsigned maps too, and doubles the items */
    uint32_t most = value_bits + !!is_signed; /* one more than there is room for leaves the smallest decade empty */
    if (!max_exponent_bits || max_exponent_bits > most)
        return refuse(BNB_INVALID, "codebook_dynamic: max_exponent_bits is %u, expected 1 to %u", max_exponent_bits,
                      most);

    struct map map = {};
    uint32_t   extra = max_exponent_bits < value_bits ? (1u << (value_bits - max_exponent_bits)) - 1 : 0;
    float      power = 0;
    for (uint32_t i = 0; i < max_exponent_bits; i++) {
        power = (float)pow(10, (double)i - (max_exponent_bits - 1));
        put_decade(&map, is_signed, ((1u << (i + value_bits + !is_signed)) >> max_exponent_bits), power);
    }
    if (extra) put_decade(&map, is_signed, extra, power);
    put(&map, 0);
    put(&map, 1);
    return codebook_of(&map, total_bits);
}

bnb_codebook *bnb_codebook_linear(int32_t is_signed, uint32_t total_bits, int32_t add_zero) {
    if (total_bits < 2 || total_bits > 8)
        return refuse(BNB_INVALID, "codebook_linear: total_bits is %u, expected 2 to 8", total_bits);
    uint32_t size = 1u << total_bits, count = is_signed && add_zero ? size - 1 : size;
    float    values[256] = {}; /* a zero fills the gap between the halves */
    for (uint32_t i = 0; i < count; i++)
        values[i < count / 2 ? i : size - count + i] = linspace(is_signed ? -1 : 0, 1, count, i);
    return codebook_new(values, size);
}

bnb_codebook *bnb_codebook_fp8(int32_t is_signed, uint32_t exponent_bits, uint32_t precision_bits,
                               uint32_t total_bits) {
    if (total_bits < 2 || total_bits > 8 || exponent_bits < 1 || exponent_bits > 7 || precision_bits > 7 ||
        exponent_bits + precision_bits + !!is_signed != total_bits)
        return refuse(BNB_INVALID, "codebook_fp8: %s%u exponent and %u precision bits do not make %u bits, of 2 to 8",
                      is_signed ? "a sign, " : "", exponent_bits, precision_bits, total_bits);
    struct map map = {};
    int        bias = 1 << (exponent_bits - 1);
    float      largest = 0;
    for (int exponent = 0; exponent < 1 << exponent_bits; exponent++) {
        for (uint32_t fraction = 0; fraction < 1u << precision_bits; fraction++) {
            double mantissa = (exponent != 0) + ldexp(fraction, -(int)precision_bits);
            /* Upstream's exponents fall as the field grows: 2^-(field - bias - 1); subnormals stand at 2^-bias. */
            float value = (float)ldexp(mantissa, exponent ? bias + 1 - exponent : -bias);
            if (value > largest) largest = value;
            put(&map, value);
            if (is_signed) put(&map, -value);
        }
    }
    for (uint32_t i = 0; i < map.count; i++) map.values[i] /= largest;
    return codebook_of(&map, total_bits);
}

/* The x with P(X < x) = p for a normal X: Newton's method on erfc, from the side where the curve is convex. */
static double normal_quantile(double p) {
    if (p < 0.5) return -normal_quantile(1 - p);
    double x = 0;
    for (int i = 0; i < 64; i++) {
        double error = 1 - 0.5 * erfc(x / sqrt(2)) - p, slope = exp(-x * x / 2) / sqrt(2 * acos(-1.0));
        x -= error / slope;
        if (fabs(error / slope) < 1e-16) break;
    }
    return x;
}

/* QLoRA's, from the mean of the outermost bins of both sides; to the seven digits that upstream writes for 4 bits. */
static double normal_offset(uint32_t bits) {
    double size = 1u << bits;
    return round((1 - (1 / (2 * size) + 1 / (2 * size - 2)) / 2) * 1e7) / 1e7;
}

bnb_codebook *bnb_codebook_normal(double offset, int32_t use_extra_value, uint32_t total_bits) {
    if (total_bits < 2 || total_bits > 8)
        return refuse(BNB_INVALID, "codebook_normal: total_bits is %u, expected 2 to 8", total_bits);
    if (offset == 0) offset = normal_offset(total_bits);
    if (!(offset > 0.5 && offset < 1))
        return refuse(BNB_INVALID, "codebook_normal: offset is %g, expected more than 0.5 and less than 1", offset);
    struct map map = {};
    uint32_t   half = 1u << (total_bits - 1), above = use_extra_value ? half : half - 1;
    float      largest = (float)normal_quantile((float)offset);
    for (uint32_t i = 0; i < above; i++)
        put(&map, (float)normal_quantile(linspace((float)offset, 0.5f, above + 1, i)) / largest);
    for (uint32_t i = 0; i < half - 1; i++)
        put(&map, -(float)normal_quantile(linspace((float)offset, 0.5f, half, i)) / largest);
    return codebook_of(&map, total_bits);
}

/* ── Named codebooks, made once ─────────────────────────────────────────────────────────────────────────────────── */

/* Two's complement, by upstream's constant for 1 / 127. */
static bnb_codebook *signed_bytes(void) {
    float values[256];
    for (int code = 0; code < 256; code++) values[code] = (float)(int8_t)code * 7.874015718698502e-3f;
    return codebook_new(values, 256);
}

/* Each by its name, with what makes it. */
#define NAMED(ROW)                                                                                                     \
    ROW(nf4, codebook_new(nf4_values, 16))                                                                             \
    ROW(fp4, codebook_new(fp4_values, 16))                                                                             \
    ROW(af4, codebook_new(af4_values, 16))                                                                             \
    ROW(nf2, bnb_codebook_normal(0, 1, 2))                                                                             \
    ROW(nf3, bnb_codebook_normal(0, 1, 3))                                                                             \
    ROW(nf5, bnb_codebook_normal(0, 1, 5))                                                                             \
    ROW(nf6, bnb_codebook_normal(0, 1, 6))                                                                             \
    ROW(dynamic, bnb_codebook_dynamic(1, 7, 8))                                                                        \
    ROW(dynamic_unsigned, bnb_codebook_dynamic(0, 7, 8))                                                               \
    ROW(int8, signed_bytes())

#define MAKE(name, made)                                                                                               \
    static bnb_codebook *make_##name(void) { return made; }
NAMED(MAKE)

enum {
#define PLACE(name, made) NAMED_##name,
    NAMED(PLACE)
};

static struct named {
    const char *name;
    bnb_codebook *(*make)(void);
    bnb_codebook *made;
} named[] = {
#define LINE(name, made) {#name, make_##name, NULL},
    NAMED(LINE)};

static bnb_codebook *make_once(struct named *row) {
    watch_forks(); /* a codebook needs no device */
    lock(LOCK_MAKING);
    if (!row->made) row->made = row->make();
    bnb_codebook *made = row->made;
    unlock(LOCK_MAKING);
    return made;
}

#define WORD(name, made) " " #name
bnb_codebook *bnb_codebook_named(const char *name) {
    if (!name) return refuse(BNB_INVALID, "codebook_named: name is NULL");
    for (struct named *row = named; row < named + sizeof named / sizeof *named; row++) {
        if (strcmp(name, row->name)) continue;
        bnb_codebook *made = make_once(row);
        return made ? codebook_share(made) : NULL;
    }
    return refuse(BNB_INVALID, "codebook_named: name is \"%.64s\", expected one of" NAMED(WORD), name);
}

bnb_codebook *codebook_dynamic_signed(void) { return make_once(&named[NAMED_dynamic]); }
