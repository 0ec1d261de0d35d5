/* Codes of 2, 3, 5, 6 and 7 bits, as vectors: unpacked and looked up, searched for, and packed. Eight codes fill as
 * many bytes as one has bits, so they come by eights; `bits` is a constant wherever these functions are inlined. */
#include "simd.h"

enum { GROUP = WIDTH > 8 ? WIDTH : 8, GROUP_VECTORS = GROUP / WIDTH };

/* The widest codes whose values are looked up in registers; beyond, memory serves. On an EPYC with AVX2 a row by
 * [2048, 4096] took a thread 5.8 ms with 64 values in registers, and 3.6 ms with 128 in memory. */
#if defined PORTABLE_WIDTH
enum { TABLE_BITS = 0 };
#elif defined __AVX512BW__
enum { TABLE_BITS = 6 };
#elif defined __AVX2__
enum { TABLE_BITS = 5 };
#elif defined __ARM_NEON
enum { TABLE_BITS = 4 };
#else
enum { TABLE_BITS = 0 };
#endif

/* ── From codes to values ───────────────────────────────────────────────────────────────────────────────────────── */

/* Eight codes, the first at the high end. Reads 8 bytes. */
INLINE uint64_t load_eight(const uint8_t *codes) {
    uint64_t eight;
    memcpy(&eight, codes, sizeof eight);
    return __builtin_bswap64(eight);
}

/* GROUP codes in order. Above each stand bits of its neighbours. */
INLINE void load_group(const uint8_t *codes, uint32_t bits, ints out[GROUP_VECTORS]) {
    uint64_t eight = load_eight(codes);
    uint32_t first = (uint32_t)(eight >> 32), second = (uint32_t)(eight << 4 * bits >> 32); /* four codes each */
#if WIDTH == 16
    uint64_t next = load_eight(codes + bits);
    typedef VECTOR(uint32_t, 4) words4;
    words4      fours = {first, second, (uint32_t)(next >> 32), (uint32_t)(next << 4 * bits >> 32)};
    words       spread = __builtin_shufflevector(fours, fours, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const words one = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4};
    out[0] = (ints)(spread >> (32 - one * bits));
#elif WIDTH == 8
    typedef VECTOR(uint32_t, 2) words2;
    words2      fours = {first, second};
    words       spread = __builtin_shufflevector(fours, fours, 0, 0, 0, 0, 1, 1, 1, 1);
    const words one = {1, 2, 3, 4, 1, 2, 3, 4};
    out[0] = (ints)(spread >> (32 - one * bits));
#else
    const words one = {1, 2, 3, 4};
    out[0] = (ints)((words)first >> (32 - one * bits));
    out[1] = (ints)((words)second >> (32 - one * bits));
#endif
}

INLINE floats lookup32(const float *table, ints index) {
    floats low = lookup16(table16_of(table), index), high = lookup16(table16_of(table + 16), index);
    return index << 27 < 0 ? high : low;
}

INLINE floats lookup64(const float *table, ints index) {
    floats low = lookup32(table, index), high = lookup32(table + 32, index);
    return index << 26 < 0 ? high : low;
}

/* A lane's element of a table of 2^bits; of the index as many low bits count. A table can be read eight floats far. */
INLINE floats lookup_bits(const float *table, uint32_t bits, ints index) {
    if (bits < 3) index &= (1 << bits) - 1;
    if (bits <= 3) return lookup8(table8_of(table), index);
    if (bits == 4) return lookup16(table16_of(table), index);
    if (bits == 5 && bits <= TABLE_BITS) return lookup32(table, index);
    if (bits == 6 && bits <= TABLE_BITS) return lookup64(table, index);
    return gather(table, index & ((1 << bits) - 1));
}

/* The values of GROUP codes. */
INLINE void load_values(const uint8_t *codes, uint32_t bits, const float *values, floats out[GROUP_VECTORS]) {
    if (bits <= TABLE_BITS || WIDTH == 16) {
        ints index[GROUP_VECTORS];
        load_group(codes, bits, index);
        for (int v = 0; v < GROUP_VECTORS; v++) out[v] = lookup_bits(values, bits, index[v]);
        return;
    }
    uint64_t eight = load_eight(codes), mask = (1u << bits) - 1;
    for (uint32_t i = 0; i < 8; i++) out[i / WIDTH][i % WIDTH] = values[eight >> (64 - bits * (i + 1)) & mask];
}

/* One run of elements under one scale and offset, which is -0 where there is none: nothing changes by adding that. */
INLINE void decode_run_of(const struct coded *q, uint32_t bits, size_t first, size_t last, float scale, float offset,
                          float *y) {
    const float *values = q->code->values;
    size_t       at = first;
    for (; at < last && at % 8; at++) *y++ = values[code_at(q, at)] * scale + offset;
    const uint8_t *codes = q->codes + at / 8 * bits;
    for (; at + GROUP <= last; at += GROUP, codes += GROUP / 8 * bits) {
        floats v[GROUP_VECTORS];
        load_values(codes, bits, values, v);
        for (int j = 0; j < GROUP_VECTORS; j++, y += WIDTH) store(y, BNB_F32, 0, v[j] * scale + offset);
    }
    for (; at < last; at++) *y++ = values[code_at(q, at)] * scale + offset;
}

/* Elements [first, last) to y[0…]. */
static void decode_kbits(const struct coded *q, size_t first, size_t last, float *y) {
    for (size_t i = first, end; i < last; y += end - i, i = end) {
        size_t block = i / q->block;
        float  scale = scale_of(q, block), offset = offset_of(q, block);
        end = least((block + 1) * q->block, last);
        switch (q->code->bits) {
        case 2: decode_run_of(q, 2, i, end, scale, offset, y); break;
        case 3: decode_run_of(q, 3, i, end, scale, offset, y); break;
        case 5: decode_run_of(q, 5, i, end, scale, offset, y); break;
        case 6: decode_run_of(q, 6, i, end, scale, offset, y); break;
        default: decode_run_of(q, 7, i, end, scale, offset, y); break;
        }
    }
}

static void dequantize_kbits(const struct dequantize_job *job, size_t first, size_t last) {
    const struct coded *q = &job->q;
    float               piece[512]; /* elements that are decoded before they are rounded */
    size_t              end = least(last * q->block, q->rows * q->columns);
    for (size_t i = first * q->block, count; i < end; i += count) {
        count = least(sizeof piece / sizeof *piece, end - i);
        float *to = job->dtype == BNB_F32 ? (float *)job->y + i : piece;
        decode_kbits(q, i, i + count, to);
        if (to == piece) narrow_run(piece, count, job->y, job->dtype, i);
    }
}

/* ── From values to codes ───────────────────────────────────────────────────────────────────────────────────────── */

/* A codebook's thresholds as a search tree: its level l, of 2^l thresholds, is at[2^l…]. */
struct levels {
    float at[128 + 8];
};

INLINE void fill_levels(struct levels *levels, const struct codebook *code) {
    for (uint32_t level = 1; level < code->size; level *= 2) {
        uint32_t step = code->size / level;
        for (uint32_t i = 0; i < level; i++) levels->at[level + i] = code->thresholds[i * step + step / 2 - 1];
    }
}

/* The count of thresholds strictly below x. */
INLINE ints below_in_levels(const struct levels *levels, uint32_t bits, floats x) {
    ints below = -(ints)(x > levels->at[1]);
    for (uint32_t level = 1; level < bits; level++)
        below += below - (ints)(x > lookup_bits(levels->at + (1u << level), level, below));
    return below;
}

/* Eight codes, a byte each and the first lowest, as the high `bits` × 8 of 64 bits: pairs close up, then pairs of
 * them. */
INLINE uint64_t close_up(uint64_t codes, uint32_t bits) {
    uint64_t       in_bytes = __builtin_bswap64(codes);
    const uint64_t second = 0x00ff00ff00ff00ff, third = 0x0000ffff0000ffff;
    uint64_t       pairs = (in_bytes >> 8 & second) << bits | (in_bytes & second);
    uint64_t       fours = (pairs >> 16 & third) << 2 * bits | (pairs & third);
    uint64_t       eight = fours >> 32 << 4 * bits | (fours & 0xffffffff);
    return eight << (64 - 8 * bits);
}

/* Writes the codes of 32 ranks, of which `count` are elements; what else the last byte holds are ranks too. */
INLINE void put_kbits(const struct codebook *code, uint32_t bits, bool ascending, uint8_t *codes, bytes32 ranks,
                      size_t count) {
    uint8_t in_bytes[32], packed[4 * 7 + 8];
    memcpy(in_bytes, &ranks, sizeof in_bytes);
    for (size_t i = 0; i < 32 && !ascending; i++) in_bytes[i] = code->order[in_bytes[i]];
    for (size_t i = 0; i < 4; i++) {
        uint64_t eight;
        memcpy(&eight, in_bytes + 8 * i, sizeof eight);
        eight = __builtin_bswap64(close_up(eight, bits));
        memcpy(packed + i * bits, &eight, sizeof eight); /* the next overwrites what is too much */
    }
    memcpy(codes, packed, (count * bits + 7) / 8);
}

/* A block of `count` elements, of which x has whole thirty-twos. */
INLINE void quantize_block_of(const struct codebook *code, uint32_t bits, bool ascending, const struct levels *levels,
                              const float *x, size_t count, float inverse, uint8_t *codes) {
    for (size_t i = 0; i < count; i += 32, codes += 4 * bits) {
        ints below[VECTORS_OF_32];
        for (int v = 0; v < VECTORS_OF_32; v++)
            below[v] = below_in_levels(levels, bits, clamp(load_floats(x + i + (size_t)v * WIDTH) * inverse));
        put_kbits(code, bits, ascending, codes, narrow(below), least(32, count - i));
    }
}

static void quantize_kbits(const struct quantize_job *job, size_t first, size_t last) {
    const struct codebook *code = job->code;
    struct levels          levels;
    fill_levels(&levels, code);
    bool   ascending = code->ascending;
    size_t total = job->x.rows * job->x.columns;
    float  wide[4096]; /* the largest block there is */
    for (size_t block = first; block < last; block++) {
        size_t       begin = block * job->block, count = least(job->block, total - begin);
        const float *x = (const float *)job->x.data + begin;
        if (job->x.dtype != BNB_F32 || count % 32) {
            widen(&job->x, begin, begin + count, wide);
            memset(wide + count, 0, (round_up(count, 32) - count) * sizeof *wide);
            x = wide;
        }
        struct dense run = {x, BNB_F32, 1, count};
        float        absmax = job->given ? job->absmax[block] : absmax_of(&run, BNB_F32, 0, count),
                     inverse = inverse_of(absmax);
        job->absmax[block] = absmax;
        uint8_t *codes = job->codes + begin / 8 * code->bits;
        switch (code->bits) {
        case 2: quantize_block_of(code, 2, ascending, &levels, x, count, inverse, codes); break;
        case 3: quantize_block_of(code, 3, ascending, &levels, x, count, inverse, codes); break;
        case 5: quantize_block_of(code, 5, ascending, &levels, x, count, inverse, codes); break;
        case 6: quantize_block_of(code, 6, ascending, &levels, x, count, inverse, codes); break;
        default: quantize_block_of(code, 7, ascending, &levels, x, count, inverse, codes); break;
        }
    }
}
