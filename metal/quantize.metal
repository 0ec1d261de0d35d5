// Blockwise quantisation: each block's largest magnitude, and each element's nearest code. The bytes are those of
// nearest_code in csrc/codebook.h, which explains the search.

constant uint FROM [[function_constant(0)]];
constant uint CODES [[function_constant(1)]]; // STORE_CODE + bits
constant uint GIVEN [[function_constant(2)]]; // absmax holds the scales already

inline uint largest_of(octet v) {
    uint4 m = max(as_type<uint4>(v.low) & 0x7fffffffu, as_type<uint4>(v.high) & 0x7fffffffu);
    return max(max(m.x, m.y), max(m.z, m.w));
}

// The count of 15 thresholds strictly below x: halves the candidates four times in registers, with no branch or load.
inline uint below4(constant float *thresholds, float x) {
    float candidate[15];
    UNROLL for (uint j = 0; j < 15; j++) candidate[j] = thresholds[j];
    uint below = 0;
    UNROLL for (uint half_size = 8; half_size > 0; half_size /= 2) {
        const bool upper = x > candidate[half_size - 1];
        below += upper ? half_size : 0u;
        UNROLL for (uint j = 0; j + 1 < half_size; j++) candidate[j] = upper ? candidate[j + half_size] : candidate[j];
    }
    return below;
}

// The same among as many as codes of other widths have, less than 256: by halves, out of threadgroup memory.
inline uint below_in(threadgroup const float *thresholds, float x) {
    uint below = 0;
    UNROLL for (uint half_size = 64; half_size > 0; half_size /= 2)
        if (half_size < size_of(CODES)) below += x > thresholds[below + half_size - 1] ? half_size : 0u;
    return below;
}

// Blocks of a power of two from 8 to 4096. A threadgroup takes QUANTIZE_TILE elements, whole blocks of them, and a
// thread 8, which it loads and writes at once; a block's maximum is gathered across lanes, then across simdgroups.
[[host_name("quantize")]] [[kernel, max_total_threads_per_threadgroup(QUANTIZE_THREADS)]]
void quantize(constant quantize_args &args [[buffer(0)]],
              device const uchar *x [[buffer(1)]],
              constant kernel_codebook &code [[buffer(2)]],
              device uchar *codes [[buffer(3)]],
              device float *absmax [[buffer(4)]],
              uint group [[threadgroup_position_in_grid]],
              uint groups [[threadgroups_per_grid]],
              uint place [[thread_index_in_threadgroup]],
              uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    threadgroup float thresholds[256];
    threadgroup uchar order[256], start[2 * CODES_STARTS];
    threadgroup uint largest[QUANTIZE_THREADS / 32];

    for (uint j = place; j < code.size; j += QUANTIZE_THREADS) order[j] = code.order[j];
    if (CODES != STORE_CODE4)
        for (uint j = place; j < code.size; j += QUANTIZE_THREADS) thresholds[j] = code.thresholds[j];
    if (CODES == STORE_CODE8) {
        for (uint j = place; j < 2 * CODES_STARTS; j += QUANTIZE_THREADS) start[j] = code.start[j];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const ulong count = count_of(args.count_low, args.count_high);
    const uint lanes = args.block / 8; // threads that share a block
    for (ulong tile = ulong(group) * QUANTIZE_TILE; tile < count; tile += ulong(groups) * QUANTIZE_TILE) {
        const ulong i = tile + place * 8;
        const uint valid = within(i, count);
        // What is missing counts as zero, which also pads the last byte of codes with the code of zero.
        octet v = valid == 8 ? load8(x, FROM, i) : load_some(x, FROM, i, valid);

        uint m = largest_of(v);
        for (uint step = 1; step < min(lanes, 32u); step *= 2) m = max(m, simd_shuffle_xor(m, ushort(step)));
        if (lanes > 32) {
            if ((place & 31) == 0) largest[simdgroup] = m;
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const uint first = place / lanes * lanes / 32;
            for (uint j = 0; j < lanes / 32; j++) m = max(m, largest[first + j]);
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        float scale = as_type<float>(m);
        if (valid > 0 && GIVEN) scale = absmax[i >> args.shift];
        else if (valid > 0 && place % lanes == 0) absmax[i >> args.shift] = scale;

        const inverse by = inverse_of(scale);
        v.low = scaled_by(v.low, by);
        v.high = scaled_by(v.high, by);
        if (CODES == STORE_CODE4) {
            uint word = 0;
            UNROLL for (uint j = 0; j < 8; j++) {
                const uint below = below4(code.thresholds, j < 4 ? v.low[j] : v.high[j - 4]);
                word |= uint(order[below]) << (4 * (j ^ 1u));
            }
            if (valid == 8) *(device uint *)(codes + i / 2) = word;
            else for (uint j = 0; j < (valid + 1) / 2; j++) codes[i / 2 + j] = uchar(word >> (8 * j));
        } else if (CODES != STORE_CODE8) {
            const uint bits = bits_of(CODES);
            ulong string = 0; // of bits, as they come
            UNROLL for (uint j = 0; j < 8; j++)
                string = string << bits | order[below_in(thresholds, j < 4 ? v.low[j] : v.high[j - 4])];
            device uchar *to = codes + i / 8 * bits;
            for (uint j = 0; j < (valid * bits + 7) / 8; j++) to[j] = uchar(string >> (8 * (bits - 1 - j)));
        } else {
            uint2 words = uint2(0u);
            UNROLL for (uint j = 0; j < 4; j++) {
                words.x |= uint(order[below8(thresholds, start, code.steps, v.low[j])]) << (8 * j);
                words.y |= uint(order[below8(thresholds, start, code.steps, v.high[j])]) << (8 * j);
            }
            if (valid == 8) *(device uint2 *)(codes + i) = words;
            else for (uint j = 0; j < valid; j++) codes[i + j] = uchar(words[j / 4] >> (8 * (j & 3)));
        }
    }
}

// 8-bit codes with blocks of any other size: a simdgroup a block, an element a lane, read twice.
[[host_name("quantize_odd")]] [[kernel, max_total_threads_per_threadgroup(QUANTIZE_THREADS)]]
void quantize_odd(constant quantize_args &args [[buffer(0)]],
                  device const uchar *x [[buffer(1)]],
                  constant kernel_codebook &code [[buffer(2)]],
                  device uchar *codes [[buffer(3)]],
                  device float *absmax [[buffer(4)]],
                  uint group [[threadgroup_position_in_grid]],
                  uint groups [[threadgroups_per_grid]],
                  uint place [[thread_index_in_threadgroup]],
                  uint simdgroup [[simdgroup_index_in_threadgroup]],
                  uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float thresholds[256];
    threadgroup uchar order[256], start[2 * CODES_STARTS];
    for (uint j = place; j < 256; j += QUANTIZE_THREADS) {
        thresholds[j] = code.thresholds[j];
        order[j] = code.order[j];
    }
    for (uint j = place; j < 2 * CODES_STARTS; j += QUANTIZE_THREADS) start[j] = code.start[j];
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const ulong count = count_of(args.count_low, args.count_high);
    const uint simdgroups = QUANTIZE_THREADS / 32;
    ulong block = ulong(group) * simdgroups + simdgroup;
    for (; block * args.block < count; block += ulong(groups) * simdgroups) {
        const ulong first = block * args.block, end = min(first + args.block, count);
        uint m = 0;
        for (ulong i = first + lane; i < end; i += 32) m = max(m, magnitude_of(load(x, FROM, i)));
        m = simd_max(m);
        float scale = as_type<float>(m);
        if (GIVEN) scale = absmax[block];
        else if (lane == 0) absmax[block] = scale;

        const inverse by = inverse_of(scale);
        for (ulong i = first + lane; i < end; i += 32) {
            const float scaled = scaled_by(load(x, FROM, i), by);
            codes[i] = order[below8(thresholds, start, code.steps, scaled)];
        }
    }
}
