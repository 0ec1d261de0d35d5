/* Blockwise quantising: the absmax of each block, and its elements' nearest codes. */
#include "simd.h"

/* The thresholds of a codebook of 16 as a search tree of four levels. */
struct tree {
    float  root;
    table8 second, third, fourth;
};

INLINE ints below_in_tree(struct tree tree, floats x) {
    ints below = -(ints)(x > tree.root);
    below += below - (ints)(x > lookup8(tree.second, below));
    below += below - (ints)(x > lookup8(tree.third, below));
    return below + below - (ints)(x > lookup8(tree.fourth, below));
}

/* Among 256 values: the search starts where the bucket of x does. */
INLINE ints below_in_buckets(const struct codes *code, floats x) {
    ints bits = (ints)x, key = (bits & 0x7fffffff) >> BUCKET_SHIFT;
    ints bucket = __builtin_elementwise_max(key, (ints)BUCKET_BASE) - BUCKET_BASE;
    ints negative = bits >> 31 & (int32_t)sizeof code->start[0];
    ints below = gather_bytes(code->start[0], bucket + negative);
    for (uint32_t step = 0; step < code->steps; step++) below -= (ints)(x > gather(code->thresholds, below));
    return below;
}

/* The same where an entry of the bucket is enough, with the codebook's entry_shift. Where that is for codebooks without
 * negative values, what is below zero counts as zero. */
INLINE ints below_in_entries(const struct codes *code, int32_t shift, floats x) {
    if (shift < BUCKET_SHIFT) x = x > 0.0f ? x : (floats)0.0f;
    const ints least = ENTRY_LEAST, mask = (1 << shift) - 1;
    ints bits = (ints)x, magnitude = __builtin_elementwise_max(bits & 0x7fffffff, least), sign = bits >> 31;
    ints entry = (ints)gather((const float *)code->entries, ((magnitude - least) >> shift) + (sign & ENTRY_BUCKETS));
    ints rank = (entry >> shift) + ((ints)((magnitude & mask) > (entry & mask)) & (sign | 1));
    return x == 0.0f ? (ints)(int32_t)code->rank_of_zero : rank;
}

/* The largest magnitude of a block. Compared as integers, a NaN is above an infinity, and that above every number. */
INLINE float absmax_of(const struct dense *x, bnb_dtype dtype, size_t first, size_t count) {
    ints   largest = 0;
    size_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        largest = __builtin_elementwise_max(largest, (ints)load(x->data, dtype, first + i) & 0x7fffffff);
    uint32_t bits = (uint32_t)__builtin_reduce_max(largest);
    for (; i < count; i++) {
        uint32_t magnitude = float_bits(element_of(x, first + i)) & 0x7fffffff;
        bits = magnitude > bits ? magnitude : bits;
    }
    return bits_float(bits);
}

static bool is_ascending(const struct codes *code) {
    for (uint32_t i = 0; i < code->size; i++)
        if (code->order[i] != i) return false;
    return true;
}

/* How 8-bit codes are searched; 0 stands for the search in buckets. */
INLINE ints rank_of(const struct codes *code, int32_t entry_shift, floats x) {
    return entry_shift ? below_in_entries(code, entry_shift, x) : below_in_buckets(code, x);
}

/* 32 elements as the ranks of their values in the codebook, the smallest first. */
INLINE bytes32 ranks_of(const struct codes *code, struct tree tree, int32_t entry_shift, const void *x, bnb_dtype dtype, size_t i, float inverse) {
    ints below[VECTORS_OF_32];
    for (int v = 0; v < VECTORS_OF_32; v++) {
        floats scaled = clamp(load(x, dtype, i + (size_t)v * WIDTH) * inverse);
        below[v] = code->bits == 4 ? below_in_tree(tree, scaled) : rank_of(code, entry_shift, scaled);
    }
    return narrow(below);
}

INLINE void put_codes(const struct quantize_job *job, uint32_t bits, bool ascending, size_t i, bytes32 ranks, size_t count) {
    uint8_t *codes = job->codes;
    if (bits == 8) {
        memcpy(codes + i, &ranks, count);
        if (ascending) return;
        for (size_t j = i; j < i + count; j++) codes[j] = job->code->order[codes[j]];
    } else {
        typedef VECTOR(uint16_t, 16) pairs;
        pairs pair = (pairs)(ascending ? ranks : lookup_bytes(job->code->order, ranks));
        bytes16 packed = __builtin_convertvector((pair << 4 & 0xf0) | pair >> 8, bytes16);
        memcpy(codes + i / 2, &packed, (count + 1) / 2);
    }
}

INLINE void quantize_blocks(const struct quantize_job *job, size_t first, size_t last, bnb_dtype dtype, uint32_t bits) {
    const struct codes *code = job->code;
    const float *t = code->thresholds;
    const float second[8] = {t[3], t[11]}, third[8] = {t[1], t[5], t[9], t[13]};
    const float fourth[8] = {t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14]};
    struct tree tree = {t[7], table8_of(second), table8_of(third), table8_of(fourth)};
    bool   ascending = is_ascending(code);
    int32_t entry_shift = (int32_t)code->entry_shift;
    size_t total = job->x.rows * job->x.columns;
    for (size_t block = first; block < last; block++) {
        size_t i = block * job->block, end = least(i + job->block, total);
        float absmax = job->given ? job->absmax[block] : absmax_of(&job->x, dtype, i, end - i), inverse = inverse_of(absmax);
        job->absmax[block] = absmax;
        for (; i + 32 <= end; i += 32)
            put_codes(job, bits, ascending, i, ranks_of(code, tree, entry_shift, job->x.data, dtype, i, inverse), 32);
        if (i == end) continue;
        float rest[32] = {0}; /* zeros pad: the spare nibble of an odd count is the code of 0 */
        for (size_t j = i; j < end; j++) rest[j - i] = element_of(&job->x, j);
        put_codes(job, bits, ascending, i, ranks_of(code, tree, entry_shift, rest, BNB_F32, 0, inverse), end - i);
    }
}

INLINE void quantize_dtype(const struct quantize_job *job, size_t first, size_t last, bnb_dtype dtype) {
    if (job->code->bits == 4) quantize_blocks(job, first, last, dtype, 4);
    else quantize_blocks(job, first, last, dtype, 8);
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
    default: quantize_dtype(job, first_block, last_block, BNB_F32); break;
    }
}
