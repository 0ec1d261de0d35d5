// The search for a block's scale of least squared error, once for C and for Metal.
//
// The error Σ w · (x − scale · value)² as a function of the scale falls and rises many times: a parabola between any
// two scales at which some code changes. So a row of scales is tried; each trial also tells where the parabola it
// stands on has its bottom; the lowest bottom of all is tried in turn, and the one that is found from there. What is
// kept is the scale whose own error was the smallest, the largest magnitude's among them: it is replaced only for a
// gain beyond doubt, so that no block is worse for the search.
//
// Blocks are scaled by a power of two to a magnitude of about 1, which changes no digit. Each product and sum is a
// statement of its own, because a compiler may fuse those within one: so every device gives the same bits. For the same
// reason sums are of SCALES_LANES lanes, element i in lane i % SCALES_LANES, of which halves are added until one is
// left.
#ifdef __METAL_VERSION__
#define SCALES_RULE        inline
#define SCALES_BITS(x)     as_type<uint>(x)
#define SCALES_FLOAT(bits) as_type<float>(bits)
#else
typedef struct trial  trial;
typedef struct search search;
#define SCALES_RULE        static inline
#define SCALES_BITS(x)     float_bits(x)
#define SCALES_FLOAT(bits) bits_float(bits)
#endif

enum { SCALES_LANES = 32, SCALES_TRIED = 32, SCALES_REFINED = 3 };

// A scale with its error; and, for the same codes, the best scale with its.
struct trial {
    float scale, error, refined, refined_error;
};

// The best of both kinds so far. The first trial is of the largest magnitude.
struct search {
    float scale, error, refined, refined_error;
};

// Of the sums of squared errors e², of e · value and of value², each weighed: e − δ · value is least squared where
// δ = Σ e · value / Σ value².
SCALES_RULE trial trial_of(float scale, float errors, float products, float squares) {
    const float change = squares > 0.0f ? products / squares : 0.0f;
    const float gain = products * change;
    trial       to;
    to.scale = scale;
    to.error = errors;
    to.refined = scale + change;
    to.refined_error = errors - gain;
    return to;
}

SCALES_RULE search begin_search(trial first) {
    search to;
    to.scale = first.scale;
    to.error = first.error * 0.9999f;
    to.refined = first.refined > 0.0f ? first.refined : first.scale;
    to.refined_error = first.refined_error;
    return to;
}

SCALES_RULE search consider(search best, trial next) {
    const bool better = next.error < best.error;
    best.scale = better ? next.scale : best.scale;
    best.error = better ? next.error : best.error;
    const bool promising = next.refined_error < best.refined_error && next.refined > 0.0f;
    best.refined = promising ? next.refined : best.refined;
    best.refined_error = promising ? next.refined_error : best.refined_error;
    return best;
}

// The exponent bits of a block's magnitude, such that both 2^exponent and its inverse are ordinary numbers.
SCALES_RULE uint32_t exponent_of(float magnitude) {
    const uint32_t exponent = SCALES_BITS(magnitude) >> 23;
    return exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
}

SCALES_RULE float power_of(uint32_t exponent) { return SCALES_FLOAT(exponent << 23); }

// Where there is something to search for: below, numbers are subnormal, and an infinity or a NaN stays.
SCALES_RULE bool is_searched(float absmax, float magnitude) {
    return magnitude >= 0x1p-126f && absmax < SCALES_FLOAT(0x7f800000u);
}

// A scale of the block brought to 1, back at the block's magnitude: `absmax` where it was not to be bettered, or where
// the better scale is too large for a float.
SCALES_RULE float scale_back(float scale, float unit_absmax, float absmax, float power) {
    const float back = scale * power;
    return scale == unit_absmax || !(back < SCALES_FLOAT(0x7f800000u)) ? absmax : back;
}
