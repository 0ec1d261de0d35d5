// y = a + scale · b, in a's dtype. Bound by memory: 8 elements a thread.

constant uint A [[function_constant(0)]]; // of a and y
constant uint B [[function_constant(1)]];
constant uint HAS_A [[function_constant(2)]];

// Product and sum are rounded one by one, as the CPU does.
inline octet add8(octet a, octet b, float scale) {
    const float4 low = scale * b.low, high = scale * b.high;
    if (HAS_A == 0) return octet{low, high};
    return octet{a.low + low, a.high + high};
}

[[host_name("add")]] [[kernel, max_total_threads_per_threadgroup(CAST_THREADS)]]
void add_elements(constant add_args &args [[buffer(0)]],
                  device const uchar *a [[buffer(1)]],
                  device const uchar *b [[buffer(2)]],
                  device uchar *y [[buffer(3)]],
                  uint thread_index [[thread_position_in_grid]],
                  uint threads [[threads_per_grid]]) {
    const ulong count = count_of(args.count_low, args.count_high);
    for (ulong i = ulong(thread_index) * 8; i < count; i += ulong(threads) * 8) {
        const uint valid = within(i, count);
        octet v = {float4(0.0f), float4(0.0f)};
        if (valid == 8) {
            if (HAS_A != 0) v = load8(a, A, i);
            save8(y, A, i, add8(v, load8(b, B, i), args.scale));
        } else {
            if (HAS_A != 0) v = load_some(a, A, i, valid);
            save_some(y, A, i, valid, add8(v, load_some(b, B, i, valid), args.scale));
        }
    }
}
