/* Codes as bytes, in order: those of weights where they are integers, so that products need no lookup, and those of
 * nested scales. */
#include "simd.h"

enum {
    BYTE_CHUNK = 4 * WIDTH, /* the bytes that fill a register */
    AHEAD = 4096,           /* bytes of codes to prefetch ahead */
};

#ifdef HAS_SHUFFLE_BYTES

/* Sixteen bytes each from places so far apart. */
INLINE words load_sixteens(const uint8_t *from, size_t apart) {
    typedef VECTOR(uint32_t, 4) words4;
    words4 part[WIDTH / 4];
    for (size_t i = 0; i < WIDTH / 4; i++) memcpy(&part[i], from + i * apart, sizeof part[i]);
#if WIDTH == 16
    typedef VECTOR(uint32_t, 8) words8;
    words8 low = __builtin_shufflevector(part[0], part[1], 0, 1, 2, 3, 4, 5, 6, 7);
    words8 high = __builtin_shufflevector(part[2], part[3], 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#elif WIDTH == 8
    return __builtin_shufflevector(part[0], part[1], 0, 1, 2, 3, 4, 5, 6, 7);
#else
    return part[0];
#endif
}

/* 4 WIDTH codes of fewer than 8 bits, in order, a byte each. Sixteen codes are 2 · bits bytes: each comes into 16 bits
 * of its own with what is beside it, by one shuffle the even codes and by another the odd ones; what stands above it a
 * product takes off, and what stands below it a shift. Reads 16 bytes from where any sixteen codes begin. */
INLINE void unpack_bytes(const uint8_t *codes, uint32_t bits, uint8_t *to) {
    typedef VECTOR(uint16_t, 2 * WIDTH) pairs;
    words from = load_sixteens(codes, 2 * bits), bytes_of[2];
    for (uint32_t odd = 0; odd < 2; odd++) {
        uint8_t order[16];
        pairs   factors;
        for (uint32_t i = 0; i < 8; i++) order[2 * i] = (uint8_t)((2 * i + odd) * bits / 8 + 1);
        for (uint32_t i = 0; i < 8; i++) order[2 * i + 1] = (uint8_t)((2 * i + odd) * bits / 8);
#pragma clang loop unroll(full) /* or it is no constant */
        for (uint32_t i = 0; i < 2 * WIDTH; i++) factors[i] = (uint16_t)(1u << (2 * (i % 8) + odd) * bits % 8);
        bytes_of[odd] = (words)((pairs)shuffle_bytes(from, order) * factors >> (uint16_t)(16 - bits));
    }
    words both = bytes_of[0] | bytes_of[1] << 8; /* each is less than 256 */
    memcpy(to, &both, sizeof both);
}

#else

INLINE void unpack_bytes(const uint8_t *codes, uint32_t bits, uint8_t *to) {
    for (size_t i = 0; i < BYTE_CHUNK; i++) to[i] = code_in(codes, bits, i);
}

#endif

/* Codes [first, first + count) of so many bits, and others up to whole chunks, as bytes: at `local`, or where they are
 * that already. `first` is a multiple of 16. */
static const uint8_t *bytes_of_codes(const uint8_t *codes, uint32_t bits, size_t first, size_t count, uint8_t *local) {
    codes += first / 8 * bits;
    if (bits == 8) return codes;
    for (size_t i = 0; i < count; i += BYTE_CHUNK, codes += BYTE_CHUNK / 8 * bits) {
        __builtin_prefetch(codes + AHEAD);
        switch (bits) {
        case 2: unpack_bytes(codes, 2, local + i); break;
        case 3: unpack_bytes(codes, 3, local + i); break;
        case 4: unpack_bytes(codes, 4, local + i); break;
        case 5: unpack_bytes(codes, 5, local + i); break;
        case 6: unpack_bytes(codes, 6, local + i); break;
        default: unpack_bytes(codes, 7, local + i); break;
        }
    }
    return local;
}

/* How bytes of integer codes become floats: what is flipped in them, and then taken off; their step is left out. */
struct integers {
    int32_t flip;
    float   zero;
};

INLINE struct integers integers_of(const struct codebook *code) {
    return (struct integers){code->is_signed ? 128 : 0, (float)code->zero + (code->is_signed ? 128 : 0)};
}

INLINE floats floats_of_integers(struct integers by, const uint8_t *codes) {
    return __builtin_convertvector(load_bytes(codes) ^ by.flip, floats) - by.zero;
}

/* What WIDTH codes stand for, with a table of the codebook's values. */
INLINE floats values_of_bytes(const struct codebook *code, table256 table, const uint8_t *codes) {
    return code->step ? floats_of_integers(integers_of(code), codes) * code->step : values_of(table, codes);
}
