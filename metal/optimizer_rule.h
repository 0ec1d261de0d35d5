// The optimizers' rules for one element, once for C, for C's vectors and for Metal.
//
// REAL is a float or a vector of them, ROOT its square root, and RULE declares a function. Each product and sum is a
// statement of its own, because a compiler may fuse those within one: so every device gives the same bits.
#ifdef __METAL_VERSION__
#define REAL    float
#define ROOT(x) precise::sqrt(x)
#define RULE    inline
#else
typedef struct moments moments;
typedef struct stepped stepped;
#endif

// Adam has a first and a second moment; AdEMAMix a slow average of the gradients beside them. The others have one
// state, which stands first.
struct moments {
    REAL first, second, slow;
};

struct stepped {
    REAL    p;
    moments m;
    REAL    direction; // p moved along it; zero where the gradient did not count
};

RULE REAL average(REAL state, float keep, REAL x, float take) {
    const REAL kept = state * keep;
    const REAL taken = x * take;
    return kept + taken;
}

// Where nothing has been gathered yet there is nowhere to go, also with an eps of zero.
RULE REAL over_root(REAL numerator, REAL square, float eps) {
    const REAL denominator = ROOT(square) + eps;
    const REAL quotient = numerator / denominator;
    return denominator > 0.0f ? quotient : (REAL)0.0f;
}

// The direction, and what becomes of the moments m under the gradient g.
RULE stepped follow(uint32_t kind, struct optimizer_rule rule, REAL g, moments m) {
    stepped to;
    to.m = m;
    const REAL square = g * g;
    if (kind == RULE_LION) {
        const REAL ahead = average(m.first, rule.keep_first, g, rule.take_first);
        to.m.first = average(m.first, rule.keep_second, g, rule.take_second);
        to.direction = ahead < 0.0f ? (REAL)-1.0f : (REAL)0.0f;
        to.direction = ahead > 0.0f ? (REAL)1.0f : to.direction;
    } else if (kind == RULE_MOMENTUM) {
        to.m.first = average(m.first, rule.keep_first, g, rule.take_first);
        to.direction = to.m.first;
    } else if (kind == RULE_RMSPROP || kind == RULE_ADAGRAD) {
        to.m.first = average(m.first, rule.keep_first, square, rule.take_first);
        to.direction = over_root(g, to.m.first, rule.eps);
    } else {
        to.m.first = average(m.first, rule.keep_first, g, rule.take_first);
        to.m.second = average(m.second, rule.keep_second, square, rule.take_second);
        REAL numerator = to.m.first;
        if (kind == RULE_ADEMAMIX) {
            to.m.slow = average(m.slow, rule.keep_slow, g, rule.take_slow);
            numerator = average(to.m.first, rule.mix_first, to.m.slow, rule.mix_slow);
        }
        to.direction = over_root(numerator, to.m.second, rule.eps);
    }
    return to;
}

// One step of the element p with the moments m; `rate` is the rule's, times the trust ratio. A gradient that does not
// count (no number, too large for its square, or zero where zeros are skipped) leaves the element as it is.
RULE stepped step_element(uint32_t kind, struct optimizer_rule rule, float rate, REAL p, REAL gradient, moments m) {
    REAL       g = gradient * rule.gradient_scale;
    const REAL given = g < 0.0f ? -g : g;
    if (kind == RULE_MOMENTUM || kind == RULE_RMSPROP || kind == RULE_ADAGRAD) {
        const REAL decay = p * rule.decay;
        g = g + decay;
    }
    const REAL size = g < 0.0f ? -g : g;

    stepped    to = follow(kind, rule, g, m);
    const REAL kept = p * rule.shrink;
    const REAL move = to.direction * rate;
    const REAL moved = kept + move;
    const auto counts = (given >= rule.least) & (size <= rule.most);
    to.p = counts ? moved : p;
    to.direction = counts ? to.direction : (REAL)0.0f;
    to.m.first = counts ? to.m.first : m.first;
    to.m.second = counts ? to.m.second : m.second;
    to.m.slow = counts ? to.m.slow : m.slow;
    return to;
}
