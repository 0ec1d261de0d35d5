// Activations, and what they let through as gates.

constant uint X [[function_constant(0)]];    // of x, up and y
constant uint KIND [[function_constant(1)]]; // enum bnb_activation
constant uint GATE [[function_constant(2)]]; // GATE_…

// The error function: a polynomial around 0, and one less a power of e beyond (N. Juffa, 2016).
inline float error_function(float x) {
    const float a = fabs(x), z = x * x;
    if (a > 0.927734375f) {
        float p = fma(-1.72853470e-5f, a, 3.83197126e-4f);
        p = fma(p, z, fma(-3.88396438e-3f, a, 2.42546219e-2f));
        p = fma(p, a, -1.06777877e-1f);
        p = fma(p, a, -6.34846687e-1f);
        p = fma(p, a, -1.28717512e-1f);
        const float far = 1.0f - exp(fma(p, a, -a));
        return x < 0.0f ? -far : far;
    }
    float q = fma(-5.96761703e-4f, z, 4.99119423e-3f);
    q = fma(q, z, -2.67681349e-2f);
    q = fma(q, z, 1.12819925e-1f);
    q = fma(q, z, -3.76125336e-1f);
    q = fma(q, z, 1.28379166e-1f);
    return fma(q, x, x);
}

// gelu_tanh is x times the sigmoid of twice what the tangent is taken of.
inline float activated(float x) {
    if (KIND == ACTIVATION_SILU) return x / (1.0f + exp(-x));
    if (KIND == ACTIVATION_GELU) return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    if (KIND == ACTIVATION_TANH) return fabs(x) > 15.0f ? (x < 0.0f ? -1.0f : 1.0f) : tanh(x);
    return x / (1.0f + exp(fma(x * x, -0.071354816f, -1.5957691f) * x));
}

// Where in x what becomes element i of y lies.
inline ulong place_of(constant activate_args &args, ulong i) {
    if (GATE != GATE_HALVES) return i;
    const ulong row = args.count_high == 0 ? ulong(uint(i) / args.columns) : i / args.columns;
    return i + row * args.columns;
}

[[host_name("activate")]] [[kernel, max_total_threads_per_threadgroup(ACTIVATE_THREADS)]]
void activate(constant activate_args &args [[buffer(0)]],
              device const uchar *x [[buffer(1)]],
              device const uchar *up [[buffer(2)]],
              device uchar *y [[buffer(3)]],
              uint thread_at [[thread_position_in_grid]],
              uint threads [[threads_per_grid]]) {
    const ulong count = count_of(args.count_low, args.count_high);
    ulong i = thread_at;
    if (count % 4 == 0 && args.columns % 4 == 0) {
        for (ulong four = 4 * i; four < count; four += 4 * ulong(threads)) {
            const ulong at = place_of(args, four);
            float4 v = load4(x, X, at);
            UNROLL for (uint e = 0; e < 4; e++) v[e] = activated(v[e]);
            if (GATE == GATE_HALVES) v *= load4(x, X, at + args.columns);
            if (GATE == GATE_OTHER) v *= load4(up, X, four);
            save4(y, X, four, v);
        }
        return;
    }
    for (; i < count; i += threads) {
        const ulong at = place_of(args, i);
        float v = activated(load(x, X, at));
        if (GATE == GATE_HALVES) v *= load(x, X, at + args.columns);
        if (GATE == GATE_OTHER) v *= load(up, X, i);
        save(y, X, i, v);
    }
}
