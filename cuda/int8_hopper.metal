// int8 by int8 on Hopper's own products (wgmma), where w is 64 rows at a time the left factor and x the right one.

constant uint Y [[function_constant(1)]]; // of y: any float, scaled by row and column; or STORE_I32, as sums are
constant uint BIAS [[function_constant(4)]];

struct dense_args {
    uint m, n, bytes; // of a row of x or w: a multiple of 16
    uint split;       // bytes of a row that a threadgroup sums: all of them, or a multiple of 128
};

enum { HOPPER_THREADS = 256, TILE_N = 128 }; // rows of w that a threadgroup takes, 16 a simdgroup

// Groups go down bands of 8 tiles of x, so that what runs at once shares rows of both factors.
struct tile_place {
    uint m0, n0;
};
inline tile_place place_of(uint group, uint m, uint n, uint tile_m) {
    const uint tiles_m = (m + tile_m - 1) / tile_m, tiles_n = (n + TILE_N - 1) / TILE_N, band = 8 * tiles_n;
    const uint first = group / band * 8, rows = min(tiles_m - first, 8u), in_band = group % band;
    return tile_place{(first + in_band % rows) * tile_m, in_band / rows * TILE_N};
}

// Brings 128 bytes of ROWS rows, from row `first` on, into a tile; zeros past the last row and past a row's end.
template <uint ROWS>
inline void bring(threadgroup uchar *tile, device const uchar *from, uint rows, uint first, uint bytes, uint at,
                  uint place) {
    const uint piece = place % 8;
    UNROLL for (uint i = 0; i < ROWS * 8 / HOPPER_THREADS; i++) {
        const uint r = place / 8 + i * (HOPPER_THREADS / 8), byte = at + piece * 16;
        const bool there = first + r < rows && byte < bytes;
        nv_copy(tile + r * 128 + (piece ^ (r & 7u)) * 16, there ? from + ulong(first + r) * bytes + byte : from, there);
    }
}

// Where the sums of a lane go: rows g and g + 8 of the simdgroup's 16 of w, and rows 8j + 2t and the next of x.
struct output {
    device uchar *y;
    uint m, n, m0, n0;
};

enum { OUTPUT_PITCH = 2 * TILE_N + 16 }; // of a row of the tile of y in threadgroup memory

// In half precision by way of threadgroup memory, so that rows of y are written 16 bytes at a time.
template <uint DTYPE, uint BN>
inline void save_tile(output to, thread const float (&d)[BN / 2], float2 bias, threadgroup uchar *shared, uint place) {
    const uint lane = place % 32, simdgroup = place / 32, matrix = lane / 8, r = lane % 8;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL for (uint j = 0; j < BN / 8; j += 2) {
        threadgroup uchar *at =
            shared + (8 * (j + matrix / 2) + r) * OUTPUT_PITCH + (simdgroup * 16 + 8 * (matrix & 1u)) * 2;
        nv_store_transposed(at, uint4(pair_of(DTYPE, d[4 * j] + bias.x, d[4 * j + 1] + bias.x),
                                      pair_of(DTYPE, d[4 * j + 2] + bias.y, d[4 * j + 3] + bias.y),
                                      pair_of(DTYPE, d[4 * j + 4] + bias.x, d[4 * j + 5] + bias.x),
                                      pair_of(DTYPE, d[4 * j + 6] + bias.y, d[4 * j + 7] + bias.y)));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = place; i < BN * (TILE_N / 8); i += HOPPER_THREADS) {
        const uint m = to.m0 + i / (TILE_N / 8), n = to.n0 + i % (TILE_N / 8) * 8;
        if (m < to.m && n < to.n)
            *(device uint4 *)(to.y + 2 * (ulong(m) * to.n + n)) =
                *(threadgroup const uint4 *)(shared + i / (TILE_N / 8) * OUTPUT_PITCH + i % (TILE_N / 8) * 16);
    }
}

template <uint DTYPE, uint BN>
inline void save_sums(output to, thread const float (&d)[BN / 2], device const float *bias, threadgroup uchar *shared,
                      uint place) {
    const uint row = place / 32 * 16 + place % 32 / 4, n = to.n0 + row;
    const float2 added =
        BIAS == 0 ? float2(0.0f) : float2(n < to.n ? bias[n] : 0.0f, n + 8 < to.n ? bias[n + 8] : 0.0f);
    if (Y != DTYPE || to.n % 8 != 0)
        save_each<BN>(to.y, Y, to.m, to.n, to.m0, to.n0 + place / 32 * 16, d, added, place % 32);
    else save_tile<DTYPE, BN>(to, d, added, shared, place);
}

// int8 into int32, as it is or scaled by row and column. A step is 128 of k.
template <uint BN, uint STAGES>
[[kernel]] void int8_hopper(constant dense_args &args [[buffer(0)]],
                            device const uchar *x [[buffer(1)]],
                            device const uchar *w [[buffer(2)]],
                            device const float *row_stats [[buffer(3)]],
                            device const float *column_stats [[buffer(4)]],
                            device const float *bias [[buffer(5)]],
                            device uchar *y [[buffer(6)]],
                            threadgroup uchar *shared [[threadgroup(0)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint place [[thread_index_in_threadgroup]]) {
    constexpr uint STAGE = (BN + TILE_N) * 128;
    const tile_place at = place_of(group.x, args.m, args.n, BN);
    const uint end = (args.bytes + 127) / 128;
    UNROLL for (uint s = 0; s < STAGES - 2; s++) {
        if (s < end) {
            bring<BN>(shared + s * STAGE, x, args.m, at.m0, args.bytes, s * 128, place);
            bring<TILE_N>(shared + s * STAGE + BN * 128, w, args.n, at.n0, args.bytes, s * 128, place);
        }
        nv_copy_commit();
    }
    int sums[BN / 2];
    UNROLL for (uint i = 0; i < BN / 2; i++) sums[i] = 0;
    uint stage = 0;
    for (uint step = 0; step < end; step++) {
        nv_copy_wait<int(STAGES) - 3>();
        nv_wgmma_see();
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint into = stage + STAGES - 2 >= STAGES ? stage - 2 : stage + STAGES - 2, far = step + STAGES - 2;
        if (far < end) {
            bring<BN>(shared + into * STAGE, x, args.m, at.m0, args.bytes, far * 128, place);
            bring<TILE_N>(shared + into * STAGE + BN * 128, w, args.n, at.n0, args.bytes, far * 128, place);
        }
        nv_copy_commit();
        threadgroup const uchar *of_x = shared + stage * STAGE, *of_w = of_x + BN * 128 + place / 128 * 8192;
        nv_wgmma_begin();
        UNROLL for (uint s = 0; s < 4; s++) nv_wgmma_s8<BN>(sums, of_w + 32 * s, of_x + 32 * s);
        nv_wgmma_commit();
        nv_wgmma_wait<1>();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    nv_wgmma_wait<0>();
    nv_wgmma_done(sums);
    nv_copy_wait<0>();

    const uint t = place % 4, row = place / 32 * 16 + place % 32 / 4, n = at.n0 + row;
    if (Y == STORE_I32) {
        UNROLL for (uint j = 0; j < BN / 8; j++)
            UNROLL for (uint e = 0; e < 4; e++) {
                const uint m = at.m0 + 8 * j + 2 * t + e % 2, to_n = n + e / 2 * 8;
                if (m < args.m && to_n < args.n) ((device int *)y)[ulong(m) * args.n + to_n] = sums[4 * j + e];
            }
        return;
    }
    // 1 / 127².
    float d[BN / 2];
    const float upper = n < args.n ? column_stats[n] : 0.0f, lower = n + 8 < args.n ? column_stats[n + 8] : 0.0f;
    UNROLL for (uint j = 0; j < BN / 8; j++) {
        const uint m = at.m0 + 8 * j + 2 * t;
        const float first = m < args.m ? row_stats[m] : 0.0f, second = m + 1 < args.m ? row_stats[m + 1] : 0.0f;
        UNROLL for (uint e = 0; e < 4; e++) d[4 * j + e] =
            float(sums[4 * j + e]) * ((e % 2 == 0 ? first : second) * (e < 2 ? upper : lower)) * 6.2000124e-5f;
    }
    const output to = {y, args.m, args.n, at.m0, at.n0};
    save_sums<STORE_F16, BN>(to, d, bias, shared, place);
}

template [[host_name("int8_hopper_128")]] [[kernel]] decltype(int8_hopper<128, 7>) int8_hopper<128, 7>;
template [[host_name("int8_hopper_256")]] [[kernel]] decltype(int8_hopper<256, 4>) int8_hopper<256, 4>;
