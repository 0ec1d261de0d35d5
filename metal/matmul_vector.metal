// y = x · wᵀ + bias for a few rows of x. Bound by reading w, so w is read once for each VECTORS rows of x, 16 codes a
// load, and a simdgroup takes 4 rows of w, so that x, which stays in the cache, is loaded once for 4.

constant uint X [[function_constant(0)]];      // of x and y: STORE_F32, STORE_F16 or STORE_BF16
constant uint W [[function_constant(1)]];      // any STORE_
constant uint NESTED [[function_constant(2)]]; // whether absmax holds codes
constant uint WHOLE [[function_constant(3)]];  // WHOLE_…
constant uint BIAS [[function_constant(4)]];

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

template <uint VECTORS>
[[kernel, max_total_threads_per_threadgroup(VECTOR_THREADS)]]
void matmul_vector(constant matmul_args &args [[buffer(0)]],
                   device const uchar *x [[buffer(1)]],
                   device const uchar *data [[buffer(2)]],
                   device const uchar *absmax [[buffer(3)]],
                   device const float *nested_absmax [[buffer(4)]],
                   device const kernel_codebook *code [[buffer(5)]],
                   device const kernel_codebook *nested_code [[buffer(6)]],
                   device const float *bias [[buffer(7)]],
                   device uchar *y [[buffer(8)]],
                   uint2 group [[threadgroup_position_in_grid]],
                   uint place [[thread_index_in_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint ROWS = VECTOR_COLUMNS / (VECTOR_THREADS / 32); // of w, a simdgroup
    threadgroup float values[VECTOR_THREADS / 32 * 256];
    threadgroup float nested_values[256];

    // A slice of the codebook for each simdgroup: on an M4, a slice costs 9 % over no codebook at all, a table that
    // simdgroups share 49 %, one in constant memory 30 to 56 % (trymirai/uzu, pull request 448).
    const uint size = W >= STORE_CODE ? size_of(W) : 0u;
    threadgroup float *slice = OWN_SLICE(values + simdgroup * size, size);
    if (W >= STORE_CODE) {
        for (uint j = lane; j < size; j += 32) slice[j] = code->values[j];
        if (NESTED != 0)
            for (uint j = place; j < 256; j += VECTOR_THREADS) nested_values[j] = nested_code->values[j];
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    const weights w = {W, NESTED != 0, args.scales, data, absmax, nested_absmax, slice, nested_values};
    const uint n0 = (group.x * (VECTOR_THREADS / 32) + simdgroup) * ROWS, m0 = group.y * VECTORS;
    if (n0 >= args.n) return;

    // Past the last row of either matrix the last one is read again; its sums are not written. A row's first block and
    // its place in it are kept, so that the loop counts blocks in 32 bits.
    ulong row[ROWS];
    uint block[ROWS], rest[ROWS];
    UNROLL for (uint r = 0; r < ROWS; r++) {
        row[r] = ulong(min(n0 + r, args.n - 1)) * args.k;
        block[r] = WHOLE == WHOLE_ROWS ? min(n0 + r, args.n - 1) : WHOLE != 0 ? uint(row[r] >> args.scales.shift) : 0u;
        rest[r] = WHOLE == WHOLE_BLOCKS && W >= STORE_CODE ? uint(row[r]) & (args.scales.block - 1) : 0u;
    }
    ulong vector[VECTORS];
    UNROLL for (uint v = 0; v < VECTORS; v++) vector[v] = ulong(min(m0 + v, args.m - 1)) * args.k;

    float sum[ROWS][VECTORS];
    UNROLL for (uint r = 0; r < ROWS; r++)
        UNROLL for (uint v = 0; v < VECTORS; v++) sum[r][v] = 0.0f;

    for (uint k = lane * VECTOR_CHUNK; k < args.k; k += 32 * VECTOR_CHUNK) {
        uint4 codes[ROWS];
        float scale[ROWS];
        UNROLL for (uint r = 0; r < ROWS; r++) {
            const bool coded = WHOLE != 0 && W >= STORE_CODE;
            codes[r] = coded ? codes16(w, row[r] + k) : uint4(0u);
            scale[r] = coded ? scale_of(w, block[r] + ((rest[r] + k) >> args.scales.shift)) : 1.0f;
        }
        UNROLL for (uint part = 0; part < VECTOR_CHUNK / 8; part++) {
            const uint at = k + 8 * part, valid = within(at, args.k);
            octet xs[VECTORS];
            UNROLL for (uint v = 0; v < VECTORS; v++)
                xs[v] = WHOLE != 0 ? load8(x, X, vector[v] + at) : load_some(x, X, vector[v] + at, valid);
            UNROLL for (uint r = 0; r < ROWS; r++) {
                octet ws;
                if (WHOLE == 0) ws = gather8(w, row[r] + at, valid);
                else if (W < STORE_CODE) ws = load8(data, W, row[r] + at);
                else ws = values8(w, part_of(codes[r], part));
                UNROLL for (uint v = 0; v < VECTORS; v++) sum[r][v] = fma(scale[r], add_dot8(0.0f, ws, xs[v]), sum[r][v]);
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

template [[host_name("matmul_vector_1")]] [[kernel]] decltype(matmul_vector<1>) matmul_vector<1>;
template [[host_name("matmul_vector_2")]] [[kernel]] decltype(matmul_vector<2>) matmul_vector<2>;
template [[host_name("matmul_vector_4")]] [[kernel]] decltype(matmul_vector<4>) matmul_vector<4>;
