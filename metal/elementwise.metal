// What is done to each element by itself. Bound by memory: 8 elements a thread. elementwise_rule.h has the arithmetic.

constant uint KIND [[function_constant(0)]];   // UNARY_… or BINARY_…
constant uint FIRST [[function_constant(1)]];  // of x; of a and y
constant uint SECOND [[function_constant(2)]]; // of y; of b

inline octet unary8(octet x, float scale) {
    octet y;
    UNROLL for (uint j = 0; j < 4; j++) {
        y.low[j] = unary(KIND, x.low[j], scale);
        y.high[j] = unary(KIND, x.high[j], scale);
    }
    return y;
}

inline octet binary8(octet a, octet b, float scale) {
    octet y;
    UNROLL for (uint j = 0; j < 4; j++) {
        y.low[j] = binary(KIND, a.low[j], b.low[j], scale);
        y.high[j] = binary(KIND, a.high[j], b.high[j], scale);
    }
    return y;
}

[[host_name("unary")]] [[kernel, max_total_threads_per_threadgroup(ELEMENTWISE_THREADS)]]
void unary_elements(constant elementwise_args &args [[buffer(0)]],
                    device const uchar *x [[buffer(1)]],
                    device uchar *y [[buffer(2)]],
                    uint thread_index [[thread_position_in_grid]],
                    uint threads [[threads_per_grid]]) {
    const ulong count = count_of(args.count_low, args.count_high);
    for (ulong i = ulong(thread_index) * 8; i < count; i += ulong(threads) * 8) {
        const uint valid = within(i, count);
        if (valid == 8) save8(y, SECOND, i, unary8(load8(x, FIRST, i), args.scale));
        else save_some(y, SECOND, i, valid, unary8(load_some(x, FIRST, i, valid), args.scale));
    }
}

[[host_name("binary")]] [[kernel, max_total_threads_per_threadgroup(ELEMENTWISE_THREADS)]]
void binary_elements(constant elementwise_args &args [[buffer(0)]],
                     device const uchar *a [[buffer(1)]],
                     device const uchar *b [[buffer(2)]],
                     device uchar *y [[buffer(3)]],
                     uint thread_index [[thread_position_in_grid]],
                     uint threads [[threads_per_grid]]) {
    const ulong count = count_of(args.count_low, args.count_high);
    for (ulong i = ulong(thread_index) * 8; i < count; i += ulong(threads) * 8) {
        const uint valid = within(i, count);
        if (valid == 8) save8(y, FIRST, i, binary8(load8(a, FIRST, i), load8(b, SECOND, i), args.scale));
        else
            save_some(y, FIRST, i, valid,
                      binary8(load_some(a, FIRST, i, valid), load_some(b, SECOND, i, valid), args.scale));
    }
}
