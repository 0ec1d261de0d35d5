/* Blockwise dequantising: each code's value times the scale of its block, in fp32, rounded once. */
#include "simd.h"

enum { STREAM_BYTES = 16 << 20 }; /* a result of this size leaves no cache useful after it */

typedef VECTOR(uint16_t, 16) halves16;

/* 64 codes as 16-bit values, of which low[] and high[] hold the bytes. A byte has two codes, so of each byte four are
 * looked up, then put together: first within 128 bits, as most processors do it. */
INLINE void decode_halves(const uint8_t low[16], const uint8_t high[16], const uint8_t *codes, halves16 out[4]) {
#define FOUR(i, n) i, i + n, i + 1, i + 1 + n, i + 2, i + 2 + n, i + 3, i + 3 + n
#define ZIP_BYTES(a, b, i)                                                                                             \
    (halves16) __builtin_shufflevector(a, b, FOUR(i, 32), FOUR(i + 4, 32), FOUR(i + 16, 32), FOUR(i + 20, 32))
#define ZIP_HALVES(a, b, i) __builtin_shufflevector(a, b, FOUR(i, 16), FOUR(i + 8, 16))
    bytes32  packed = load_bytes32(codes), first = packed >> 4, second = packed & 15;
    bytes32  first_low = lookup_bytes(low, first), first_high = lookup_bytes(high, first);
    bytes32  second_low = lookup_bytes(low, second), second_high = lookup_bytes(high, second);
    halves16 a = ZIP_BYTES(first_low, first_high, 0), b = ZIP_BYTES(first_low, first_high, 8);
    halves16 c = ZIP_BYTES(second_low, second_high, 0), d = ZIP_BYTES(second_low, second_high, 8);
    halves16 ac = ZIP_HALVES(a, c, 0), ac_next = ZIP_HALVES(a, c, 4);
    halves16 bd = ZIP_HALVES(b, d, 0), bd_next = ZIP_HALVES(b, d, 4);
    out[0].lo = ac.lo, out[0].hi = ac_next.lo, out[1].lo = bd.lo, out[1].hi = bd_next.lo;
    out[2].lo = ac.hi, out[2].hi = ac_next.hi, out[3].lo = bd.hi, out[3].hi = bd_next.hi;
#undef FOUR
#undef ZIP_BYTES
#undef ZIP_HALVES
}

/* A run of whole 64s of 4-bit codes, from an even one on, in a 16-bit dtype: what each code stands for under the scale
 * is rounded once, not for each element. */
INLINE void decode_run_of_halves(const struct coded *q, size_t first, size_t count, float scale, float offset, void *y,
                                 bnb_dtype dtype, size_t i, bool streams) {
    uint16_t values[16];
    uint8_t  low[16], high[16];
    for (size_t code = 0; code < 16; code += WIDTH)
        store(values, dtype, code, load_floats(q->code->values + code) * scale + offset);
    /* As vectors: of a loop over them clang makes 32 single stores for AVX-512. */
    halves16 both;
    memcpy(&both, values, sizeof both);
    bytes16 low_bytes = __builtin_convertvector(both & 255, bytes16),
            high_bytes = __builtin_convertvector(both >> 8, bytes16);
    memcpy(low, &low_bytes, sizeof low);
    memcpy(high, &high_bytes, sizeof high);
    for (size_t done = 0; done < count; done += 64) {
        halves16 out[4];
        decode_halves(low, high, q->codes + (first + done) / 2, out);
        for (size_t v = 0; v < 4; v++) {
            uint16_t *to = (uint16_t *)y + i + done + v * 16;
            if (streams)
                __builtin_nontemporal_store(out[v], (halves16 *)to);
            else
                memcpy(to, &out[v], sizeof out[v]);
        }
    }
}

/* One run of elements under one scale and offset, which is -0 where there is none, to y[i…]. */
INLINE void decode_run(const struct coded *q, uint32_t bits, table256 table8, size_t first, size_t count, float scale,
                       float offset, void *y, bnb_dtype dtype, size_t i, bool streams) {
    const float   *values = q->code->values;
    const uint8_t *codes = q->codes;
    table16        table = table16_of(values);
    float          step = q->code->is_signed && !q->code->zero ? q->code->step : 0;
    size_t         end = first + count, at = first;
    if (bits == 4 && at % 2 && at < end) put_element(y, dtype, i++, values[code_at(q, at++)] * scale + offset);
    if (bits == 4 && dtype != BNB_F32) {
        size_t whole = (end - at) / 64 * 64;
        if (whole) decode_run_of_halves(q, at, whole, scale, offset, y, dtype, i, streams);
        at += whole, i += whole;
    }
    for (; at + WIDTH <= end; at += WIDTH, i += WIDTH) {
        floats v;
        if (bits == 4)
            v = lookup16(table, load_nibbles(codes + at / 2));
        else if (step)
            v = load_signed_bytes((const int8_t *)codes + at) * step;
        else
            v = values_of(table8, codes + at);
        if (streams)
            stream(y, dtype, i, v * scale + offset);
        else
            store(y, dtype, i, v * scale + offset);
    }
    for (; at < end; at++, i++) put_element(y, dtype, i, values[code_at(q, at)] * scale + offset);
}

/* Elements [first, last) to y[0…]. */
INLINE void decode(const struct coded *q, uint32_t bits, size_t first, size_t last, void *y, bnb_dtype dtype,
                   bool streams) {
    size_t   block = first / q->block, end = (block + 1) * q->block;
    table256 table = table256_of(q->code->values);
    for (size_t i = first; i < last; block++, end += q->block) {
        size_t count = least(end, last) - i;
        decode_run(q, bits, table, i, count, scale_of(q, block), offset_of(q, block), y, dtype, i - first, streams);
        i += count;
    }
}

INLINE void dequantize_blocks(const struct dequantize_job *job, size_t first, size_t last, bnb_dtype dtype,
                              uint32_t bits) {
    const struct coded *q = &job->q;
    size_t              total = q->rows * q->columns, size = dtype == BNB_F32 ? 4 : 2;
    size_t              from = first * q->block, to = least(last * q->block, total);
    void               *y = (char *)job->y + from * size;
    if (total * size >= STREAM_BYTES && q->block % 32 == 0 && (uintptr_t)job->y % 64 == 0) {
        decode(q, bits, from, to, y, dtype, true);
        fence();
    } else {
        decode(q, bits, from, to, y, dtype, false);
    }
}

INLINE void dequantize_dtype(const struct dequantize_job *job, size_t first, size_t last, bnb_dtype dtype) {
    if (job->q.code->bits == 4)
        dequantize_blocks(job, first, last, dtype, 4);
    else
        dequantize_blocks(job, first, last, dtype, 8);
}

static void dequantize(const void *dequantize_job, size_t first_block, size_t last_block) {
    const struct dequantize_job *job = dequantize_job;
    if (is_kbits(job->q.code)) {
        dequantize_kbits(job, first_block, last_block);
        return;
    }
    switch (job->dtype) {
    case BNB_F16: dequantize_dtype(job, first_block, last_block, BNB_F16); break;
    case BNB_BF16: dequantize_dtype(job, first_block, last_block, BNB_BF16); break;
    default: dequantize_dtype(job, first_block, last_block, BNB_F32); break;
    }
}
