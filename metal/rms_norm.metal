// Root mean square normalisation: a threadgroup takes a run, and the residual that goes in first.

constant uint X [[function_constant(0)]];        // of x and y
constant uint RESIDUAL [[function_constant(1)]]; // of the residual
constant uint ADDS [[function_constant(2)]];     // whether there is one

constant uint SIMDGROUPS = RMS_NORM_THREADS / 32;

constant uint KEPT = 4; // elements by fours that a thread keeps between the sum and the result

// Four elements, with the residual, which is put there too: what they are in x's dtype then.
inline float4 summed(device uchar *x, device const uchar *residual, float scale, ulong at) {
    float4 v = load4(x, X, at);
    if (ADDS == 0) return v;
    v = v + scale * load4(residual, RESIDUAL, at);
    save4(x, X, at, v);
    return X == STORE_F32 ? v : load4(x, X, at);
}

inline float total_of(float mine, threadgroup float *shared, uint simdgroup, uint lane) {
    const float part = simd_sum(mine);
    if (lane == 0) shared[simdgroup] = part;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float total = 0.0f;
    for (uint j = 0; j < SIMDGROUPS; j++) total += shared[j];
    return total;
}

inline float sum_of(float4 v) { return (v.x + v.y) + (v.z + v.w); }

// A run whose length is a multiple of four.
inline void norm_by_fours(constant rms_norm_args &args, device uchar *x, device const uchar *residual,
                          device const float *weight, device uchar *y, ulong run, threadgroup float *shared, uint place,
                          uint simdgroup, uint lane) {
    const uint step = 4 * RMS_NORM_THREADS;
    float4 kept[KEPT], by[KEPT];
    float squares = 0.0f;
    UNROLL for (uint j = 0; j < KEPT; j++) {
        const uint c = 4 * place + j * step;
        kept[j] = c < args.d ? summed(x, residual, args.scale, run + c) : float4(0.0f);
        by[j] = c < args.d ? *(device const float4 *)(weight + c) + args.offset : float4(0.0f);
        squares += sum_of(kept[j] * kept[j]);
    }
    for (uint c = 4 * place + KEPT * step; c < args.d; c += step) {
        const float4 v = summed(x, residual, args.scale, run + c);
        squares += sum_of(v * v);
    }
    const float total = total_of(squares, shared, simdgroup, lane);
    const float inverse = 1.0f / precise::sqrt(total / float(args.d) + args.eps);
    UNROLL for (uint j = 0; j < KEPT; j++) {
        const uint c = 4 * place + j * step;
        if (c < args.d) save4(y, X, run + c, by[j] * (kept[j] * inverse));
    }
    for (uint c = 4 * place + KEPT * step; c < args.d; c += step)
        save4(y, X, run + c, (*(device const float4 *)(weight + c) + args.offset) * (load4(x, X, run + c) * inverse));
}

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
    if (args.d % 4 == 0) {
        norm_by_fours(args, x, residual, weight, y, run, shared, place, simdgroup, lane);
        return;
    }
    float squares = 0.0f;
    for (uint c = place; c < args.d; c += RMS_NORM_THREADS) {
        if (ADDS != 0) save(x, X, run + c, load(x, X, run + c) + args.scale * load(residual, RESIDUAL, run + c));
        const float v = load(x, X, run + c);
        squares += v * v;
    }
    const float total = total_of(squares, shared, simdgroup, lane);
    const float inverse = 1.0f / precise::sqrt(total / float(args.d) + args.eps);
    for (uint c = place; c < args.d; c += RMS_NORM_THREADS)
        save(y, X, run + c, (weight[c] + args.offset) * (load(x, X, run + c) * inverse));
}
