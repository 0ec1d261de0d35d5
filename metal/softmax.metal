// Softmax of rows: a threadgroup takes a row; its largest is taken off first, so that no power of e overflows.

constant uint X [[function_constant(0)]]; // of x and y

constant uint SIMDGROUPS = SOFTMAX_THREADS / 32;

[[host_name("softmax")]] [[kernel, max_total_threads_per_threadgroup(SOFTMAX_THREADS)]]
void softmax(constant softmax_args &args [[buffer(0)]],
             device const uchar *x [[buffer(1)]],
             device uchar *y [[buffer(2)]],
             uint group [[threadgroup_position_in_grid]],
             uint place [[thread_index_in_threadgroup]],
             uint simdgroup [[simdgroup_index_in_threadgroup]],
             uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float tops[SIMDGROUPS], sums[SIMDGROUPS];
    const ulong row = ulong(group) * args.columns;
    float top = -INFINITY;
    for (uint c = place; c < args.columns; c += SOFTMAX_THREADS) top = max(top, load(x, X, row + c));
    const float part = simd_max(top);
    if (lane == 0) tops[simdgroup] = part;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    top = tops[0];
    for (uint j = 1; j < SIMDGROUPS; j++) top = max(top, tops[j]);
    float sum = 0.0f;
    for (uint c = place; c < args.columns; c += SOFTMAX_THREADS) sum += exp(load(x, X, row + c) - top);
    const float share = simd_sum(sum);
    if (lane == 0) sums[simdgroup] = share;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float total = 0.0f;
    for (uint j = 0; j < SIMDGROUPS; j++) total += sums[j];
    const float inverse = 1.0f / total;
    for (uint c = place; c < args.columns; c += SOFTMAX_THREADS)
        save(y, X, row + c, exp(load(x, X, row + c) - top) * inverse);
}
