/* The values that codes stand for, prepared once for quantising: what codebook.c makes and every kernel reads. */
#ifndef BNB_CODEBOOK_H
#define BNB_CODEBOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "half.h"

/* Buckets of magnitudes below 1: 2^-24 and less, then 64 to a power of two, then 1 itself. */
enum { BUCKET_SHIFT = 17, BUCKET_BASE = (127 - 24) << 6, BUCKETS = (24 << 6) + 1 };

/* Entries, below, are of finer or farther buckets: from 2^-32 to 1, and so many of them on a side. */
enum { ENTRY_LEAST = (127 - 32) << 23, ENTRY_BUCKETS = (32 << 6) + 1 };

/* A value's code is order[count of thresholds strictly below it]. Which of two values that are as near wins is in the
 * thresholds: a midpoint that belongs to the upper value is stored one step down. */
struct codebook {
    uint32_t bits, size;      /* size = 2^bits, bits from 2 to 8 */
    float    values[256];     /* by code */
    float    thresholds[256]; /* ascending; size - 1 of them, then +infinity */
    uint8_t  order[256];      /* the code of the nth smallest value, */
    bool     ascending;       /* and whether that is always n */

    /* Where codes are integers: values[code] is (code - zero) * step or, where is_signed, ((int8_t)code - zero) * step.
     * Else step is 0. */
    float   step;
    int32_t zero;
    bool    is_signed;

    /* With 256 values a search starts at its bucket: start[sign][bucket] thresholds lie below the bucket, and no more
     * than `steps` lie in it. Padded, so that a 32-bit load of the last entry stays inside. */
    uint32_t steps;
    uint8_t  start[2][BUCKETS + 3];

    /* Where no bucket has more than one threshold the whole search is one entry: the rank of the bucket's least
     * magnitude << entry_shift | the low bits of the last magnitude that has it; beyond that the rank is one up, or one
     * down where x is negative. A bucket's magnitudes agree in all but the low entry_shift bits: 17, or 16 where there
     * are no negative values. Positive buckets come first; the others are for what is below negative_below, which is 0
     * or, where 0 itself has the rank of what is just below it, the least float. Where an entry can't say it all,
     * entry_shift is 0. */
    uint32_t entry_shift;
    float    negative_below;
    uint32_t entries[2 * ENTRY_BUCKETS];
};

/* Codes of the widths between and beside 4 and 8 have kernels in common. */
static inline bool is_kbits(const struct codebook *book) { return book->bits != 4 && book->bits != 8; }

/* The bucket of a magnitude, given as the bits of a float of at most 1 with the sign cleared. */
static inline uint32_t bucket_of(uint32_t magnitude) {
    uint32_t key = magnitude >> BUCKET_SHIFT;
    return key < BUCKET_BASE ? 0 : key - BUCKET_BASE;
}

/* The code of x, which must not be NaN and is clamped to [-1, 1]: the plain form that every other is held to. */
static inline uint8_t nearest_code(const struct codebook *book, float x) {
    x = x < -1 ? -1 : x > 1 ? 1 : x;
    uint32_t below = 0;
    for (uint32_t half = book->size / 2; half; half /= 2)
        if (x > book->thresholds[below + half - 1]) below += half;
    return book->order[below];
}

#endif
