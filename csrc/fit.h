/* 4-bit codebooks as integers, which products of less than fp32 multiply. */
#ifndef BNB_FIT_H
#define BNB_FIT_H

#include <float.h>
#include <math.h>

#include "codebook.h"

/* How far off a codebook is at so many steps to its largest magnitude. */
static inline float misfit(const float values[16], float largest, float steps) {
    float squares = 0, offs = 0, shares = 0;
    for (int i = 0; i < 16; i++) {
        float value = values[i] / largest, off = rintf(value * steps) / steps - value, share = 1 - fabsf(value);
        squares += off * off;
        offs += off * share * share;
        shares += share * share;
    }
    float mean = offs / (shares + FLT_MIN);
    return squares + 100 * mean * mean;
}

/* The codebook on the grid between 0.8 and 1 times the most steps to its largest magnitude that it lies closest to: NF4
 * is half as far off at 112 steps as at 127. Close is by squares, and a hundred times as much by what errors come to
 * together, small values counting more, as weights have more of them: an AF4 that is off to one side is worse than one
 * that is off by a little more. */
static inline void fit_codes(struct codebook *book) {
    enum { TRIALS = 64 };
    static const float mosts[FITS] = {[FIT_127] = 127, [FIT_4095] = 4095, [FIT_16383] = 16383};
    float              largest = 0;
    for (int i = 0; i < 16; i++) largest = fmaxf(largest, fabsf(book->values[i]));
    for (int fit = 0; fit < FITS; fit++) {
        float steps = mosts[fit], least = FLT_MAX;
        for (int trial = 0; largest && trial < TRIALS; trial++) {
            float tried = mosts[fit] * (1 - (float)trial * (0.2f / TRIALS)),
                  error = misfit(book->values, largest, tried);
            if (error < least) least = error, steps = tried;
        }
        book->fits[fit].step = largest ? largest / steps : 1;
        for (int i = 0; largest && i < 16; i++)
            book->fits[fit].codes[i] = (int16_t)rintf(book->values[i] / largest * steps);
    }
}

#endif
