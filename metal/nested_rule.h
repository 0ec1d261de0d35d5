// The mean of scales, none of which is negative, once for C and for Metal: counted in integers, so that no order of
// adding them changes a bit.
//
// A scale counts in units of 2^-55 of the power of two above the largest scale, and what it has below one is left out.
// The mean of the sum is rounded to a float once.
#ifdef __METAL_VERSION__
#define NESTED_RULE     inline
#define NESTED_WORD     ulong
#define NESTED_ZEROS(x) uint(clz(x))
#else
#define NESTED_RULE     static inline
#define NESTED_WORD     uint64_t
#define NESTED_ZEROS(x) (uint32_t)__builtin_clzll(x)
#endif

NESTED_RULE uint32_t exponent_of_bits(uint32_t bits) { return bits >> 23 > 1 ? bits >> 23 : 1; }

// A float's bits in units, by the bits of the largest.
NESTED_RULE NESTED_WORD units_of(uint32_t scale, uint32_t largest) {
    const uint32_t    below = exponent_of_bits(largest) - exponent_of_bits(scale);
    const NESTED_WORD significand = (scale & 0x7fffffu) | (scale >> 23 > 0 ? 0x800000u : 0u);
    return below < 55 ? significand << 31 >> below : 0;
}

// The bits of the mean of `count` scales, whose units add up to high · 2^32 + low; a NaN where the largest is none that
// is finite.
NESTED_RULE uint32_t mean_of_units(NESTED_WORD high, NESTED_WORD low, uint32_t count, uint32_t largest) {
    if (largest >= 0x7f800000u) return 0x7fc00000u;
    const NESTED_WORD upper = high + (low >> 32);
    const NESTED_WORD lower = upper % count << 32 | (low & 0xffffffffu);
    const NESTED_WORD lowest = lower % count << 8; // a byte more, for the last bits of a mean far below the largest
    const NESTED_WORD mean = (upper / count << 32 | lower / count) << 8 | lowest / count;
    if (mean == 0) return 0;

    // A float has 24 bits of it, or, where it is subnormal, what lies above 2^-149.
    const int         fewest = 40 - (int)exponent_of_bits(largest), wanted = 40 - (int)NESTED_ZEROS(mean);
    const int         dropped = wanted > fewest ? wanted : fewest;
    const NESTED_WORD kept = mean >> dropped, half_step = (NESTED_WORD)1 << (dropped - 1);
    const NESTED_WORD rest = mean & (2 * half_step - 1);
    const bool        more = rest > half_step || (rest == half_step && (lowest % count != 0 || (kept & 1) != 0));
    return ((uint32_t)(dropped - fewest) << 23) + (uint32_t)kept + (more ? 1u : 0u);
}
