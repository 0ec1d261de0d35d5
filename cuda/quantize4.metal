// Blockwise quantisation to 4 bits with one comparison an element, in the place of metal/quantize.metal's kernel: the
// same arguments, grid and bytes.
//
// A value's bin among 66 of width 1/32 says which thresholds can be near it. Finding a bin is monotone in the value, so
// what lies in a lower bin than a threshold is below it, and in a higher one above. Most codebooks have one threshold a
// bin at most; for others the bin gives a first count, and the few that remain are compared.

constant uint FROM [[function_constant(0)]];
constant uint GIVEN [[function_constant(2)]]; // absmax holds the scales already

enum { BINS = 66, COPIES = 16 }; // a copy for two lanes, each in its own banks

inline uint bin_of(float x) { return as_type<uint>(x * 32.0f + 12582944.0f) & 127u; } // 1.5 × 2²³ + 32

// A threshold in the bin or infinity, and two codes: below it and above. Where the bin has more, the threshold is a NaN
// and the word is the count of thresholds below the bin.
inline uint2 make_bin(device const kernel_codebook *code, uint bin) {
    uint below = 0, there = 0;
    for (uint j = 0; j < 15; j++) {
        const float at = code->thresholds[j]; // a codebook's values may lie beyond what a block can hold
        const bool inside = at >= -1.0f && at <= 1.0f;
        below += at < -1.0f || (inside && bin_of(at) < bin) ? 1u : 0u;
        there += inside && bin_of(at) == bin ? 1u : 0u;
    }
    if (there > 1) return uint2(0x7fc00000u, below);
    const uint threshold = there == 1 ? as_type<uint>(code->thresholds[below]) : 0x7f800000u;
    return uint2(threshold, uint(code->order[below]) | uint(code->order[min(below + 1, 15u)]) << 8);
}

inline uint code_of(threadgroup const uint2 *bins, threadgroup const float *thresholds, threadgroup const uchar *order,
                    uint lane, float x) {
    const uint2 bin = bins[bin_of(x) * COPIES + lane % COPIES];
    const float threshold = as_type<float>(bin.x);
    if (threshold == threshold) return x > threshold ? bin.y >> 8 : bin.y & 255u;
    uint below = bin.y;
    while (below < 15 && x > thresholds[below]) below++;
    return order[below];
}

inline uint largest_of(octet v) {
    const uint4 m = max(as_type<uint4>(v.low) & 0x7fffffffu, as_type<uint4>(v.high) & 0x7fffffffu);
    return max(max(m.x, m.y), max(m.z, m.w));
}

[[host_name("quantize4")]] [[kernel, max_total_threads_per_threadgroup(QUANTIZE_THREADS)]]
void quantize4(constant quantize_args &args [[buffer(0)]],
               device const uchar *x [[buffer(1)]],
               device const kernel_codebook *code [[buffer(2)]],
               device uchar *codes [[buffer(3)]],
               device float *absmax [[buffer(4)]],
               uint group [[threadgroup_position_in_grid]],
               uint groups [[threadgroups_per_grid]],
               uint place [[thread_index_in_threadgroup]],
               uint simdgroup [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint2 bins[BINS * COPIES];
    threadgroup float thresholds[16];
    threadgroup uchar order[16];
    threadgroup uint largest[QUANTIZE_THREADS / 32];
    for (uint i = place; i < BINS * COPIES; i += QUANTIZE_THREADS) bins[i] = make_bin(code, i / COPIES);
    if (place < 16) {
        order[place] = code->order[place];
        thresholds[place] = code->thresholds[place];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const ulong count = count_of(args.count_low, args.count_high);
    const uint lanes = args.block / 8; // threads that share a block
    for (ulong tile = ulong(group) * QUANTIZE_TILE; tile < count; tile += ulong(groups) * QUANTIZE_TILE) {
        const ulong i = tile + place * 8;
        const uint valid = within(i, count);
        octet v = valid == 8 ? load8(x, FROM, i) : load_some(x, FROM, i, valid);

        uint m = largest_of(v);
        for (uint step = 1; step < min(lanes, 32u); step *= 2) m = max(m, simd_shuffle_xor(m, ushort(step)));
        if (lanes > 32) {
            if (lane == 0) largest[simdgroup] = m;
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const uint first = place / lanes * lanes / 32;
            for (uint j = 0; j < lanes / 32; j++) m = max(m, largest[first + j]);
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        float scale = as_type<float>(m);
        if (valid > 0 && GIVEN != 0) scale = absmax[i >> args.shift];
        else if (valid > 0 && place % lanes == 0) absmax[i >> args.shift] = scale;

        const inverse by = inverse_of(scale);
        v.low = scaled_by(v.low, by);
        v.high = scaled_by(v.high, by);
        uint word = 0;
        UNROLL for (uint j = 0; j < 8; j++)
            word |= code_of(bins, thresholds, order, lane, j < 4 ? v.low[j] : v.high[j - 4]) << (4 * (j ^ 1u));
        if (valid == 8) *(device uint *)(codes + i / 2) = word;
        else for (uint j = 0; j < (valid + 1) / 2; j++) codes[i / 2 + j] = uchar(word >> (8 * j));
    }
}
