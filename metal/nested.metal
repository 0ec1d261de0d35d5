// Scales that are quantised in turn: their mean, by nested_rule.h, what is left of them without it, and what readers
// see of the codes.

// Of what metal/finite.metal has left, a thread at each.
inline uint largest_of(device const uint *parts, uint count, threadgroup uint *shared, uint place, uint simdgroup,
                       uint lane) {
    uint largest = place < count ? parts[place] : 0u;
    largest = simd_max(largest);
    if (lane == 0) shared[simdgroup] = largest;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint s = 0; s < NESTED_THREADS / 32; s++) largest = max(largest, shared[s]);
    return largest;
}

// The threads' sum, in each of them.
inline ulong total_of(ulong sum, threadgroup ulong *shared, uint simdgroup, uint lane) {
    UNROLL for (uint step = 16; step > 0; step /= 2) {
        const ulong upper = simd_shuffle_xor(uint(sum >> 32), ushort(step));
        sum += upper << 32 | simd_shuffle_xor(uint(sum), ushort(step));
    }
    if (lane == 0) shared[simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum = 0;
    for (uint s = 0; s < NESTED_THREADS / 32; s++) sum += shared[s];
    return sum;
}

// A threadgroup's sum of units: their low halves, then their high ones.
[[host_name("nested_sum")]] [[kernel, max_total_threads_per_threadgroup(NESTED_THREADS)]]
void nested_sum(constant nested_args &args [[buffer(0)]],
                device const float *scales [[buffer(1)]],
                device const uint *parts [[buffer(2)]],
                device ulong *sums [[buffer(3)]],
                uint group [[threadgroup_position_in_grid]],
                uint groups [[threadgroups_per_grid]],
                uint place [[thread_index_in_threadgroup]],
                uint simdgroup [[simdgroup_index_in_threadgroup]],
                uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint maxima[NESTED_THREADS / 32];
    threadgroup ulong lows[NESTED_THREADS / 32], highs[NESTED_THREADS / 32];
    const uint largest = largest_of(parts, args.parts, maxima, place, simdgroup, lane);
    ulong low = 0, high = 0;
    for (uint i = group * NESTED_THREADS + place; i < args.count; i += groups * NESTED_THREADS) {
        const ulong units = units_of(as_type<uint>(scales[i]), largest);
        low += units & 0xffffffffu;
        high += units >> 32;
    }
    low = total_of(low, lows, simdgroup, lane);
    high = total_of(high, highs, simdgroup, lane);
    if (place > 0) return;
    sums[2 * group] = low;
    sums[2 * group + 1] = high;
}

// Takes the mean off, and leaves it.
[[host_name("nested_centre")]] [[kernel, max_total_threads_per_threadgroup(NESTED_THREADS)]]
void nested_centre(constant nested_args &args [[buffer(0)]],
                   device float *scales [[buffer(1)]],
                   device const uint *parts [[buffer(2)]],
                   device const ulong *sums [[buffer(3)]],
                   device float *offset [[buffer(4)]],
                   uint group [[threadgroup_position_in_grid]],
                   uint groups [[threadgroups_per_grid]],
                   uint place [[thread_index_in_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint maxima[NESTED_THREADS / 32], mean_bits[1];
    threadgroup ulong lows[NESTED_THREADS / 32], highs[NESTED_THREADS / 32];
    const uint largest = largest_of(parts, args.parts, maxima, place, simdgroup, lane);
    ulong low = 0, high = 0;
    if (place < args.parts) {
        low = sums[2 * place];
        high = sums[2 * place + 1];
    }
    low = total_of(low, lows, simdgroup, lane);
    high = total_of(high, highs, simdgroup, lane);
    if (place == 0) mean_bits[0] = mean_of_units(high, low, args.count, largest);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const float mean = as_type<float>(mean_bits[0]);
    if (group == 0 && place == 0) offset[0] = mean;
    for (uint i = group * NESTED_THREADS + place; i < args.count; i += groups * NESTED_THREADS) scales[i] -= mean;
}

// The scales that codes of a byte stand for.
[[host_name("nested_scales")]] [[kernel, max_total_threads_per_threadgroup(NESTED_THREADS)]]
void nested_scales(constant nested_args &args [[buffer(0)]],
                   device const uchar *codes [[buffer(1)]],
                   device const float *absmax [[buffer(2)]],
                   device const kernel_codebook *code [[buffer(3)]],
                   device const float *offset [[buffer(4)]],
                   device float *scales [[buffer(5)]],
                   uint group [[threadgroup_position_in_grid]],
                   uint groups [[threadgroups_per_grid]],
                   uint place [[thread_index_in_threadgroup]]) {
    for (uint i = group * NESTED_THREADS + place; i < args.count; i += groups * NESTED_THREADS) {
        const float product = code->values[codes[i]] * absmax[i / args.block];
        scales[i] = product + offset[0];
    }
}
