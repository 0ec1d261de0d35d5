// A matrix with its rows as columns: elements by turns, in the order in which they are written.

constant uint SIZE [[function_constant(0)]]; // bytes of an element

[[host_name("transpose")]] [[kernel, max_total_threads_per_threadgroup(TRANSPOSE_THREADS)]]
void transpose_elements(constant transpose_args &args [[buffer(0)]],
                        device const uchar *x [[buffer(1)]],
                        device uchar *y [[buffer(2)]],
                        uint thread_at [[thread_position_in_grid]],
                        uint threads [[threads_per_grid]]) {
    const uint count = args.rows * args.columns;
    for (uint i = thread_at; i < count; i += threads) {
        const uint from = i % args.rows * args.columns + i / args.rows;
        if (SIZE == 4) ((device uint *)y)[i] = ((device const uint *)x)[from];
        else if (SIZE == 2) ((device ushort *)y)[i] = ((device const ushort *)x)[from];
        else y[i] = x[from];
    }
}
