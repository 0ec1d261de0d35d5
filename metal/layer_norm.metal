// Layer normalisation of each row, and its gradients. A threadgroup takes a row; the weight's gradient, which sums over
// rows, takes their stats from a first launch, and a thread a column of a part of the rows.

constant uint X [[function_constant(0)]];
constant uint DY [[function_constant(1)]];
constant uint Y [[function_constant(2)]];

constant uint SIMDGROUPS = LAYER_NORM_THREADS / 32;

// The threadgroup's sums, in every thread. `shared` has a place for each simdgroup.
inline float2 sum_all(float2 v, threadgroup float2 *shared, uint simdgroup, uint lane) {
    const float2 part = float2(simd_sum(v.x), simd_sum(v.y));
    threadgroup_barrier(mem_flags::mem_threadgroup); // the last sums have been read
    if (lane == 0) shared[simdgroup] = part;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float2 total = float2(0.0f);
    for (uint j = 0; j < SIMDGROUPS; j++) total += shared[j];
    return total;
}

// The mean of a row in x, and 1 / √(variance + eps) in y.
inline float2 stats_of(constant layer_norm_args &args, device const uchar *x, ulong row, threadgroup float2 *shared,
                       uint place, uint simdgroup, uint lane) {
    float sum = 0.0f, squares = 0.0f;
    for (uint c = place; c < args.columns; c += LAYER_NORM_THREADS) sum += load(x, X, row + c);
    const float mean = sum_all(float2(sum, 0.0f), shared, simdgroup, lane).x / float(args.columns);
    for (uint c = place; c < args.columns; c += LAYER_NORM_THREADS) {
        const float deviation = load(x, X, row + c) - mean;
        squares += deviation * deviation;
    }
    const float variance = sum_all(float2(squares, 0.0f), shared, simdgroup, lane).x / float(args.columns);
    return float2(mean, 1.0f / precise::sqrt(variance + args.eps));
}

[[host_name("layer_norm")]] [[kernel, max_total_threads_per_threadgroup(LAYER_NORM_THREADS)]]
void layer_norm(constant layer_norm_args &args [[buffer(0)]],
                device const uchar *x [[buffer(1)]],
                device const float *weight [[buffer(3)]],
                device const float *bias [[buffer(4)]],
                device uchar *y [[buffer(6)]],
                uint group [[threadgroup_position_in_grid]],
                uint place [[thread_index_in_threadgroup]],
                uint simdgroup [[simdgroup_index_in_threadgroup]],
                uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float2 shared[SIMDGROUPS];
    const ulong row = ulong(group) * args.columns;
    const float2 stats = stats_of(args, x, row, shared, place, simdgroup, lane);
    for (uint c = place; c < args.columns; c += LAYER_NORM_THREADS)
        save(y, Y, row + c, (load(x, X, row + c) - stats.x) * stats.y * weight[c] + bias[c]);
}

// With g = dy · weight and n the normalised x: dx = (g - mean(g) - n · mean(g · n)) · inverse.
[[host_name("layer_norm_backward")]] [[kernel, max_total_threads_per_threadgroup(LAYER_NORM_THREADS)]]
void layer_norm_backward(constant layer_norm_args &args [[buffer(0)]],
                         device const uchar *x [[buffer(1)]],
                         device const uchar *dy [[buffer(2)]],
                         device const float *weight [[buffer(3)]],
                         device uchar *dx [[buffer(6)]],
                         uint group [[threadgroup_position_in_grid]],
                         uint place [[thread_index_in_threadgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float2 shared[SIMDGROUPS];
    const ulong row = ulong(group) * args.columns;
    const float2 stats = stats_of(args, x, row, shared, place, simdgroup, lane);
    float2 sums = float2(0.0f);
    for (uint c = place; c < args.columns; c += LAYER_NORM_THREADS) {
        const float g = load(dy, DY, row + c) * weight[c];
        sums += float2(g, g * ((load(x, X, row + c) - stats.x) * stats.y));
    }
    const float2 means = sum_all(sums, shared, simdgroup, lane) / float(args.columns);
    for (uint c = place; c < args.columns; c += LAYER_NORM_THREADS) {
        const float g = load(dy, DY, row + c) * weight[c], n = (load(x, X, row + c) - stats.x) * stats.y;
        save(dx, Y, row + c, (g - means.x - n * means.y) * stats.y);
    }
}

[[host_name("layer_norm_stats")]] [[kernel, max_total_threads_per_threadgroup(LAYER_NORM_THREADS)]]
void layer_norm_stats(constant layer_norm_args &args [[buffer(0)]],
                      device const uchar *x [[buffer(1)]],
                      device float2 *stats [[buffer(5)]],
                      uint group [[threadgroup_position_in_grid]],
                      uint place [[thread_index_in_threadgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float2 shared[SIMDGROUPS];
    const float2 of_row = stats_of(args, x, ulong(group) * args.columns, shared, place, simdgroup, lane);
    if (place == 0) stats[group] = of_row;
}

// The weight's gradient: Σ dy · n over the rows, which the grid's second dimension shares out: a row of sums for each
// part.
[[host_name("layer_norm_backward_weight")]] [[kernel, max_total_threads_per_threadgroup(LAYER_NORM_THREADS)]]
void layer_norm_backward_weight(constant layer_norm_args &args [[buffer(0)]],
                                device const uchar *x [[buffer(1)]],
                                device const uchar *dy [[buffer(2)]],
                                device const float2 *stats [[buffer(5)]],
                                device float *d_weight [[buffer(6)]],
                                uint2 group [[threadgroup_position_in_grid]],
                                uint2 groups [[threadgroups_per_grid]],
                                uint place [[thread_index_in_threadgroup]]) {
    const uint column = group.x * LAYER_NORM_THREADS + place, each = (args.rows + groups.y - 1) / groups.y;
    if (column >= args.columns) return;
    const uint end = min(args.rows, (group.y + 1) * each);
    float sum = 0.0f;
    for (uint row = group.y * each; row < end; row++) {
        const ulong i = ulong(row) * args.columns + column;
        sum = fma(load(dy, DY, i), (load(x, X, i) - stats[row].x) * stats[row].y, sum);
    }
    d_weight[ulong(group.y) * args.columns + column] = sum;
}
