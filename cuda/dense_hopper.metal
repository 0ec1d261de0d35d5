// y = a · bᵀ + bias in half precision on Hopper, whichever way a and b are stored: four simdgroups bring tiles, eight
// multiply them. The threadgroups stay, and take one tile of y after another.

constant uint Y [[function_constant(1)]]; // of y: any float, STORE_F32 where it holds parts of a split
constant uint BIAS [[function_constant(4)]];
constant uint A_TRANSPOSED [[function_constant(5)]]; // whether a is stored [k, m] instead of [m, k]
constant uint B_TRANSPOSED [[function_constant(6)]]; // and b [k, n]
constant uint SHARES_A [[function_constant(7)]];     // whether a pair's tiles of y lie side by side: it shares a's

struct dense_args {
    nv_tensor a, b;
    uint m, n, steps;   // of 64 of k
    uint split, splits; // steps that one tile of y sums, and tiles that share an output
};

enum { TILE_M = 128, MULTIPLYING = 8 }; // rows of a that a threadgroup takes, 16 a simdgroup

inline works works_of(constant dense_args &args, uint tile_n) {
    return works{args.m, args.n, TILE_M, tile_n, SHARES_A, args.steps, args.split, args.splits};
}

// Sums in half precision, by way of a piece of threadgroup memory of the simdgroup's own, so that rows of y are written
// 128 bytes at a time.
template <uint DTYPE, uint BN>
inline void save_rows(device uchar *y, uint rows, uint columns, uint m, uint n, thread const float (&d)[BN / 2],
                      device const float *bias, threadgroup uchar *own, uint lane) {
    const uint matrix = lane / 8, r = lane % 8;
    UNROLL for (uint c = 0; c < BN / 64; c++) {
        UNROLL for (uint i = 0; i < 4; i++) {
            const uint j = 8 * c + 2 * i, at = n + 8 * j + 2 * (lane % 4);
            float2 left = float2(0.0f), right = float2(0.0f);
            if (BIAS != 0 && at < columns) left = float2(bias[at], bias[at + 1]);
            if (BIAS != 0 && at + 8 < columns) right = float2(bias[at + 8], bias[at + 9]);
            const uint row = r + 8 * (matrix & 1u), piece = 2 * i + matrix / 2;
            nv_store_matrix(own + row * 128 + (piece ^ (row & 7u)) * 16,
                            uint4(pair_of(DTYPE, d[4 * j] + left.x, d[4 * j + 1] + left.y),
                                  pair_of(DTYPE, d[4 * j + 2] + left.x, d[4 * j + 3] + left.y),
                                  pair_of(DTYPE, d[4 * j + 4] + right.x, d[4 * j + 5] + right.y),
                                  pair_of(DTYPE, d[4 * j + 6] + right.x, d[4 * j + 7] + right.y)));
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        UNROLL for (uint i = 0; i < 4; i++) {
            const uint row = 4 * i + matrix, to_m = m + row, to_n = n + 64 * c + 8 * r;
            if (to_m < rows && to_n < columns)
                *(device uint4 *)(y + 2 * (ulong(to_m) * columns + to_n)) =
                    *(threadgroup const uint4 *)(own + row * 128 + (r ^ (row & 7u)) * 16);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

template <uint BN>
inline void save_each(device uchar *y, uint rows, uint columns, uint m, uint n, thread const float (&d)[BN / 2],
                      device const float *bias, uint lane) {
    UNROLL for (uint j = 0; j < BN / 8; j++)
        UNROLL for (uint h = 0; h < 2; h++)
            save_pair(y, Y, rows, columns, m + lane / 4 + 8 * h, n + 8 * j + 2 * (lane % 4),
                      float2(d[4 * j + 2 * h], d[4 * j + 2 * h + 1]), bias, BIAS);
}

template <uint BN, uint STAGES>
inline void bring_all(constant dense_args &args, threadgroup uchar *tiles, threadgroup ulong *full,
                      threadgroup ulong *empty, uint pair, uint pairs, uint rank) {
    constexpr uint STAGE = (TILE_M + BN) * 128;
    const works all = works_of(args, BN);
    ring at = {0, 0};
    for (uint index = pair; index < work_count(all); index += pairs) {
        const work of = work_of(all, index, rank);
        for (uint step = of.first; step < of.end; step++) {
            threadgroup uchar *stage = tiles + at.stage * STAGE;
            nv_count_wait(empty + at.stage, at.phase ^ 1);
            nv_count_expect(full + at.stage, STAGE);
            bring<TILE_M>(stage, args.a, A_TRANSPOSED != 0, SHARES_A != 0, of.m, step, full + at.stage);
            bring<BN>(stage + TILE_M * 128, args.b, B_TRANSPOSED != 0, SHARES_A == 0, of.n, step, full + at.stage);
            advance<STAGES>(at);
        }
    }
}

template <uint DTYPE, uint BN, uint STAGES>
inline void multiply_all(constant dense_args &args, threadgroup uchar *tiles, threadgroup ulong *full,
                         threadgroup ulong *empty, uint pair, uint pairs, uint rank, device const float *bias,
                         device uchar *y, uint simdgroup, uint lane) {
    constexpr uint STAGE = (TILE_M + BN) * 128, DEPTH = 32, DEPTH_TRANSPOSED = 16 * 128; // 16 of k, in bytes
    threadgroup uchar *own = tiles + STAGES * STAGE + simdgroup * 2048;
    const works all = works_of(args, BN);
    ring at = {0, 0};
    for (uint index = pair; index < work_count(all); index += pairs) {
        const work of = work_of(all, index, rank);
        float d[BN / 2];
        nv_wgmma_fresh(d);
        uint last = at.stage, step = of.first;
        do { // each has a step
            threadgroup const uchar *a = tiles + at.stage * STAGE + simdgroup / 4 * BOX;
            threadgroup const uchar *b = tiles + at.stage * STAGE + TILE_M * 128;
            nv_count_wait(full + at.stage, at.phase);
            nv_wgmma_begin();
            UNROLL for (uint s = 0; s < 4; s++)
                nv_wgmma_tiles<DTYPE, BN>(d, a + s * (A_TRANSPOSED != 0 ? DEPTH_TRANSPOSED : DEPTH),
                                          b + s * (B_TRANSPOSED != 0 ? DEPTH_TRANSPOSED : DEPTH), A_TRANSPOSED,
                                          B_TRANSPOSED, step > of.first || s > 0);
            nv_wgmma_commit();
            nv_wgmma_wait<1>(); // the step before this has been multiplied
            if (step > of.first) release(empty + last, lane);
            last = at.stage;
            advance<STAGES>(at);
        } while (++step < of.end);
        nv_wgmma_wait<0>();
        nv_wgmma_done(d);
        release(empty + last, lane);
        device uchar *part = y + ulong(of.part) * args.m * args.n * 4;
        const uint m = of.m + 16 * simdgroup;
        if (Y == DTYPE && args.n % 8 == 0) save_rows<DTYPE, BN>(part, args.m, args.n, m, of.n, d, bias, own, lane);
        else save_each<BN>(part, args.m, args.n, m, of.n, d, bias, lane);
    }
}

template <uint DTYPE, uint BN, uint STAGES>
[[kernel]] void dense_hopper(constant dense_args &args [[buffer(0)]],
                             device const float *bias [[buffer(1)]],
                             device uchar *y [[buffer(2)]],
                             threadgroup uchar *shared [[threadgroup(0)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint3 groups [[threadgroups_per_grid]],
                             uint place [[thread_index_in_threadgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint STAGE = (TILE_M + BN) * 128;
    threadgroup ulong *full = (threadgroup ulong *)(shared + STAGES * STAGE + 8 * 2048), *empty = full + STAGES;
    if (place == 0) make_counts<STAGES>(full, empty, MULTIPLYING);
    nv_pair_barrier();
    const uint pair = group.x / 2, pairs = groups.x / 2, rank = group.x % 2;
    if (simdgroup < BRINGING) {
        nv_give_registers<40>();
        if (place == 0) bring_all<BN, STAGES>(args, shared, full, empty, pair, pairs, rank);
    } else {
        nv_take_registers<232>();
        multiply_all<DTYPE, BN, STAGES>(args, shared, full, empty, pair, pairs, rank, bias, y, simdgroup - BRINGING,
                                        lane);
    }
    nv_pair_barrier(); // neither is gone while the other may still reach it
}

template [[host_name("dense_hopper_f16_128")]] [[kernel]] decltype(dense_hopper<STORE_F16, 128, 6>)
    dense_hopper<STORE_F16, 128, 6>;
template [[host_name("dense_hopper_f16_256")]] [[kernel]] decltype(dense_hopper<STORE_F16, 256, 4>)
    dense_hopper<STORE_F16, 256, 4>;
template [[host_name("dense_hopper_bf16_128")]] [[kernel]] decltype(dense_hopper<STORE_BF16, 128, 6>)
    dense_hopper<STORE_BF16, 128, 6>;
template [[host_name("dense_hopper_bf16_256")]] [[kernel]] decltype(dense_hopper<STORE_BF16, 256, 4>)
    dense_hopper<STORE_BF16, 256, 4>;
