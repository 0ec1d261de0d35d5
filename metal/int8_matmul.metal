// LLM.int8()'s products. Products of codes are added up in fp32, on the hardware's fastest path, as long as that is
// exact: up to 2^24, which 1024 products of at most 2^14 don't pass. Then they go into int32.

constant uint Y [[function_constant(0)]];        // STORE_I32: the sums, else what they stand for as any float
constant uint OUTLIERS [[function_constant(1)]]; // whether a list of columns of x is added in floating point
constant uint X [[function_constant(2)]];        // of x: STORE_F32, STORE_F16 or STORE_BF16
constant uint BIAS [[function_constant(3)]];
constant uint WHOLE [[function_constant(4)]];    // whether k is a multiple of VECTOR_CHUNK

constant uint EXACT = 1024; // products whose sum fp32 holds

// Each step is rounded by itself, as bitsandbytes and the CPU do.
inline void put(device uchar *y, ulong i, int sum, float added, device const float *row_stats,
                device const float *column_stats, device const float *bias, uint m, uint n) {
    if (Y == STORE_I32) {
        ((device int *)y)[i] = sum;
        return;
    }
    float value = float(sum) * (row_stats[m] * column_stats[n]);
    value *= 6.2000124e-5f; // 1 / 127²
    if (OUTLIERS != 0) value += added;
    if (BIAS != 0) value += bias[n];
    save(y, Y, i, value);
}

inline float4 widen(uint codes) { return float4(as_type<char4>(codes)); }

// `count` codes from any i on, then zeros.
inline octet some_codes(device const char *codes, ulong i, uint count) {
    octet v = {float4(0.0f), float4(0.0f)};
    UNROLL for (uint j = 0; j < 4; j++) {
        if (j < count) v.low[j] = float(codes[i + j]);
        if (j + 4 < count) v.high[j] = float(codes[i + j + 4]);
    }
    return v;
}

inline octet eight_codes(device const char *codes, ulong i, uint count) {
    if (WHOLE == 0) return some_codes(codes, i, count);
    const uint2 pair = *(device const uint2 *)(codes + i);
    return octet{widen(pair.x), widen(pair.y)};
}

// ── A few rows of a ─────────────────────────────────────────────────────────────────────────────────────────────────

// As matmul_vector: bound by reading b, 4 rows of it a simdgroup, 16 codes a lane.
template <uint VECTORS>
[[kernel, max_total_threads_per_threadgroup(VECTOR_THREADS)]]
void int8_vector(constant int8_matmul_args &args [[buffer(0)]],
                 device const char *a [[buffer(1)]],
                 device const char *b [[buffer(2)]],
                 device const float *row_stats [[buffer(3)]],
                 device const float *column_stats [[buffer(4)]],
                 device const uchar *x [[buffer(5)]],
                 device const int *outliers [[buffer(6)]],
                 device const float *bias [[buffer(7)]],
                 device uchar *y [[buffer(8)]],
                 uint2 group [[threadgroup_position_in_grid]],
                 uint simdgroup [[simdgroup_index_in_threadgroup]],
                 uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint ROWS = VECTOR_COLUMNS / (VECTOR_THREADS / 32); // of b, a simdgroup
    const uint n0 = (group.x * (VECTOR_THREADS / 32) + simdgroup) * ROWS, m0 = group.y * VECTORS;
    if (n0 >= args.n) return;

    // Past the last row of either matrix the last one is read again; its sums are not written.
    ulong row[ROWS], vector[VECTORS];
    UNROLL for (uint r = 0; r < ROWS; r++) row[r] = ulong(min(n0 + r, args.n - 1)) * args.k;
    UNROLL for (uint v = 0; v < VECTORS; v++) vector[v] = ulong(min(m0 + v, args.m - 1)) * args.k;

    int sum[ROWS][VECTORS];
    float part[ROWS][VECTORS], added[ROWS][VECTORS];
    UNROLL for (uint r = 0; r < ROWS; r++)
        UNROLL for (uint v = 0; v < VECTORS; v++) {
            sum[r][v] = 0;
            part[r][v] = added[r][v] = 0.0f;
        }

    uint parts = 0; // chunks since the last step into int32
    for (uint k = lane * VECTOR_CHUNK; k < args.k; k += 32 * VECTOR_CHUNK) {
        for (uint at = k; at < k + VECTOR_CHUNK; at += 8) {
            const uint valid = within(at, args.k);
            octet as[VECTORS];
            UNROLL for (uint v = 0; v < VECTORS; v++) as[v] = eight_codes(a, vector[v] + at, valid);
            UNROLL for (uint r = 0; r < ROWS; r++) {
                const octet bs = eight_codes(b, row[r] + at, valid);
                UNROLL for (uint v = 0; v < VECTORS; v++) part[r][v] = add_dot8(part[r][v], as[v], bs);
            }
        }
        if (++parts < EXACT / VECTOR_CHUNK) continue;
        parts = 0;
        UNROLL for (uint r = 0; r < ROWS; r++)
            UNROLL for (uint v = 0; v < VECTORS; v++) {
                sum[r][v] += int(part[r][v]);
                part[r][v] = 0.0f;
            }
    }

    if (OUTLIERS != 0) {
        for (uint o = lane; o < args.k; o += 32) {
            const uint c = uint(outliers[o]); // past the list's end -1, which is no column either
            if (c >= args.k) break;
            UNROLL for (uint r = 0; r < ROWS; r++) {
                const float w = int8_weight(b[row[r] + c], column_stats[min(n0 + r, args.n - 1)]);
                UNROLL for (uint v = 0; v < VECTORS; v++) added[r][v] += w * load(x, X, vector[v] + c);
            }
        }
    }

    UNROLL for (uint r = 0; r < ROWS; r++) {
        UNROLL for (uint v = 0; v < VECTORS; v++) {
            const int total = simd_sum(sum[r][v] + int(part[r][v]));
            const float all_added = OUTLIERS != 0 ? simd_sum(added[r][v]) : 0.0f;
            const uint n = n0 + r, m = m0 + v;
            if (lane == 0 && n < args.n && m < args.m)
                put(y, ulong(m) * args.n + n, total, all_added, row_stats, column_stats, bias, m, n);
        }
    }
}

template [[host_name("int8_vector_1")]] [[kernel]] decltype(int8_vector<1>) int8_vector<1>;
template [[host_name("int8_vector_2")]] [[kernel]] decltype(int8_vector<2>) int8_vector<2>;
template [[host_name("int8_vector_4")]] [[kernel]] decltype(int8_vector<4>) int8_vector<4>;

// ── Many rows of a ──────────────────────────────────────────────────────────────────────────────────────────────────

// A simdgroup's quarter of a tile, squared, and what it is multiplied from: as in matmul_tile.
template <uint BLOCKS>
inline void multiply(thread simdgroup_float8x8 (&sum)[BLOCKS][BLOCKS], threadgroup const float *as,
                     threadgroup const float *bs, uint depth, uint stride) {
    for (uint d = 0; d < depth; d += 8) {
        simdgroup_float8x8 a[BLOCKS], b[BLOCKS];
        UNROLL for (uint i = 0; i < BLOCKS; i++) {
            simdgroup_load(a[i], as + 8 * i * stride + d, stride);
            simdgroup_load(b[i], bs + 8 * i * stride + d, stride, ulong2(0, 0), true);
        }
        UNROLL for (uint i = 0; i < BLOCKS; i++)
            UNROLL for (uint j = 0; j < BLOCKS; j++) simdgroup_multiply_accumulate(sum[i][j], a[i], b[j], sum[i][j]);
    }
}

// Adds a quarter's sums to its int32 totals and clears them, 8 rows at a time by way of threadgroup memory: the strip.
// A lane's elements are those that it writes at the end.
template <uint BLOCKS>
inline void settle(thread simdgroup_float8x8 (&sum)[BLOCKS][BLOCKS], thread int (&total)[BLOCKS][2 * BLOCKS],
                   threadgroup float *strip, uint lane) {
    UNROLL for (uint i = 0; i < BLOCKS; i++) {
        UNROLL for (uint j = 0; j < BLOCKS; j++) {
            simdgroup_store(sum[i][j], strip + 8 * j, 8 * BLOCKS);
            sum[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        UNROLL for (uint e = 0; e < 2 * BLOCKS; e++) total[i][e] += int(strip[32 * e + lane]);
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// Eight codes of a row from k on, and zeros past the last or where the row isn't there.
inline octet bring(device const char *codes, bool there, ulong row, uint k, uint end) {
    const uint valid = there ? within(k, end) : 0u;
    if (valid > 0) return eight_codes(codes, row + k, valid);
    return octet{float4(0.0f), float4(0.0f)};
}

template <uint SIDE>
[[kernel, max_total_threads_per_threadgroup(TILE_THREADS)]]
void int8_tile(constant int8_matmul_args &args [[buffer(0)]],
               device const char *a [[buffer(1)]],
               device const char *b [[buffer(2)]],
               device const float *row_stats [[buffer(3)]],
               device const float *column_stats [[buffer(4)]],
               device const uchar *x [[buffer(5)]],
               device const int *outliers [[buffer(6)]],
               device const float *bias [[buffer(7)]],
               device uchar *y [[buffer(8)]],
               uint2 group [[threadgroup_position_in_grid]],
               uint place [[thread_index_in_threadgroup]],
               uint simdgroup [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint DEPTH = TILE_THREADS * 8 / SIDE; // of k a step: a thread brings 8 codes of a and 8 of b
    constexpr uint STRIDE = DEPTH + 4;              // 16 bytes of padding spread the rows over the banks
    constexpr uint QUARTER = SIDE / 2;              // a simdgroup's part of the tile, squared
    constexpr uint BLOCKS = QUARTER / 8;
    threadgroup float as[SIDE * STRIDE], bs[SIDE * STRIDE];
    threadgroup uint more; // whether outliers may follow

    const uint tile_row = place / (DEPTH / 8), tile_k = place % (DEPTH / 8) * 8;
    const uint m0 = group.y * SIDE, n0 = group.x * SIDE;
    const bool has_a = m0 + tile_row < args.m, has_b = n0 + tile_row < args.n;
    const ulong a_row = ulong(m0 + tile_row) * args.k, b_row = ulong(n0 + tile_row) * args.k;
    threadgroup float4 *a_tile = (threadgroup float4 *)(as + tile_row * STRIDE + tile_k);
    threadgroup float4 *b_tile = (threadgroup float4 *)(bs + tile_row * STRIDE + tile_k);

    const uint quarter_m = simdgroup / 2 * QUARTER, quarter_n = simdgroup % 2 * QUARTER;
    threadgroup const float *a_quarter = as + quarter_m * STRIDE, *b_quarter = bs + quarter_n * STRIDE;
    threadgroup float *strip = as + simdgroup * 8 * QUARTER;
    simdgroup_float8x8 sum[BLOCKS][BLOCKS];
    int total[BLOCKS][2 * BLOCKS];
    UNROLL for (uint i = 0; i < BLOCKS; i++) {
        UNROLL for (uint j = 0; j < BLOCKS; j++) sum[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        UNROLL for (uint e = 0; e < 2 * BLOCKS; e++) total[i][e] = 0;
    }

    // The next step's codes are under way while this one's are multiplied.
    octet a8 = bring(a, has_a, a_row, tile_k, args.k), b8 = bring(b, has_b, b_row, tile_k, args.k);
    for (uint step = 0; step < args.k; step += DEPTH) {
        threadgroup_barrier(mem_flags::mem_threadgroup); // the last step's tiles, or strips, have been read
        a_tile[0] = a8.low;
        a_tile[1] = a8.high;
        b_tile[0] = b8.low;
        b_tile[1] = b8.high;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        a8 = bring(a, has_a, a_row, step + DEPTH + tile_k, args.k);
        b8 = bring(b, has_b, b_row, step + DEPTH + tile_k, args.k);
        multiply<BLOCKS>(sum, a_quarter, b_quarter, DEPTH, STRIDE);
        if ((step + DEPTH) % EXACT != 0 && step + DEPTH < args.k) continue;
        threadgroup_barrier(mem_flags::mem_threadgroup); // the strips lie where the tiles did
        settle<BLOCKS>(sum, total, strip, lane);
    }

    // Outlier columns, gathered: a product of floats. Whether there are more is what one thread has seen: if each
    // looked for itself while the CPU writes to the list, they would part at a barrier.
    if (OUTLIERS != 0) {
        for (uint first = 0; first < args.k; first += DEPTH) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            UNROLL for (uint j = 0; j < 8; j++) {
                const uint o = first + tile_k + j;
                const uint c =
                    o < args.k ? uint(outliers[o]) : args.k; // past the list's end -1, which is no column either
                as[tile_row * STRIDE + tile_k + j] = has_a && c < args.k ? load(x, X, a_row + c) : 0.0f;
                bs[tile_row * STRIDE + tile_k + j] =
                    has_b && c < args.k ? int8_weight(b[b_row + c], column_stats[n0 + tile_row]) : 0.0f;
                if (tile_row == 0 && tile_k + j == DEPTH - 1) more = c < args.k ? 1u : 0u;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            multiply<BLOCKS>(sum, a_quarter, b_quarter, DEPTH, STRIDE);
            if (more == 0) break;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    UNROLL for (uint i = 0; i < BLOCKS; i++) {
        if (OUTLIERS != 0) {
            UNROLL for (uint j = 0; j < BLOCKS; j++) simdgroup_store(sum[i][j], strip + 8 * j, QUARTER);
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
        UNROLL for (uint e = 0; e < 2 * BLOCKS; e++) {
            const uint at = 32 * e + lane, m = m0 + quarter_m + 8 * i + at / QUARTER, n = n0 + quarter_n + at % QUARTER;
            const float added = OUTLIERS != 0 ? strip[at] : 0.0f;
            if (m < args.m && n < args.n)
                put(y, ulong(m) * args.n + n, total[i][e], added, row_stats, column_stats, bias, m, n);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

template [[host_name("int8_tile_32")]] [[kernel]] decltype(int8_tile<32>) int8_tile<32>;
template [[host_name("int8_tile_64")]] [[kernel]] decltype(int8_tile<64>) int8_tile<64>;

// ── Sums that are there already ─────────────────────────────────────────────────────────────────────────────────────

[[host_name("int8_mm_dequant")]] [[kernel, max_total_threads_per_threadgroup(INT8_THREADS)]]
void int8_mm_dequant(constant int8_matmul_args &args [[buffer(0)]],
                     device const int *sums [[buffer(1)]],
                     device const float *row_stats [[buffer(2)]],
                     device const float *column_stats [[buffer(3)]],
                     device const float *bias [[buffer(4)]],
                     device uchar *y [[buffer(5)]],
                     uint m [[threadgroup_position_in_grid]],
                     uint place [[thread_index_in_threadgroup]]) {
    for (uint n = place; n < args.n; n += INT8_THREADS) {
        const ulong i = ulong(m) * args.n + n;
        put(y, i, sums[i], 0.0f, row_stats, column_stats, bias, m, n);
    }
}
