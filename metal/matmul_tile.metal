// y = x · wᵀ + bias for many rows of x: tiles of y, multiplied out of threadgroup memory by simdgroup matrices.
//
// Tiles are fp32: on M1 to M4 the 8×8 product runs as fast as in half precision, weights keep their bits, and no range
// is lost with bf16. A threadgroup decodes a tile of w once for its ROWS rows of x: a square of them, or 16, which few
// rows fill. Where y has too few tiles to fill the GPU, the host splits k over the grid's third dimension, and
// matmul_sum adds the parts up in their order.

constant uint X [[function_constant(0)]];      // of x: STORE_F32, STORE_F16 or STORE_BF16
constant uint W [[function_constant(1)]];      // any STORE_
constant uint SCALES [[function_constant(2)]]; // SCALES_…
constant uint WHOLE [[function_constant(3)]];  // WHOLE_…
constant uint BIAS [[function_constant(4)]];
constant uint Y [[function_constant(5)]];      // of y: as x, or STORE_F32 where it holds parts of a split
constant uint OFFSETS [[function_constant(6)]]; // OFFSETS_…

// Eight elements of a row of x from k on, and zeros past `end` or where the row isn't there.
inline octet bring_x(device const uchar *x, bool there, ulong row, uint k, uint end) {
    const uint valid = there ? within(k, end) : 0u;
    if (WHOLE == 0) return load_some(x, X, row + k, valid);
    if (valid > 0) return load8(x, X, row + k);
    return octet{float4(0.0f), float4(0.0f)};
}

// The same of w. The row starts in `block`, at its element `rest`.
inline octet bring_w(thread const weights &w, bool there, ulong row, uint block, uint rest, uint k, uint end) {
    const uint valid = there ? within(k, end) : 0u;
    if (WHOLE == 0) return gather8(w, row + k, valid);
    if (valid == 0) return octet{float4(0.0f), float4(0.0f)};
    if (!is_coded(W)) return load8(w.data, W, row + k);
    return decoded8(w, values8(w, codes8(w, row + k)), block + ((rest + k) >> w.scales.shift));
}

template <uint ROWS, uint SIDE>
[[kernel, max_total_threads_per_threadgroup(TILE_THREADS)]]
void matmul_tile(constant matmul_args &args [[buffer(0)]],
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
                 uint3 group [[threadgroup_position_in_grid]],
                 uint place [[thread_index_in_threadgroup]],
                 uint simdgroup [[simdgroup_index_in_threadgroup]],
                 uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint DEPTH = TILE_THREADS * 8 / SIDE; // of k a step: a thread brings 8 elements of w, and up to 8 of x
    constexpr uint STRIDE = DEPTH + 4;              // 16 bytes of padding spread the rows over the banks
    constexpr uint DOWN = ROWS < 32 ? 1 : 2, ACROSS = 4 / DOWN; // simdgroups
    constexpr uint HEIGHT = ROWS / DOWN, WIDTH = SIDE / ACROSS; // of a simdgroup's part
    constexpr uint HIGH = HEIGHT / 8, WIDE = WIDTH / 8;
    threadgroup float xs[ROWS * STRIDE], ws[SIDE * STRIDE];
    threadgroup float values[256], nested_values[256];

    // Up to 64 values fit four times, a slice for each simdgroup; more are shared.
    const uint size = is_coded(W) ? size_of(W) : 0u;
    threadgroup float *slice = values + (size <= 64 ? simdgroup * size : 0u);
    if (size <= 64) for (uint j = lane; j < size; j += 32) slice[j] = code->values[j];
    else for (uint j = place; j < size; j += TILE_THREADS) values[j] = code->values[j];
    if (is_nested(SCALES))
        for (uint j = place; j < 256; j += TILE_THREADS) nested_values[j] = nested_code->values[j];
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // What this thread brings: 8 elements of a row of each tile.
    const weights w = {W, SCALES, OFFSETS, args.scales, data, absmax, nested_absmax,
                       nested_offsets, offset_of_all(SCALES, nested_offsets),
                       offsets, offsets_absmax, slice, nested_values};
    const uint tile_row = place / (DEPTH / 8), tile_k = place % (DEPTH / 8) * 8;
    const uint m0 = group.y * ROWS, n0 = group.x * SIDE;
    const bool has_x = tile_row < ROWS && m0 + tile_row < args.m, has_w = n0 + tile_row < args.n;
    const ulong x_row = ulong(m0 + tile_row) * args.k, w_row = ulong(n0 + tile_row) * args.k;
    // The row's first block, and its place in it.
    const uint block = WHOLE == WHOLE_ROWS ? n0 + tile_row : WHOLE != 0 ? uint(w_row >> args.scales.shift) : 0u;
    const uint rest = WHOLE == WHOLE_BLOCKS && is_coded(W) ? uint(w_row) & (args.scales.block - 1) : 0u;
    const uint first = group.z * args.split, end = min(args.k, first + args.split);

    const uint part_m = simdgroup / ACROSS * HEIGHT, part_n = simdgroup % ACROSS * WIDTH;
    simdgroup_float8x8 sum[HIGH][WIDE];
    UNROLL for (uint i = 0; i < HIGH; i++)
        UNROLL for (uint j = 0; j < WIDE; j++) sum[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);

    // The next step's elements are under way while this one's are multiplied.
    threadgroup float4 *x_tile = (threadgroup float4 *)(xs + min(tile_row, ROWS - 1) * STRIDE + tile_k);
    threadgroup float4 *w_tile = (threadgroup float4 *)(ws + tile_row * STRIDE + tile_k);
    octet x8 = bring_x(x, has_x, x_row, first + tile_k, end);
    octet w8 = bring_w(w, has_w, w_row, block, rest, first + tile_k, end);
    for (uint step = first; step < end; step += DEPTH) {
        threadgroup_barrier(mem_flags::mem_threadgroup); // the last step's tiles have been read
        if (tile_row < ROWS) {
            x_tile[0] = x8.low;
            x_tile[1] = x8.high;
        }
        w_tile[0] = w8.low;
        w_tile[1] = w8.high;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        x8 = bring_x(x, has_x, x_row, step + DEPTH + tile_k, end);
        w8 = bring_w(w, has_w, w_row, block, rest, step + DEPTH + tile_k, end);

        UNROLL for (uint depth = 0; depth < DEPTH; depth += 8) {
            simdgroup_float8x8 a[HIGH], b[WIDE];
            UNROLL for (uint i = 0; i < HIGH; i++) simdgroup_load(a[i], xs + (part_m + 8 * i) * STRIDE + depth, STRIDE);
            UNROLL for (uint j = 0; j < WIDE; j++)
                simdgroup_load(b[j], ws + (part_n + 8 * j) * STRIDE + depth, STRIDE, ulong2(0, 0), true);
            UNROLL for (uint i = 0; i < HIGH; i++)
                UNROLL for (uint j = 0; j < WIDE; j++)
                    simdgroup_multiply_accumulate(sum[i][j], a[i], b[j], sum[i][j]);
        }
    }

    // A simdgroup writes 8 rows at a time by way of threadgroup memory, where it can round, guard and add the bias.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup float *strip = ws + simdgroup * 8 * WIDTH;
    device uchar *part = y + ulong(group.z) * args.m * args.n * 4;
    UNROLL for (uint i = 0; i < HIGH; i++) {
        UNROLL for (uint j = 0; j < WIDE; j++) simdgroup_store(sum[i][j], strip + 8 * j, WIDTH);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint e = lane; e < 8 * WIDTH; e += 32) {
            const uint m = m0 + part_m + 8 * i + e / WIDTH, n = n0 + part_n + e % WIDTH;
            if (m < args.m && n < args.n)
                save(part, Y, ulong(m) * args.n + n, BIAS != 0 ? strip[e] + bias[n] : strip[e]);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

template [[host_name("matmul_tile_16")]] [[kernel]] decltype(matmul_tile<16, 64>) matmul_tile<16, 64>;
template [[host_name("matmul_tile_32")]] [[kernel]] decltype(matmul_tile<32, 32>) matmul_tile<32, 32>;
template [[host_name("matmul_tile_64")]] [[kernel]] decltype(matmul_tile<64, 64>) matmul_tile<64, 64>;

// Adds up the parts of a split.
[[host_name("matmul_sum")]] [[kernel, max_total_threads_per_threadgroup(SUM_THREADS)]]
void matmul_sum(constant sum_args &args [[buffer(0)]],
                device const float *parts [[buffer(1)]],
                device const float *bias [[buffer(2)]],
                device uchar *y [[buffer(3)]],
                uint2 place [[thread_position_in_grid]]) {
    if (place.x >= args.n || place.y >= args.m) return;
    const ulong i = ulong(place.y) * args.n + place.x;
    float sum = BIAS != 0 ? bias[place.x] : 0.0f;
    for (uint s = 0; s < args.splits; s++) sum += parts[ulong(s) * args.m * args.n + i];
    save(y, X, i, sum);
}
