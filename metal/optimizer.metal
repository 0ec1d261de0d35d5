// One step of an optimizer: a simdgroup takes a block of OPTIMIZER_BLOCK elements, each lane every 32nd of them, and
// keeps new moments in registers until their largest is known. optimizer_rule.h has the arithmetic.

constant uint KIND [[function_constant(0)]];   // RULE_…
constant uint P [[function_constant(1)]];      // STORE_F32, STORE_F16 or STORE_BF16
constant uint G [[function_constant(2)]];
constant uint STATES [[function_constant(3)]]; // STORE_F32 or STORE_CODE8
constant uint TRUST [[function_constant(4)]];

constant uint EACH = OPTIMIZER_BLOCK / 32; // elements of a lane

// What a threadgroup keeps of a codebook.
struct tables {
    float values[256], thresholds[256];
    uchar order[256], start[2 * CODES_STARTS];
};

inline void copy_tables(constant kernel_codebook &code, threadgroup tables &to, uint place) {
    for (uint j = place; j < 256; j += OPTIMIZER_THREADS) {
        to.values[j] = code.values[j];
        to.thresholds[j] = code.thresholds[j];
        to.order[j] = code.order[j];
    }
    for (uint j = place; j < 2 * CODES_STARTS; j += OPTIMIZER_THREADS) to.start[j] = code.start[j];
}

// A block's scale, read by the lane that will write the new one.
inline float scale_at(device const float *absmax, ulong block, uint lane) {
    float scale = 0.0f;
    if (STATES == STORE_CODE8 && lane == 0) scale = absmax[block];
    return simd_broadcast(scale, ushort(0));
}

inline float moment_at(device const uchar *state, ulong i, threadgroup const tables &codes, float scale) {
    if (STATES == STORE_CODE8) return codes.values[state[i]] * scale;
    return ((device const float *)state)[i];
}

// Writes a lane's moments i, i + 32, … that come before `end`, and the block's new scale.
inline void save_moments(thread const float *moments, device uchar *state, ulong i, ulong end, device float *absmax,
                         ulong block, uint lane, threadgroup const tables &codes, uint steps) {
    if (STATES == STORE_F32) {
        UNROLL for (uint j = 0; j < EACH; j++)
            if (i + 32 * j < end) ((device float *)state)[i + 32 * j] = moments[j];
        return;
    }
    uint m = 0;
    UNROLL for (uint j = 0; j < EACH; j++) m = max(m, magnitude_of(moments[j]));
    m = simd_max(m);
    if (lane == 0) absmax[block] = as_type<float>(m);
    const inverse by = inverse_of(as_type<float>(m));
    UNROLL for (uint j = 0; j < EACH; j++) {
        const float scaled = scaled_by(moments[j], by);
        if (i + 32 * j < end) state[i + 32 * j] = codes.order[below8(codes.thresholds, codes.start, steps, scaled)];
    }
}

// The whole threadgroup's sums, in its first thread; `shared` has a place for each simdgroup.
inline float2 gather(float2 sums, threadgroup float2 *shared, uint simdgroup, uint lane) {
    sums = float2(simd_sum(sums.x), simd_sum(sums.y));
    if (lane == 0) shared[simdgroup] = sums;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sums = float2(0.0f);
    if (simdgroup == 0 && lane < OPTIMIZER_THREADS / 32) sums = shared[lane];
    return float2(simd_sum(sums.x), simd_sum(sums.y));
}

// Where TRUST is TRUST_MEASURE nothing is updated, and each threadgroup leaves its sums of squares, of p and of the
// direction, in sums[1 + group]; where it is TRUST_APPLY, sums[0].x is what optimizer_trust has made of them.
[[host_name("optimizer")]] [[kernel, max_total_threads_per_threadgroup(OPTIMIZER_THREADS)]]
void optimizer(constant optimizer_args &args [[buffer(0)]],
               device uchar *p [[buffer(1)]],
               device const uchar *g [[buffer(2)]],
               device uchar *state1 [[buffer(3)]],
               device float *absmax1 [[buffer(4)]],
               constant kernel_codebook &code1 [[buffer(5)]],
               device uchar *state2 [[buffer(6)]],
               device float *absmax2 [[buffer(7)]],
               constant kernel_codebook &code2 [[buffer(8)]],
               device float2 *sums [[buffer(9)]],
               uint group [[threadgroup_position_in_grid]],
               uint groups [[threadgroups_per_grid]],
               uint place [[thread_index_in_threadgroup]],
               uint simdgroup [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]]) {
    threadgroup tables codes1, codes2;
    threadgroup float2 shared[OPTIMIZER_THREADS / 32];
    const bool has_second = KIND == RULE_ADAM || KIND == RULE_ADEMAMIX, has_slow = KIND == RULE_ADEMAMIX;
    if (STATES == STORE_CODE8) {
        copy_tables(code1, codes1, place);
        if (has_second) copy_tables(code2, codes2, place);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    const ulong count = count_of(args.count_low, args.count_high);
    const ulong blocks = (count + OPTIMIZER_BLOCK - 1) / OPTIMIZER_BLOCK;
    const uint simdgroups = OPTIMIZER_THREADS / 32;
    float rate = args.rule.rate;
    if (TRUST == TRUST_APPLY) rate *= sums[0].x;
    float2 squares = float2(0.0f);
    for (ulong block = ulong(group) * simdgroups + simdgroup; block < blocks; block += ulong(groups) * simdgroups) {
        const ulong first_i = block * OPTIMIZER_BLOCK + lane;
        const float scale1 = scale_at(absmax1, block, lane);
        const float scale2 = has_second ? scale_at(absmax2, block, lane) : 0.0f;
        const float scale3 = has_slow ? scale_at(absmax1, blocks + block, lane) : 0.0f;
        float first[EACH], second[EACH], slow[EACH];
        UNROLL for (uint j = 0; j < EACH; j++) {
            const ulong i = first_i + 32 * j;
            moments m = {0.0f, 0.0f, 0.0f};
            if (i < count) {
                m.first = moment_at(state1, i, codes1, scale1);
                if (has_second) m.second = moment_at(state2, i, codes2, scale2);
                if (has_slow) m.slow = moment_at(state1, count + i, codes1, scale3);
                const float at = load(p, P, i);
                const stepped to = step_element(KIND, args.rule, rate, at, load(g, G, i), m);
                if (TRUST == TRUST_MEASURE) squares += float2(at * at, to.direction * to.direction);
                else save(p, P, i, to.p);
                m = to.m;
            }
            first[j] = m.first;
            second[j] = m.second;
            slow[j] = m.slow;
        }
        if (TRUST == TRUST_MEASURE) continue;
        save_moments(first, state1, first_i, count, absmax1, block, lane, codes1, code1.steps);
        if (has_second)
            save_moments(second, state2, first_i, count, absmax2, block, lane, codes2, code2.steps);
        if (has_slow)
            save_moments(slow, state1, count + first_i, 2 * count, absmax1, blocks + block, lane, codes1, code1.steps);
    }
    if (TRUST == TRUST_MEASURE) {
        squares = gather(squares, shared, simdgroup, lane);
        if (place == 0) sums[1 + group] = squares;
    }
}

// The norm of the direction, corrected, and in sums[0].x what the rate is multiplied by: the trust ratio where it is
// below 1.
[[host_name("optimizer_trust")]] [[kernel, max_total_threads_per_threadgroup(OPTIMIZER_THREADS)]]
void optimizer_trust(constant optimizer_args &args [[buffer(0)]],
                     device float2 *sums [[buffer(1)]],
                     device float *unorm [[buffer(2)]],
                     uint place [[thread_index_in_threadgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float2 shared[OPTIMIZER_THREADS / 32];
    float2 squares = float2(0.0f);
    for (uint i = place; i < args.parts; i += OPTIMIZER_THREADS) squares += sums[1 + i];
    squares = gather(squares, shared, simdgroup, lane);
    if (place != 0) return;
    const float most = args.max_unorm * precise::sqrt(squares.x), norm = args.correction * precise::sqrt(squares.y);
    unorm[0] = norm;
    sums[0] = float2(norm > most ? most / norm : 1.0f, 0.0f);
}
