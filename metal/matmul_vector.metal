// y = x · wᵀ + bias for a few rows of x. Bound by reading w, so w is read, and decoded, once for each VECTORS rows of
// x, 16 codes a load, and a simdgroup takes ROWS rows of w, so that x, which stays in the cache, is loaded once for
// them.

constant uint X [[function_constant(0)]];      // of x and y: STORE_F32, STORE_F16 or STORE_BF16
constant uint W [[function_constant(1)]];      // any STORE_
constant uint SCALES [[function_constant(2)]]; // SCALES_…
constant uint WHOLE [[function_constant(3)]];  // WHOLE_…
constant uint BIAS [[function_constant(4)]];
constant uint PAIRS
    [[function_constant(5)]]; // whether a byte of 4-bit codes is looked up at once, for its two values; WHOLE is not 0
constant uint OFFSETS [[function_constant(6)]]; // OFFSETS_…

// A value for every code, or two for every byte. Single values fit four times, a slice for each simdgroup: on an M4, a
// slice costs 9 % over no codebook at all, a table that simdgroups share 49 %, one in constant memory 30 to 56 %, one
// of bytes 85 % (trymirai/uzu, pull request 448). Where shifts are slow, at a quarter of the rate on M1 and M2, half of
// them may be worth that.
inline void fill_table(threadgroup float *values, device const kernel_codebook *code, uint place, uint simdgroup,
                       uint lane) {
    if (PAIRS != 0) {
        threadgroup float2 *pairs = (threadgroup float2 *)values;
        for (uint byte = place; byte < 256; byte += VECTOR_THREADS) // the first of a byte's two codes is the high one
            pairs[byte] = float2(code->values[byte >> 4], code->values[byte & 15u]);
        return;
    }
    const uint size = size_of(W);
    threadgroup float *slice = OWN_SLICE(values + simdgroup * size, size);
    for (uint j = lane; j < size; j += 32) slice[j] = code->values[j];
}

inline octet pairs8(threadgroup const float *values, uint codes) {
    threadgroup const float2 *of = (threadgroup const float2 *)values;
    return octet{float4(of[codes & 255u], of[codes >> 8 & 255u]), float4(of[codes >> 16 & 255u], of[codes >> 24])};
}

// A lane's 16 codes: 8 bytes in xy, or 16; or of other widths than 4 and 8, 8 codes in xy and 8 in zw as codes8 gives
// them, out of as many loads of two bytes as a code has bits.
inline uint4 codes16(thread const weights &w, ulong i) {
    if (w.store == STORE_CODE4) return uint4(*(device const uint2 *)(w.data + i / 2), uint2(0u));
    if (w.store == STORE_CODE8) return *(device const uint4 *)(w.data + i);
    const uint bits = bits_of(w.store);
    device const ushort *pairs = (device const ushort *)(w.data + i / 8 * bits);
    uint2 first = uint2(0u), second = uint2(0u);
    UNROLL for (uint j = 0; j < 14; j++) {
        if (j >= 2 * bits) continue;
        const uint byte = uint(pairs[j / 2]) >> (8 * (j & 1)) & 255u;
        if (j < bits) first = append_byte(first, bits, j, byte);
        else second = append_byte(second, bits, j - bits, byte);
    }
    return uint4(first, second);
}

// Those of its 8 elements from 8 × part on, as codes8 gives them.
inline uint2 part_of(uint4 codes, uint part) {
    if (W == STORE_CODE4) return uint2(part == 0 ? codes.x : codes.y, 0u);
    return part == 0 ? codes.xy : codes.zw;
}

// Eight of the 16 values, before their scale.
inline octet weights8(thread const weights &w, threadgroup const float *values, uint4 codes, uint part) {
    if (PAIRS != 0) return pairs8(values, part == 0 ? codes.x : codes.y);
    return values8(w, part_of(codes, part));
}

template <uint VECTORS, uint ROWS>
[[kernel, max_total_threads_per_threadgroup(VECTOR_THREADS)]]
void matmul_vector(constant matmul_args &args [[buffer(0)]],
                   device const uchar *x [[buffer(1)]],
                   device const uchar *data [[buffer(2)]],
                   device const uchar *absmax [[buffer(3)]],
                   device const uchar *nested_absmax [[buffer(4)]],
                   device const kernel_codebook *code [[buffer(5)]],
                   device const kernel_codebook *nested_code [[buffer(6)]],
                   device const float *bias [[buffer(7)]],
                   device uchar *y [[buffer(8)]],
                   device const uchar *offsets [[buffer(9)]],
                   device const float *nested_offsets [[buffer(10)]],
                   device const uchar *offsets_absmax [[buffer(11)]],
                   uint2 group [[threadgroup_position_in_grid]],
                   uint place [[thread_index_in_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint STEP = VECTORS <= 4 ? 8 : 4; // elements at once
    threadgroup float values[VECTOR_THREADS / 32 * 256];
    threadgroup float nested_values[256];
    if (is_coded(W)) {
        fill_table(values, code, place, simdgroup, lane);
        if (is_nested(SCALES))
            for (uint j = place; j < 256; j += VECTOR_THREADS) nested_values[j] = nested_code->values[j];
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    threadgroup const float *slice = is_coded(W) && PAIRS == 0 ? values + simdgroup * size_of(W) : values;
    const weights w = {W, SCALES, OFFSETS, args.scales, data, absmax, nested_absmax,
                       nested_offsets, offset_of_all(SCALES, nested_offsets),
                       offsets, offsets_absmax, slice, nested_values};
    const uint n0 = (group.x * (VECTOR_THREADS / 32) + simdgroup) * ROWS, m0 = group.y * VECTORS;
    if (n0 >= args.n) return;

    // Past the last row of either matrix the last one is read again; its sums are not written. A row's first block and
    // its place in it are kept, so that the loop counts blocks in 32 bits.
    ulong row[ROWS];
    uint block[ROWS], rest[ROWS];
    UNROLL for (uint r = 0; r < ROWS; r++) {
        row[r] = ulong(min(n0 + r, args.n - 1)) * args.k;
        block[r] = WHOLE == WHOLE_ROWS ? min(n0 + r, args.n - 1) : WHOLE != 0 ? uint(row[r] >> args.scales.shift) : 0u;
        rest[r] = WHOLE == WHOLE_BLOCKS && is_coded(W) ? uint(row[r]) & (args.scales.block - 1) : 0u;
    }
    ulong vector[VECTORS];
    UNROLL for (uint v = 0; v < VECTORS; v++) vector[v] = ulong(min(m0 + v, args.m - 1)) * args.k;

    float sum[ROWS][VECTORS];
    UNROLL for (uint r = 0; r < ROWS; r++)
        UNROLL for (uint v = 0; v < VECTORS; v++) sum[r][v] = 0.0f;

    const octet ones = {float4(1.0f), float4(1.0f)};
    for (uint k = lane * VECTOR_CHUNK; k < args.k; k += 32 * VECTOR_CHUNK) {
        uint4 codes[ROWS];
        float scale[ROWS], offset[ROWS];
        UNROLL for (uint r = 0; r < ROWS; r++) {
            const bool coded = WHOLE != 0 && is_coded(W);
            codes[r] = coded ? codes16(w, row[r] + k) : uint4(0u);
            const uint of = coded ? block[r] + ((rest[r] + k) >> args.scales.shift) : 0u;
            scale[r] = coded ? scale_of(w, of) : 1.0f;
            offset[r] = coded && OFFSETS != OFFSETS_NONE ? offset_of(w, of) : 0.0f;
        }
        UNROLL for (uint part = 0; part < VECTOR_CHUNK / STEP; part++) {
            const uint at = k + STEP * part, valid = within(at, args.k);
            if (VECTORS <= 4) { // x is kept while w passes by
                octet xs[VECTORS];
                UNROLL for (uint v = 0; v < VECTORS; v++)
                    xs[v] = WHOLE != 0 ? load8(x, X, vector[v] + at) : load_some(x, X, vector[v] + at, valid);
                UNROLL for (uint r = 0; r < ROWS; r++) {
                    octet ws;
                    if (WHOLE == 0) ws = gather8(w, row[r] + at, valid);
                    else if (!is_coded(W)) ws = load8(data, W, row[r] + at);
                    else ws = weights8(w, values, codes[r], part);
                    UNROLL for (uint v = 0; v < VECTORS; v++) {
                        sum[r][v] = fma(scale[r], add_dot8(0.0f, ws, xs[v]), sum[r][v]);
                        if (OFFSETS != OFFSETS_NONE) sum[r][v] = fma(offset[r], add_dot8(0.0f, ones, xs[v]), sum[r][v]);
                    }
                }
                continue;
            }
            // The other way round, four elements at once and scaled: so many sums fit into registers.
            float4 ws[ROWS];
            UNROLL for (uint r = 0; r < ROWS; r++) {
                if (WHOLE == 0) ws[r] = gather8(w, row[r] + at, min(valid, 4u)).low;
                else if (!is_coded(W)) ws[r] = load4(data, W, row[r] + at);
                else if (part % 2 == 0) ws[r] = weights8(w, values, codes[r], part / 2).low;
                else ws[r] = weights8(w, values, codes[r], part / 2).high;
                ws[r] *= scale[r];
                if (OFFSETS != OFFSETS_NONE) ws[r] += offset[r];
            }
            UNROLL for (uint v = 0; v < VECTORS; v++) {
                float4 xs;
                if (WHOLE != 0) xs = load4(x, X, vector[v] + at);
                else xs = load_some(x, X, vector[v] + at, min(valid, 4u)).low;
                UNROLL for (uint r = 0; r < ROWS; r++) sum[r][v] = add_dot4(sum[r][v], ws[r], xs);
            }
        }
    }

    UNROLL for (uint r = 0; r < ROWS; r++) {
        UNROLL for (uint v = 0; v < VECTORS; v++) {
            const float total = simd_sum(sum[r][v]);
            const uint n = n0 + r, m = m0 + v;
            if (lane == 0 && n < args.n && m < args.m)
                save(y, X, ulong(m) * args.n + n, BIAS != 0 ? total + bias[n] : total);
        }
    }
}

template [[host_name("matmul_vector_1")]] [[kernel]] decltype(matmul_vector<1, 4>) matmul_vector<1, 4>;
template [[host_name("matmul_vector_1_wide")]] [[kernel]] decltype(matmul_vector<1, 8>) matmul_vector<1, 8>;
template [[host_name("matmul_vector_2")]] [[kernel]] decltype(matmul_vector<2, 4>) matmul_vector<2, 4>;
template [[host_name("matmul_vector_4")]] [[kernel]] decltype(matmul_vector<4, 4>) matmul_vector<4, 4>;
template [[host_name("matmul_vector_8")]] [[kernel]] decltype(matmul_vector<8, 4>) matmul_vector<8, 4>;
