/* Blockwise dequantising: each code's value times the scale of its block, in fp32, rounded once. */
#include "simd.h"

enum { STREAM_BYTES = 16 << 20 }; /* a result of this size leaves no cache useful after it */

/* One run of elements under one scale, to y[i…]. */
INLINE void decode_run(const struct coded *q, uint32_t bits, size_t first, size_t count, float scale, void *y,
                       bnb_dtype dtype, size_t i, bool streams) {
    const float *values = q->code->values;
    const uint8_t *codes = q->codes;
    table16 table = table16_of(values);
    float step = q->code->step;
    size_t end = first + count, at = first;
    if (bits == 4 && at % 2 && at < end) put_element(y, dtype, i++, values[code_at(q, at++)] * scale);
    for (; at + WIDTH <= end; at += WIDTH, i += WIDTH) {
        floats v;
        if (bits == 4) v = lookup16(table, load_nibbles(codes + at / 2));
        else if (step) v = load_signed_bytes((const int8_t *)codes + at) * step;
        else v = values_of(values, codes + at);
        if (streams) stream(y, dtype, i, v * scale);
        else store(y, dtype, i, v * scale);
    }
    for (; at < end; at++, i++) put_element(y, dtype, i, values[code_at(q, at)] * scale);
}

/* Elements [first, last) to y[0…]. */
INLINE void decode(const struct coded *q, uint32_t bits, size_t first, size_t last, void *y, bnb_dtype dtype,
                   bool streams) {
    size_t block = first / q->block, end = (block + 1) * q->block;
    for (size_t i = first; i < last; block++, end += q->block) {
        size_t count = least(end, last) - i;
        decode_run(q, bits, i, count, scale_of(q, block), y, dtype, i - first, streams);
        i += count;
    }
}

INLINE void dequantize_blocks(const struct dequantize_job *job, size_t first, size_t last, bnb_dtype dtype,
                              uint32_t bits) {
    const struct coded *q = &job->q;
    size_t total = q->rows * q->columns, size = dtype == BNB_F32 ? 4 : 2;
    size_t from = first * q->block, to = least(last * q->block, total);
    void *y = (char *)job->y + from * size;
    if (total * size >= STREAM_BYTES && q->block % 32 == 0 && (uintptr_t)job->y % 64 == 0) {
        decode(q, bits, from, to, y, dtype, true);
        fence();
    } else {
        decode(q, bits, from, to, y, dtype, false);
    }
}

INLINE void dequantize_dtype(const struct dequantize_job *job, size_t first, size_t last, bnb_dtype dtype) {
    if (job->q.code->bits == 4) dequantize_blocks(job, first, last, dtype, 4);
    else dequantize_blocks(job, first, last, dtype, 8);
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
