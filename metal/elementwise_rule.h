// What element-wise operations do to one element, once for C, for C's vectors and for Metal: a new operation is a case
// here.
//
// REAL is a float or a vector of them, EXP a power of e, and RULE declares a function. Each product and sum is a
// statement of its own, because a compiler may fuse those within one: so every device gives the same bits, but for
// EXP's last ones.
#ifdef __METAL_VERSION__
#define REAL   float
#define EXP(x) precise::exp(x)
#define RULE   inline
#endif

// y of x. A copy is a cast where the dtypes differ.
RULE REAL unary(uint32_t kind, REAL x, float scale) {
    if (kind == UNARY_SCALE) return x * scale;
    if (kind == UNARY_EXP) return EXP(x);
    if (kind == UNARY_SIGMOID) {
        const REAL sum = 1.0f + EXP(-x);
        return 1.0f / sum;
    }
    return x;
}

// y of a and b.
RULE REAL binary(uint32_t kind, REAL a, REAL b, float scale) {
    if (kind == BINARY_MULTIPLY) return a * b;
    const REAL scaled = b * scale;
    return a + scaled;
}
