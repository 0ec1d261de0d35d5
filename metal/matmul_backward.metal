// y[m, k] = Σn a[m, n] · w[n, k]: the gradients of y = x · wᵀ. Square tiles of y as in matmul_tile.metal, but here w is
// read along the rows that y has too, so the tile of w needs no transposing, and that of a does where it is stored as
// a[n, m]. A threadgroup decodes a tile of w once for its SIDE rows of y.

constant uint A [[function_constant(0)]];       // of a: STORE_F32, STORE_F16 or STORE_BF16
constant uint W [[function_constant(1)]];       // any STORE_
constant uint SCALES [[function_constant(2)]];  // SCALES_…
constant uint WHOLE_A [[function_constant(3)]]; // whether the rows that are stored are multiples of 8
constant uint WHOLE_W [[function_constant(4)]]; // WHOLE_… for multiples of 8
constant uint TRANSPOSED [[function_constant(5)]];
constant uint Y [[function_constant(6)]]; // of y, or STORE_F32 where it holds parts of a split
constant uint OFFSETS [[function_constant(7)]]; // OFFSETS_…

// `valid` elements of a from i on, and zeros up to 8.
inline octet bring_a(device const uchar *a, ulong i, uint valid) {
    if (WHOLE_A == 0) return load_some(a, A, i, valid);
    if (valid > 0) return load8(a, A, i);
    return octet{float4(0.0f), float4(0.0f)};
}

// The same of w, whose row that is.
inline octet bring_w(thread const weights &w, uint row, ulong i, uint valid) {
    if (WHOLE_W == 0) return gather8(w, i, valid);
    if (valid == 0) return octet{float4(0.0f), float4(0.0f)};
    if (!is_coded(W)) return load8(w.data, W, i);
    return decoded8(w, values8(w, codes8(w, i)), WHOLE_W == WHOLE_ROWS ? row : block_of(w, i));
}

template <uint SIDE>
[[kernel, max_total_threads_per_threadgroup(TILE_THREADS)]]
void matmul_backward(constant matmul_args &args [[buffer(0)]],
                     device const uchar *a [[buffer(1)]],
                     device const uchar *data [[buffer(2)]],
                     device const uchar *absmax [[buffer(3)]],
                     device const uchar *nested_absmax [[buffer(4)]],
                     device const kernel_codebook *code [[buffer(5)]],
                     device const kernel_codebook *nested_code [[buffer(6)]],
                     device uchar *y [[buffer(7)]],
                     device const uchar *offsets [[buffer(8)]],
                     device const float *nested_offsets [[buffer(9)]],
                     device const uchar *offsets_absmax [[buffer(10)]],
                     uint3 group [[threadgroup_position_in_grid]],
                     uint place [[thread_index_in_threadgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint DEPTH = TILE_THREADS * 8 / SIDE; // of n a step: a thread brings 8 elements of a and 8 of w
    constexpr uint DEEP = DEPTH + 4, WIDE = SIDE + 4; // rows of tiles: 16 bytes of padding spread them over the banks
    constexpr uint QUARTER = SIDE / 2;                // a simdgroup's part of the tile, squared
    constexpr uint BLOCKS = QUARTER / 8;
    threadgroup float as[SIDE * DEEP > DEPTH * WIDE ? SIDE * DEEP : DEPTH * WIDE], ws[DEPTH * WIDE];
    threadgroup float values[256], nested_values[256];

    // Up to 64 values fit four times, a slice for each simdgroup; more are shared.
    const uint size = is_coded(W) ? size_of(W) : 0u;
    threadgroup float *slice = values + (size <= 64 ? simdgroup * size : 0u);
    if (size <= 64) for (uint j = lane; j < size; j += 32) slice[j] = code->values[j];
    else for (uint j = place; j < size; j += TILE_THREADS) values[j] = code->values[j];
    if (is_nested(SCALES))
        for (uint j = place; j < 256; j += TILE_THREADS) nested_values[j] = nested_code->values[j];
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // What this thread brings: 8 elements of a row of each tile. Tiles of w, and of a transposed, have DEPTH rows.
    const weights w = {W, SCALES, OFFSETS, args.scales, data, absmax, nested_absmax,
                       nested_offsets, offset_of_all(SCALES, nested_offsets),
                       offsets, offsets_absmax, slice, nested_values};
    const uint deep_row = place / (DEPTH / 8), deep_at = place % (DEPTH / 8) * 8;
    const uint wide_row = place / (SIDE / 8), wide_at = place % (SIDE / 8) * 8;
    const uint m0 = group.y * SIDE, k0 = group.x * SIDE;
    const uint valid_m = within(m0 + wide_at, args.m), valid_k = within(k0 + wide_at, args.k);
    const bool has_m = m0 + deep_row < args.m;
    const ulong a_row = ulong(m0 + deep_row) * args.n;
    const uint first = group.z * args.split, end = min(args.n, first + args.split);

    const uint quarter_m = simdgroup / 2 * QUARTER, quarter_k = simdgroup % 2 * QUARTER;
    simdgroup_float8x8 sum[BLOCKS][BLOCKS];
    UNROLL for (uint i = 0; i < BLOCKS; i++)
        UNROLL for (uint j = 0; j < BLOCKS; j++) sum[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);

    const uint a_place = TRANSPOSED != 0 ? wide_row * WIDE + wide_at : deep_row * DEEP + deep_at;
    threadgroup float4 *a_tile = (threadgroup float4 *)(as + a_place);
    threadgroup float4 *w_tile = (threadgroup float4 *)(ws + wide_row * WIDE + wide_at);
    for (uint step = first; step < end; step += DEPTH) {
        const uint n = step + wide_row;
        octet a8;
        if (TRANSPOSED != 0) a8 = bring_a(a, ulong(n) * args.m + m0 + wide_at, n < end ? valid_m : 0u);
        else a8 = bring_a(a, a_row + step + deep_at, has_m ? within(step + deep_at, end) : 0u);
        const octet w8 = bring_w(w, n, ulong(n) * args.k + k0 + wide_at, n < end ? valid_k : 0u);
        threadgroup_barrier(mem_flags::mem_threadgroup); // the last step's tiles have been read
        a_tile[0] = a8.low;
        a_tile[1] = a8.high;
        w_tile[0] = w8.low;
        w_tile[1] = w8.high;
        threadgroup_barrier(mem_flags::mem_threadgroup);

        UNROLL for (uint depth = 0; depth < DEPTH; depth += 8) {
            simdgroup_float8x8 of_a[BLOCKS], of_w[BLOCKS];
            UNROLL for (uint i = 0; i < BLOCKS; i++) {
                const uint row = quarter_m + 8 * i;
                if (TRANSPOSED != 0) simdgroup_load(of_a[i], as + depth * WIDE + row, WIDE, ulong2(0, 0), true);
                else simdgroup_load(of_a[i], as + row * DEEP + depth, DEEP);
                simdgroup_load(of_w[i], ws + depth * WIDE + quarter_k + 8 * i, WIDE);
            }
            UNROLL for (uint i = 0; i < BLOCKS; i++)
                UNROLL for (uint j = 0; j < BLOCKS; j++)
                    simdgroup_multiply_accumulate(sum[i][j], of_a[i], of_w[j], sum[i][j]);
        }
    }

    // A simdgroup writes 8 rows at a time by way of threadgroup memory, where it can round and guard.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup float *strip = as + simdgroup * 8 * QUARTER;
    device uchar *part = y + ulong(group.z) * args.m * args.k * 4;
    UNROLL for (uint i = 0; i < BLOCKS; i++) {
        UNROLL for (uint j = 0; j < BLOCKS; j++) simdgroup_store(sum[i][j], strip + 8 * j, QUARTER);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint e = lane; e < 8 * QUARTER; e += 32) {
            const uint m = m0 + quarter_m + 8 * i + e / QUARTER, k = k0 + quarter_k + e % QUARTER;
            if (m < args.m && k < args.k) save(part, Y, ulong(m) * args.k + k, strip[e]);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

template [[host_name("matmul_backward_32")]] [[kernel]] decltype(matmul_backward<32>) matmul_backward<32>;
template [[host_name("matmul_backward_64")]] [[kernel]] decltype(matmul_backward<64>) matmul_backward<64>;
