// The scale of least squared error of each block: a simdgroup a block, which it reads anew for each scale it tries. The
// rule is that of scales_rule.h.

constant uint FROM [[function_constant(0)]];
constant uint WEIGHED [[function_constant(1)]]; // columns have their importance

// A block in memory.
struct block_of_x {
    device const uchar *x;
    device const float *importance;
    ulong first, end;
    uint columns;
    float unit; // brings the block's magnitude to about 1
};

struct table {
    threadgroup const float *thresholds, *values; // ascending
    uint size;
};

inline float ranked_value(thread const table &codes, float x) {
    uint below = 0;
    for (uint half_size = codes.size / 2; half_size > 0; half_size /= 2)
        below += x > codes.thresholds[below + half_size - 1] ? half_size : 0u;
    return codes.values[below];
}

// In the order that scales_rule.h prescribes, which simd_sum does not promise.
inline float sum_lanes(float x) {
    for (uint step = SCALES_LANES / 2; step > 0; step /= 2) x += simd_shuffle_xor(x, ushort(step));
    return x;
}

inline trial try_scale(thread const block_of_x &block, thread const table &codes, float scale, uint lane) {
    const inverse by = inverse_of(scale);
    float errors = 0.0f, products = 0.0f, squares = 0.0f;
    uint column = WEIGHED ? uint((block.first + lane) % block.columns) : 0u;
    for (ulong i = block.first + lane; i < block.end; i += SCALES_LANES) {
        const float weight = WEIGHED ? block.importance[column] : 1.0f;
        if (WEIGHED) column = (column + SCALES_LANES) % block.columns;
        const float x = weight > 0.0f ? load(block.x, FROM, i) * block.unit : 0.0f;
        const float value = ranked_value(codes, scaled_by(x, by));
        const float near = value * scale;
        const float error = x - near;
        const float weighed_error = weight * error;
        const float weighed_value = weight * value;
        const float squared = weighed_error * error;
        const float product = weighed_error * value;
        const float square = weighed_value * value;
        errors += squared;
        products += product;
        squares += square;
    }
    return trial_of(scale, sum_lanes(errors), sum_lanes(products), sum_lanes(squares));
}

// The bits of a weight, above those of all that are weights where it is none: an infinity, a NaN, or below zero.
inline uint weight_bits(float weight) {
    const uint bits = as_type<uint>(weight);
    return bits == 0x80000000u ? 0u : bits;
}

// A weight by the power of two that brings the largest to about 1; what is subnormal counts in steps of 2^-149.
inline float at_unit(float weight, uint exponent) {
    const uint bits = as_type<uint>(weight);
    return bits < 0x00800000u && exponent < 105 ? float(bits) * power_of(105 - exponent)
                                                : weight * power_of(254 - exponent);
}

// The weights of columns in fp32, by a power of two at which sums of them can't overflow, and the largest's bits. One
// threadgroup.
[[host_name("scales_weights")]] [[kernel, max_total_threads_per_threadgroup(SCALES_THREADS)]]
void scales_weights(constant scales_args &args [[buffer(0)]],
                    device const uchar *importance [[buffer(1)]],
                    device float *weights [[buffer(2)]],
                    device uint *largest [[buffer(3)]],
                    uint place [[thread_index_in_threadgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint shared[SCALES_THREADS / 32];
    uint most = 0;
    for (uint c = place; c < args.columns; c += SCALES_THREADS)
        most = max(most, weight_bits(load(importance, FROM, c)));
    most = simd_max(most);
    if (lane == 0) shared[simdgroup] = most;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint s = 0; s < SCALES_THREADS / 32; s++) most = max(most, shared[s]);
    if (place == 0) largest[0] = most;
    const uint exponent = exponent_of(as_type<float>(most));
    for (uint c = place; c < args.columns; c += SCALES_THREADS)
        weights[c] = at_unit(load(importance, FROM, c), exponent);
}

[[host_name("scales")]] [[kernel, max_total_threads_per_threadgroup(SCALES_THREADS)]]
void scales(constant scales_args &args [[buffer(0)]],
            device const uchar *x [[buffer(1)]],
            constant kernel_codebook &code [[buffer(2)]],
            device const float *importance [[buffer(3)]],
            device float *absmax [[buffer(4)]],
            uint group [[threadgroup_position_in_grid]],
            uint groups [[threadgroups_per_grid]],
            uint place [[thread_index_in_threadgroup]],
            uint simdgroup [[simdgroup_index_in_threadgroup]],
            uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float thresholds[256], values[256];
    for (uint j = place; j < code.size; j += SCALES_THREADS) {
        thresholds[j] = code.thresholds[j];
        values[j] = code.values[code.order[j]];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const table codes = {thresholds, values, code.size};
    const ulong count = count_of(args.count_low, args.count_high);
    const uint simdgroups = SCALES_THREADS / 32;
    ulong index = ulong(group) * simdgroups + simdgroup;
    for (; index * args.block < count; index += ulong(groups) * simdgroups) {
        const ulong first = index * args.block, end = min(first + args.block, count);
        uint all = 0, weighed = 0; // the largest magnitudes, and of what weighs anything
        for (ulong i = first + lane; i < end; i += 32) {
            const uint m = magnitude_of(load(x, FROM, i));
            all = max(all, m);
            if (!WEIGHED || importance[i % args.columns] > 0.0f) weighed = max(weighed, m);
        }
        const float largest = as_type<float>(simd_max(all)), magnitude = as_type<float>(simd_max(weighed));
        float scale = largest;
        if (is_searched(largest, magnitude)) {
            const uint exponent = exponent_of(magnitude);
            const float unit = power_of(254 - exponent), unit_largest = largest * unit;
            const block_of_x block = {x, importance, first, end, args.columns, unit};
            search best = begin_search(try_scale(block, codes, unit_largest, lane));
            float next = magnitude * unit * args.first;
            for (uint j = 0; j < SCALES_TRIED; j++) {
                best = consider(best, try_scale(block, codes, next, lane));
                next *= args.ratio;
            }
            for (uint j = 0; j < SCALES_REFINED; j++)
                best = consider(best, try_scale(block, codes, best.refined, lane));
            scale = scale_back(best.scale, unit_largest, largest, power_of(exponent));
        }
        if (lane == 0) absmax[index] = scale;
    }
}
