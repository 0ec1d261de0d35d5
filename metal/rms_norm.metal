// Root mean square normalisation: a threadgroup takes a run, and the residual that goes in first.

constant uint X [[function_constant(0)]];        // of x and y
constant uint RESIDUAL [[function_constant(1)]]; // of the residual
constant uint ADDS [[function_constant(2)]];     // whether there is one

constant uint SIMDGROUPS = RMS_NORM_THREADS / 32;

[[host_name("rms_norm")]] [[kernel, max_total_threads_per_threadgroup(RMS_NORM_THREADS)]]
void rms_norm(constant rms_norm_args &args [[buffer(0)]],
              device uchar *x [[buffer(1)]],
              device const uchar *residual [[buffer(2)]],
              device const float *weight [[buffer(3)]],
              device uchar *y [[buffer(4)]],
              uint group [[threadgroup_position_in_grid]],
              uint place [[thread_index_in_threadgroup]],
              uint simdgroup [[simdgroup_index_in_threadgroup]],
              uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float shared[SIMDGROUPS];
    const ulong run = ulong(group) * args.d;
    float squares = 0.0f;
    for (uint c = place; c < args.d; c += RMS_NORM_THREADS) {
        if (ADDS != 0) save(x, X, run + c, load(x, X, run + c) + args.scale * load(residual, RESIDUAL, run + c));
        const float v = load(x, X, run + c);
        squares += v * v;
    }
    const float part = simd_sum(squares);
    if (lane == 0) shared[simdgroup] = part;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float total = 0.0f;
    for (uint j = 0; j < SIMDGROUPS; j++) total += shared[j];
    const float inverse = 1.0f / precise::sqrt(total / float(args.d) + args.eps);
    for (uint c = place; c < args.d; c += RMS_NORM_THREADS)
        save(y, X, run + c, (weight[c] + args.offset) * (load(x, X, run + c) * inverse));
}
