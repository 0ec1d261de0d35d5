// Casts among f32, f16 and bf16, rounding to nearest even. Bound by memory: 8 elements a thread.

constant uint FROM [[function_constant(0)]];
constant uint TO [[function_constant(1)]];

[[host_name("cast")]] [[kernel, max_total_threads_per_threadgroup(CAST_THREADS)]]
void cast_elements(constant cast_args &args [[buffer(0)]],
                   device const uchar *x [[buffer(1)]],
                   device uchar *y [[buffer(2)]],
                   uint thread_index [[thread_position_in_grid]],
                   uint threads [[threads_per_grid]]) {
    const ulong count = count_of(args.count_low, args.count_high);
    for (ulong i = ulong(thread_index) * 8; i < count; i += ulong(threads) * 8) {
        const uint valid = within(i, count);
        if (valid == 8) save8(y, TO, i, load8(x, FROM, i));
        else save_some(y, TO, i, valid, load_some(x, FROM, i, valid));
    }
}
