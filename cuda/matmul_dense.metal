// y = a · bᵀ + bias on the tensor cores of any GPU since 2020, both factors out of threadgroup memory: half precision
// into fp32 sums, or int8 into int32 ones. Factors of halves may be stored the other way, as gradients have them.

constant uint X [[function_constant(0)]];    // of a and b: STORE_F16 or STORE_BF16; of no meaning for int8
constant uint Y [[function_constant(1)]];    // of y: any float, STORE_F32 where it holds parts of a split; or STORE_I32
constant uint STATS [[function_constant(2)]]; // whether sums are scaled by row and column, as LLM.int8() does
constant uint A_TRANSPOSED [[function_constant(3)]]; // whether halves are stored as a[depth, m]
constant uint BIAS [[function_constant(4)]];
constant uint B_TRANSPOSED [[function_constant(5)]]; // or as b[depth, n]

// A row as it is stored is a multiple of 16 bytes.
struct dense_args {
    uint m, n, bytes; // of the depth
    uint split;       // of them, those that a threadgroup sums: all, or a multiple of 128
};

inline void multiply(thread float4 &d, uint4 a, uint2 b) { multiply_tile(X, d, a, b); }
inline void multiply(thread int4 &d, uint4 a, uint2 b) { nv_mma_s8(d, a, b); }

// Rows of 128 bytes whose pieces of 16 change places, so that eight rows' like pieces lie in different banks.
inline uint swizzled(uint row, uint piece) { return row * 128 + (piece ^ (row & 7u)) * 16; }

// A factor: what a threadgroup takes of it begins at its row `first`.
struct factor {
    device const uchar *data;
    bool transposed;
    uint rows, first;
};

// Brings a step's 128 bytes of ROWS rows of a factor; zeros past the last row and past the depth's end. Of one that is
// transposed these are tiles of 64 rows, which lie there as 64 of the depth, each 128 bytes.
template <uint ROWS, uint THREADS>
inline void bring(threadgroup uchar *tile, thread const factor &from, uint bytes, uint step, uint place) {
    const uint piece = place % 8;
    device const uchar *data = from.data + ulong(step) * (from.transposed ? 128 * ulong(from.rows) : 128);
    UNROLL for (uint i = 0; i < ROWS * 8 / THREADS; i++) {
        const uint r = place / 8 + i * (THREADS / 8);
        const uint row = from.first + (from.transposed ? r / 64 * 64 + piece * 8 : r);
        const uint at = from.transposed ? r % 64 * 2 : piece * 16; // bytes of the step's
        const bool there = row < from.rows && step * 128 + at < bytes;
        const ulong offset = from.transposed ? ulong(at) * from.rows + 2 * row : ulong(row) * bytes + at;
        nv_copy(tile + swizzled(r, piece), there ? data + offset : from.data, there);
    }
}

// Four 8 × 8 matrices out of such a tile, or as many bytes, of which the lane names one by its first row and its place
// in the step's depth in eighths.
inline uint4 matrices(threadgroup const uchar *tile, bool transposed, uint row, uint depth, uint lane) {
    const uint r = lane % 8;
    if (transposed) return nv_ldmatrix_transposed(tile + swizzled(row / 64 * 64 + depth * 8 + r, row % 64 / 8));
    return nv_ldmatrix(tile + swizzled(row + r, depth));
}

inline float2 scaled(float2 v, device const float *row_stats, device const float *column_stats, uint m, uint n,
                     uint rows, uint columns) {
    if (STATS == 0 || m >= rows || n >= columns) return v;
    const float2 by = float2(column_stats[n], n + 1 < columns ? column_stats[n + 1] : 0.0f);
    return v * (row_stats[m] * by) * 6.2000124e-5f; // 1 / 127²
}

inline void save_sums(device uchar *y, uint rows, uint columns, uint m, uint n, float2 v, device const float *row_stats,
                      device const float *column_stats, device const float *bias) {
    save_pair(y, Y, rows, columns, m, n, scaled(v, row_stats, column_stats, m, n, rows, columns), bias, BIAS);
}
inline void save_sums(device uchar *y, uint rows, uint columns, uint m, uint n, int2 v, device const float *row_stats,
                      device const float *column_stats, device const float *bias) {
    if (Y == STORE_I32) { // as they are
        if (m < rows && n < columns) ((device int *)y)[ulong(m) * columns + n] = v.x;
        if (m < rows && n + 1 < columns) ((device int *)y)[ulong(m) * columns + n + 1] = v.y;
    } else save_sums(y, rows, columns, m, n, float2(v), row_stats, column_stats, bias);
}

// A simdgroup takes 16 × MT rows of a and 8 × NT of b, WM × WN simdgroups a threadgroup, STAGES - 1 steps ahead.
template <bool HALF, typename T, typename T2, uint MT, uint NT, uint WM, uint WN, uint STAGES>
[[kernel]] void matmul_dense(constant dense_args &args [[buffer(0)]],
                             device const uchar *a [[buffer(1)]],
                             device const uchar *b [[buffer(2)]],
                             device const float *row_stats [[buffer(3)]],
                             device const float *column_stats [[buffer(4)]],
                             device const float *bias [[buffer(5)]],
                             device uchar *y [[buffer(6)]],
                             threadgroup uchar *shared [[threadgroup(0)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint place [[thread_index_in_threadgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint ROWS = 16 * MT * WM, COLUMNS = 8 * NT * WN, STAGE = (ROWS + COLUMNS) * 128, THREADS = 32 * WM * WN;
    // Groups go down bands of 8 tiles of a, so that what runs at once shares rows of both factors.
    const uint tiles_m = (args.m + ROWS - 1) / ROWS, tiles_n = (args.n + COLUMNS - 1) / COLUMNS, band = 8 * tiles_n;
    const uint band_first = group.x / band * 8, band_rows = min(tiles_m - band_first, 8u), in_band = group.x % band;
    const uint m0 = (band_first + in_band % band_rows) * ROWS, n0 = in_band / band_rows * COLUMNS;
    const factor left = {a, HALF && A_TRANSPOSED != 0, args.m, m0}, right = {b, HALF && B_TRANSPOSED != 0, args.n, n0};
    const uint wm = simdgroup % WM * (16 * MT), wn = simdgroup / WM * (8 * NT);
    const uint steps = (args.bytes + 127) / 128, first = group.z * (args.split / 128);
    const uint end = args.split >= args.bytes ? steps : min(steps, first + args.split / 128);

    UNROLL for (uint s = 0; s < STAGES - 1; s++) {
        if (first + s < end) {
            bring<ROWS, THREADS>(shared + s * STAGE, left, args.bytes, first + s, place);
            bring<COLUMNS, THREADS>(shared + s * STAGE + ROWS * 128, right, args.bytes, first + s, place);
        }
        nv_copy_commit();
    }
    T sum[MT][NT];
    UNROLL for (uint i = 0; i < MT; i++)
        UNROLL for (uint j = 0; j < NT; j++) sum[i][j] = T(0);

    // Which matrix a lane names: of a, and of two tiles of b.
    const uint a_row = wm + lane / 8 % 2 * 8, a_depth = lane / 16;
    const uint b_row = wn + lane / 16 * 8, b_depth = lane / 8 % 2;
    uint stage = 0;
    for (uint step = first; step < end; step++) {
        nv_copy_wait<int(STAGES) - 2>();
        threadgroup_barrier(
            mem_flags::mem_threadgroup); // this step's tiles are there, and the last one's have been read
        const uint into = (stage == 0 ? STAGES - 1 : stage - 1) * STAGE, ahead = step + STAGES - 1;
        if (ahead < end) {
            bring<ROWS, THREADS>(shared + into, left, args.bytes, ahead, place);
            bring<COLUMNS, THREADS>(shared + into + ROWS * 128, right, args.bytes, ahead, place);
        }
        nv_copy_commit();
        threadgroup const uchar *of_a = shared + stage * STAGE, *of_b = of_a + ROWS * 128;
        UNROLL for (uint s = 0; s < 4; s++) {
            uint4 as[MT], bs[NT / 2];
            UNROLL for (uint i = 0; i < MT; i++) as[i] =
                matrices(of_a, left.transposed, a_row + 16 * i, 2 * s + a_depth, lane);
            UNROLL for (uint j = 0; j < NT / 2; j++) bs[j] =
                matrices(of_b, right.transposed, b_row + 16 * j, 2 * s + b_depth, lane);
            UNROLL for (uint j = 0; j < NT; j++)
                UNROLL for (uint i = 0; i < MT; i++)
                    multiply(sum[i][j], as[i], j % 2 == 0 ? bs[j / 2].xy : bs[j / 2].zw);
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    nv_copy_wait<0>();

    const uint g = lane / 4, t = lane % 4;
    device uchar *part = y + ulong(group.z) * args.m * args.n * 4;
    UNROLL for (uint i = 0; i < MT; i++)
        UNROLL for (uint h = 0; h < 2; h++)
            UNROLL for (uint j = 0; j < NT; j++)
                save_sums(part, args.m, args.n, m0 + wm + 16 * i + 8 * h + g, n0 + wn + 8 * j + 2 * t,
                          h == 0 ? T2(sum[i][j].xy) : T2(sum[i][j].zw), row_stats, column_stats, bias);
}

template [[host_name("matmul_dense_half_128")]] [[kernel]] decltype(matmul_dense<true, float4, float2, 4, 8, 2, 2, 3>)
    matmul_dense<true, float4, float2, 4, 8, 2, 2, 3>;
template [[host_name("matmul_dense_half_64")]] [[kernel]] decltype(matmul_dense<true, float4, float2, 2, 4, 2, 2, 4>)
    matmul_dense<true, float4, float2, 2, 4, 2, 2, 4>;
template [[host_name("matmul_dense_int8_128")]] [[kernel]] decltype(matmul_dense<false, int4, int2, 4, 8, 2, 2, 3>)
    matmul_dense<false, int4, int2, 4, 8, 2, 2, 3>;
template [[host_name("matmul_dense_int8_64")]] [[kernel]] decltype(matmul_dense<false, int4, int2, 2, 4, 2, 2, 4>)
    matmul_dense<false, int4, int2, 2, 4, 2, 2, 4>;
