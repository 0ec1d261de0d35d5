/* Blockwise quantising: the absmax of each block, and its elements' nearest codes. */
#include <float.h>

#include "simd.h"

enum {
    SCALED_AHEAD = 2048, /* elements whose scales are found before any is coded: no block waits for its own */
    MOST_GROUP = 64,     /* and the most blocks */
};

/* The thresholds of a codebook of 16 as a search tree of four levels. Where a search has gone is a number from 0 down,
 * as a comparison's -1 is added as it is: the two lower levels lie in that order, of which an index sees the low
 * bits. */
struct tree {
    float  root, second[2];
    table4 third;
    table8 fourth;
};

INLINE ints below_in_tree(struct tree tree, floats x) {
    ints   path = x > tree.root;
    floats second = path ? (floats)tree.second[1] : (floats)tree.second[0];
    path += path + (ints)(x > second);
    path += path + (ints)(x > lookup4(tree.third, path));
    path += path + (ints)(x > lookup8(tree.fourth, path));
    return -path;
}

/* The same search for 32 elements at once, in bytes: x and the thresholds are rounded to 16 bits alike, which leaves
 * their order, unless two become equal. A sixteenth of the 16-bit numbers is what their highest four bits say; no more
 * than two thresholds may lie in one. */
struct sixteenths {
    uint8_t below[16];               /* thresholds below the sixteenth */
    uint8_t high[2][16], low[2][16]; /* bytes of those in it: the higher, and the lower with its first bit turned */
};

enum { FIXED_ONE = 32000, NO_THRESHOLD = INT16_MAX };

/* The lowest 16 bits of each are x in steps of 1 / FIXED_ONE, rounded; of what is no number they are anything. */
INLINE words fixed_of(floats x) { return (words)fma(x, (floats)FIXED_ONE, (floats)0x1.8p23f); }

/* False where a sixteenth would have too many. */
static bool find_sixteenths(const float thresholds[16], struct sixteenths *to) {
    uint32_t fixed[16];
    for (size_t i = 0; i < 16; i += WIDTH) {
        words v = fixed_of(clamp(load_floats(thresholds + i)));
        memcpy(fixed + i, &v, sizeof v);
    }
    for (uint32_t nibble = 0; nibble < 16; nibble++) {
        int32_t first = (int16_t)(nibble << 12), below = 0, inside = 0;
        int16_t found[2] = {NO_THRESHOLD, NO_THRESHOLD};
        for (int i = 0; i < 15; i++) {
            int16_t threshold = thresholds[i] < -1 ? INT16_MIN : (int16_t)fixed[i];
            if (thresholds[i] >= 1) continue; /* nothing is above */
            if (threshold < first)
                below++;
            else if (threshold - first < 1 << 12 && inside == 2)
                return false;
            else if (threshold - first < 1 << 12)
                found[inside++] = threshold;
        }
        to->below[nibble] = (uint8_t)below;
        for (int i = 0; i < 2; i++) {
            to->high[i][nibble] = (uint8_t)(found[i] >> 8);
            to->low[i][nibble] = (uint8_t)found[i] ^ 0x80;
        }
    }
    return true;
}

typedef VECTOR(int8_t, 32) signed_bytes32;

/* False where x might be equal to a threshold. */
INLINE bool ranks_in_sixteenths(struct sixteenths in, const floats x[VECTORS_OF_32], bytes32 *ranks) {
    words   fixed[VECTORS_OF_32];
    bytes32 low, high, ambiguous = 0;
#pragma unroll
    for (int v = 0; v < VECTORS_OF_32; v++) fixed[v] = fixed_of(x[v]);
    split(fixed, &low, &high);
    bytes32        nibble = high >> 4;
    signed_bytes32 h = (signed_bytes32)high, l = (signed_bytes32)(low ^ 0x80);
    bytes32        below = lookup_bytes(in.below, nibble);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        signed_bytes32 th = (signed_bytes32)lookup_bytes(in.high[i], nibble);
        signed_bytes32 tl = (signed_bytes32)lookup_bytes(in.low[i], nibble);
        bytes32        level = (bytes32)(h == th);
        below -= (bytes32)(h > th) | (level & (bytes32)(l > tl));
        ambiguous |= level & (bytes32)(l == tl);
    }
    *ranks = below;
    return !__builtin_reduce_or(ambiguous);
}

/* Among 256 values: the search starts where the bucket of x does, or in the middle where buckets are crowded. */
INLINE ints below_in_buckets(const struct codebook *code, floats x) {
    if (code->steps > 8) {
        ints below = 0;
        for (int half = 128; half; half /= 2) below -= (ints)(x > gather(code->thresholds + half - 1, below)) * half;
        return below;
    }
    ints bits = (ints)x, key = (bits & 0x7fffffff) >> BUCKET_SHIFT;
    ints bucket = __builtin_elementwise_max(key, (ints)BUCKET_BASE) - BUCKET_BASE;
    ints negative = bits >> 31 & (int32_t)sizeof code->start[0];
    ints below = gather_bytes(code->start[0], bucket + negative);
    for (uint32_t step = 0; step < code->steps; step++) below -= (ints)(x > gather(code->thresholds, below));
    return below;
}

/* The same where an entry of the bucket is enough, with the codebook's entry_shift. Where that is for codebooks without
 * negative values, what is below zero counts as zero. Whatever x is, the entry is one of the codebook's: another thread
 * may have written to x, or to scales, since the block's largest magnitude was found. */
INLINE ints below_in_entries(const struct codebook *code, int32_t shift, floats x) {
    const ints least = ENTRY_LEAST, mask = (1 << shift) - 1;
    /* As integers, negative numbers are below `least`. */
    ints bits = shift < BUCKET_SHIFT ? (ints)x : (ints)x & 0x7fffffff;
    ints magnitude = __builtin_elementwise_min(__builtin_elementwise_max(bits, least), (ints)0x3f800000); /* 1.0f */
    ints negative = shift < BUCKET_SHIFT ? (ints)0 : (ints)(x < code->negative_below);
    ints index = ((magnitude - least) >> shift) + (negative & ENTRY_BUCKETS);
    ints entry = (ints)gather((const float *)code->entries, index);
    return (entry >> shift) + ((ints)((magnitude & mask) > (entry & mask)) & (negative | 1));
}

/* The largest magnitude of a block. Compared as integers, a NaN is above an infinity, and that above every number. */
INLINE float absmax_of(const struct dense *x, bnb_dtype dtype, size_t first, size_t count) {
    ints   largest[VECTORS_OF_32] = {0};
    size_t i = 0;
    for (; i + 32 <= count; i += 32)
#pragma unroll
        for (int v = 0; v < VECTORS_OF_32; v++)
            largest[v] = __builtin_elementwise_max(
                largest[v], (ints)load(x->data, dtype, first + i + (size_t)v * WIDTH) & 0x7fffffff);
    for (int v = 1; v < VECTORS_OF_32; v++) largest[0] = __builtin_elementwise_max(largest[0], largest[v]);
    uint32_t bits = (uint32_t)__builtin_reduce_max(largest[0]);
    for (; i < count; i++) {
        uint32_t magnitude = float_bits(element_of(x, first + i)) & 0x7fffffff;
        bits = magnitude > bits ? magnitude : bits;
    }
    return bits_float(bits);
}

/* How a codebook is searched. */
enum code_search { IN_TREE, IN_BUCKETS, IN_ENTRIES, IN_FINER_ENTRIES };

/* A codebook of 16 made ready for both of its searches. */
struct search16 {
    struct tree       tree;
    struct sixteenths sixteenths;
    bool              has_sixteenths;
};

/* 32 elements as the ranks of their values in the codebook, the smallest first. A product with the inverse of the
 * largest magnitude is rounded to 1 at most: nothing is clamped where scales are that, and are numbers. */
INLINE bytes32 ranks_of(const struct codebook *code, struct search16 of16, enum code_search search, bool clamps,
                        const void *x, bnb_dtype dtype, size_t i, float inverse) {
    floats  scaled[VECTORS_OF_32];
    ints    below[VECTORS_OF_32];
    bytes32 ranks;
#pragma unroll
    for (int v = 0; v < VECTORS_OF_32; v++) {
        scaled[v] = load(x, dtype, i + (size_t)v * WIDTH) * inverse;
        if (clamps || search == IN_BUCKETS) scaled[v] = clamp(scaled[v]);
    }
    if (search == IN_TREE && HAS_LOOKUP_BYTES && of16.has_sixteenths &&
        ranks_in_sixteenths(of16.sixteenths, scaled, &ranks))
        return ranks;
#pragma unroll
    for (int v = 0; v < VECTORS_OF_32; v++) {
        if (search == IN_TREE)
            below[v] = below_in_tree(of16.tree, scaled[v]);
        else if (search == IN_BUCKETS)
            below[v] = below_in_buckets(code, scaled[v]);
        else
            below[v] = below_in_entries(code, search == IN_ENTRIES ? BUCKET_SHIFT : BUCKET_SHIFT - 1, scaled[v]);
    }
    return narrow(below);
}

INLINE void put_codes(const struct quantize_job *job, uint32_t bits, bool ascending, size_t i, bytes32 ranks,
                      size_t count) {
    uint8_t *codes = job->codes;
    if (bits == 8) {
        memcpy(codes + i, &ranks, count);
        if (ascending) return;
        for (size_t j = i; j < i + count; j++) codes[j] = job->code->order[codes[j]];
    } else {
        typedef VECTOR(uint16_t, 16) pairs;
        pairs   pair = (pairs)(ascending ? ranks : lookup_bytes(job->code->order, ranks));
        bytes16 packed = __builtin_convertvector((pair << 4 & 0xf0) | pair >> 8, bytes16);
        memcpy(codes + i / 2, &packed, (count + 1) / 2);
    }
}

/* The elements [i, end) of a block. */
INLINE void code_block(const struct quantize_job *job, struct search16 of16, enum code_search search, bool ascending,
                       bnb_dtype dtype, size_t i, size_t end, float inverse, bool clamps) {
    const struct codebook *code = job->code;
    uint32_t               bits = search == IN_TREE ? 4 : 8;
    for (; i + 32 <= end; i += 32) {
        /* What scales are found of next is fetched meanwhile. */
        const char *ahead = (const char *)job->x.data + (i + SCALED_AHEAD) * (dtype == BNB_F32 ? 4 : 2);
        __builtin_prefetch(ahead);
        if (dtype == BNB_F32) __builtin_prefetch(ahead + 64);
        bytes32 ranks = ranks_of(code, of16, search, clamps, job->x.data, dtype, i, inverse);
        put_codes(job, bits, ascending, i, ranks, 32);
    }
    if (i == end) return;
    float rest[32] = {0}; /* zeros pad: the spare nibble of an odd count is the code of 0 */
    for (size_t j = i; j < end; j++) rest[j - i] = element_of(&job->x, j);
    bytes32 ranks = ranks_of(code, of16, search, clamps, rest, BNB_F32, 0, inverse);
    put_codes(job, bits, ascending, i, ranks, end - i);
}

INLINE void quantize_blocks(const struct quantize_job *job, size_t first, size_t last, bnb_dtype dtype,
                            enum code_search search) {
    /* Tables may be addresses of these. */
    const float    *t = job->code->thresholds, third[4] = {t[1], t[13], t[9], t[5]};
    const float     fourth[8] = {t[0], t[14], t[12], t[10], t[8], t[6], t[4], t[2]};
    struct search16 of16 = {.tree = {t[7], {t[3], t[11]}, table4_of(third), table8_of(fourth)}};
    if (search == IN_TREE && HAS_LOOKUP_BYTES) of16.has_sixteenths = find_sixteenths(t, &of16.sixteenths);
    bool   ascending = job->code->ascending;
    size_t total = job->x.rows * job->x.columns, group = least(MOST_GROUP, most(1, SCALED_AHEAD / job->block));
    for (; first < last; first += group) {
        size_t end = least(first + group, last);
        float  inverse[MOST_GROUP];
        for (size_t block = first; block < end; block++) {
            size_t i = block * job->block;
            if (!job->given) job->absmax[block] = absmax_of(&job->x, dtype, i, least(job->block, total - i));
        }
        for (size_t block = first; block < end; block++) inverse[block - first] = inverse_of(job->absmax[block]);
        for (size_t block = first; block < end; block++) {
            size_t i = block * job->block, next = least(i + job->block, total);
            bool   clamps = job->given || !(job->absmax[block] <= FLT_MAX);
            code_block(job, of16, search, ascending, dtype, i, next, inverse[block - first], clamps);
        }
    }
}

INLINE void quantize_dtype(const struct quantize_job *job, size_t first, size_t last, bnb_dtype dtype) {
    const struct codebook *code = job->code;
    if (code->bits == 4)
        quantize_blocks(job, first, last, dtype, IN_TREE);
    else if (!code->entry_shift)
        quantize_blocks(job, first, last, dtype, IN_BUCKETS);
    else if (code->entry_shift == BUCKET_SHIFT)
        quantize_blocks(job, first, last, dtype, IN_ENTRIES);
    else
        quantize_blocks(job, first, last, dtype, IN_FINER_ENTRIES);
}

static void quantize_floats(const struct quantize_job *job, size_t first, size_t last) {
    quantize_dtype(job, first, last, BNB_F32);
}

static void quantize_kbits(const struct quantize_job *job, size_t first, size_t last); /* in kbits.c */

static void quantize(const void *quantize_job, size_t first_block, size_t last_block) {
    const struct quantize_job *job = quantize_job;
    if (is_kbits(job->code)) {
        quantize_kbits(job, first_block, last_block);
        return;
    }
    switch (job->x.dtype) {
    case BNB_F16: quantize_dtype(job, first_block, last_block, BNB_F16); break;
    case BNB_BF16: quantize_dtype(job, first_block, last_block, BNB_BF16); break;
    default: quantize_floats(job, first_block, last_block); break;
    }
}
