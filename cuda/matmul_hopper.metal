// y = x · wᵀ + bias for 4-bit codes on Hopper: four simdgroups have tiles of x and codes brought, the others decode 16
// rows of w each into registers, which are the left factor, and multiply. A pair of threadgroups shares x.

constant uint Y [[function_constant(1)]];      // of y: any float, STORE_F32 where it holds parts of a split
constant uint NESTED [[function_constant(2)]]; // whether absmax holds codes
constant uint HALVES [[function_constant(3)]]; // whether 64 weights have two scales, as blocks of 32 do
constant uint BIAS [[function_constant(4)]];

struct codes_args {
    nv_tensor x, codes; // of codes 128 rows by 32 bytes are brought, whose halves change places in rows 4 to 7 of 8
    matmul_args of;     // `split` in steps of 64 of k
    uint splits;
};

inline works works_of(constant codes_args &args, uint tile_m, uint tile_n) {
    return works{args.of.m, args.of.n, tile_m, tile_n, 1, (args.of.k + 63) / 64, args.of.split, args.splits};
}

// ── Scales ──────────────────────────────────────────────────────────────────────────────────────────────────────────

struct scale_source {
    device const uchar *absmax;
    device const float *nested_absmax;
    threadgroup const float *nested_values;
    uint shift, nested_shift; // of the place of 32 weights to their block's, and of that to its group's
    float offset;
};

// What a scale is made of, so that its loads are under way while others are multiplied.
struct raw_scale {
    float factor;
    uint code;
};

inline raw_scale raw_scale_at(thread const scale_source &from, uint unit) {
    const uint block = unit >> from.shift;
    if (NESTED == 0) return raw_scale{((device const float *)from.absmax)[block], 0};
    return raw_scale{from.nested_absmax[block >> from.nested_shift], from.absmax[block]};
}

inline float scale_of(thread const scale_source &from, raw_scale raw) {
    if (NESTED == 0) return raw.factor;
    const float product = from.nested_values[raw.code] * raw.factor;
    return product + from.offset;
}

// Of 64 weights of a row.
struct row_scales {
    raw_scale low, high;
};

inline row_scales fetch(thread const scale_source &scales, uint row, uint step, uint units) {
    const raw_scale low = raw_scale_at(scales, row + min(2 * step, units - 1));
    return row_scales{low, HALVES != 0 ? raw_scale_at(scales, row + min(2 * step + 1, units - 1)) : low};
}

// ── The left factor ─────────────────────────────────────────────────────────────────────────────────────────────────

// The byte of each word that the lane takes: `turn` brings it to where a row of the table begins.
inline uint lane_values(threadgroup const uchar *table, uint lane4, uint word, uint turn) {
    return *(threadgroup const uint *)(table + ((rotate(word, turn) & 0x7f80u) | lane4));
}

// 32 weights of a row and of the eighth after it: two products deep.
template <uint DTYPE>
inline void decode(thread uint4 (&a)[4], uint from, uint4 upper, uint4 lower, float of_upper, float of_lower,
                   threadgroup const uchar *table, uint lane) {
    const uint upper_scale = pair_of(DTYPE, of_upper, of_upper), lower_scale = pair_of(DTYPE, of_lower, of_lower);
    const uint lane4 = 4 * lane, turn = (39u - 8 * (lane % 4)) & 31u; // byte t to bits 7 to 14
    UNROLL for (uint s = 0; s < 2; s++) {
        const uint2 high = s == 0 ? upper.xy : upper.zw, low = s == 0 ? lower.xy : lower.zw;
        a[from + s] = uint4(multiply_pair(DTYPE, lane_values(table, lane4, high.x, turn), upper_scale),
                            multiply_pair(DTYPE, lane_values(table, lane4, low.x, turn), lower_scale),
                            multiply_pair(DTYPE, lane_values(table, lane4, high.y, turn), upper_scale),
                            multiply_pair(DTYPE, lane_values(table, lane4, low.y, turn), lower_scale));
    }
}

// What a simdgroup multiplies by: rows `upper` and, 8 below it, `lower` of w, as units of 32 weights.
struct rows_of_w {
    uint upper, lower, units;
};

struct memory {
    threadgroup uchar *tiles, *table, *own; // a piece of the simdgroup's own
    threadgroup ulong *full, *empty;
};

// How far a simdgroup is: the last step's stage of the ring and this one's, and the scales of this one's rows.
struct progress {
    ring at;
    uint last;
    row_scales upper, lower;
};

// One step: decodes 64 weights into `a`, then multiplies them by x's tile while the caller goes on. So `a` must not be
// used again before the step after the next, which waits for this one.
template <uint DTYPE, uint BN, uint STAGES, uint W>
inline void multiply_step(thread float (&d)[BN / 2], thread uint4 (&a)[4], thread progress &now,
                          thread const memory &in, thread const scale_source &scales, rows_of_w w, work of, uint step,
                          uint simdgroup, uint lane) {
    constexpr uint STAGE = BN * 128 + W * 512, BELOW = 8 * 32;
    threadgroup const uchar *x = in.tiles + now.at.stage * STAGE;
    const uint row = 16 * simdgroup + lane / 4, turned = row / 4 % 2 * 16; // of the row 8 below too
    threadgroup const uchar *low = x + BN * 128 + row * 32 + turned, *high = x + BN * 128 + row * 32 + (turned ^ 16);
    nv_count_wait(in.full + now.at.stage, now.at.phase);
    decode<DTYPE>(a, 0, *(threadgroup const uint4 *)low, *(threadgroup const uint4 *)(low + BELOW),
                  scale_of(scales, now.upper.low), scale_of(scales, now.lower.low), in.table, lane);
    decode<DTYPE>(a, 2, *(threadgroup const uint4 *)high, *(threadgroup const uint4 *)(high + BELOW),
                  scale_of(scales, now.upper.high), scale_of(scales, now.lower.high), in.table, lane);
    const uint ahead = min(step + 1, of.end - 1);
    now.upper = fetch(scales, w.upper, ahead, w.units);
    now.lower = fetch(scales, w.lower, ahead, w.units);
    nv_wgmma_begin();
    UNROLL for (uint s = 0; s < 4; s++) nv_wgmma<DTYPE, BN>(d, a[s], x + 32 * s, step > of.first || s > 0);
    nv_wgmma_commit();
    nv_wgmma_wait<1>(); // the step before this has been multiplied
    if (step > of.first) release(in.empty + now.last, lane);
    now.last = now.at.stage;
    advance<STAGES>(now.at);
}

// ── Writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────

// In half precision by way of the simdgroup's own memory, 16 bytes at a time: 64 rows of y by 16 columns, whose halves
// change places in every other four rows.
template <uint DTYPE, uint BN>
inline void save_columns(device uchar *y, uint rows, uint columns, uint m, uint n, thread const float (&d)[BN / 2],
                         float2 bias, threadgroup uchar *own, uint lane) {
    const uint matrix = lane / 8, r = lane % 8;
    UNROLL for (uint c = 0; c < BN / 64; c++) {
        UNROLL for (uint i = 0; i < 8; i += 2) {
            const uint j = 8 * c + i, row = 8 * (i + matrix / 2) + r;
            nv_store_transposed(own + row * 32 + ((matrix & 1u) ^ (row / 4 & 1u)) * 16,
                                uint4(pair_of(DTYPE, d[4 * j] + bias.x, d[4 * j + 1] + bias.x),
                                      pair_of(DTYPE, d[4 * j + 2] + bias.y, d[4 * j + 3] + bias.y),
                                      pair_of(DTYPE, d[4 * j + 4] + bias.x, d[4 * j + 5] + bias.x),
                                      pair_of(DTYPE, d[4 * j + 6] + bias.y, d[4 * j + 7] + bias.y)));
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        UNROLL for (uint i = 0; i < 4; i++) {
            const uint row = 16 * i + lane / 2, to_m = m + 64 * c + row, to_n = n + 8 * (lane % 2);
            if (to_m < rows && to_n < columns)
                *(device uint4 *)(y + 2 * (ulong(to_m) * columns + to_n)) =
                    *(threadgroup const uint4 *)(own + row * 32 + ((lane & 1u) ^ (row / 4 & 1u)) * 16);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// ── The kernel ──────────────────────────────────────────────────────────────────────────────────────────────────────

template <uint BN, uint STAGES, uint W>
inline void bring_all(constant codes_args &args, thread const memory &in, uint pair, uint pairs, uint rank) {
    constexpr uint STAGE = BN * 128 + W * 512;
    const works all = works_of(args, BN, 16 * W);
    ring at = {0, 0};
    for (uint index = pair; index < work_count(all); index += pairs) {
        const work of = work_of(all, index, rank);
        for (uint step = of.first; step < of.end; step++) {
            threadgroup uchar *stage = in.tiles + at.stage * STAGE;
            nv_count_wait(in.empty + at.stage, at.phase ^ 1);
            nv_count_expect(in.full + at.stage, STAGE);
            bring<BN>(stage, args.x, false, BN > 64, of.m, step, in.full + at.stage);
            UNROLL for (uint row = 0; row < 16 * W; row += 128)
                nv_bring(stage + BN * 128 + 32 * row, args.codes, 32 * step, of.n + row, in.full + at.stage, false);
            advance<STAGES>(at);
        }
    }
}

template <uint DTYPE, uint BN, uint STAGES, uint W>
inline void multiply_all(constant codes_args &args, thread const memory &in, thread const scale_source &scales,
                         uint pair, uint pairs, uint rank, device const float *bias, device uchar *y, uint simdgroup,
                         uint lane) {
    const works all = works_of(args, BN, 16 * W);
    const uint n = args.of.n, units = args.of.k / 32;
    progress now;
    now.at = ring{0, 0};
    for (uint index = pair; index < work_count(all); index += pairs) {
        const work of = work_of(all, index, rank);
        const uint first_n = of.n + 16 * simdgroup, row = first_n + lane / 4; // past the last row whatever is there
        const rows_of_w w = {min(row, n - 1) * units, min(row + 8, n - 1) * units, units};
        now.upper = fetch(scales, w.upper, of.first, units);
        now.lower = fetch(scales, w.lower, of.first, units);
        float d[BN / 2];
        nv_wgmma_fresh(d);
        uint4 even[4], odd[4];
        uint step = of.first;
        for (; step + 1 < of.end; step += 2) {
            multiply_step<DTYPE, BN, STAGES, W>(d, even, now, in, scales, w, of, step, simdgroup, lane);
            multiply_step<DTYPE, BN, STAGES, W>(d, odd, now, in, scales, w, of, step + 1, simdgroup, lane);
        }
        if (step < of.end)
            multiply_step<DTYPE, BN, STAGES, W>(d, even, now, in, scales, w, of, step, simdgroup, lane);
        nv_wgmma_wait<0>();
        nv_wgmma_done(d);
        release(in.empty + now.last, lane);
        const float2 added =
            BIAS == 0 ? float2(0.0f) : float2(row < n ? bias[row] : 0.0f, row + 8 < n ? bias[row + 8] : 0.0f);
        device uchar *part = y + ulong(of.part) * args.of.m * n * 4;
        if (Y == DTYPE && n % 8 == 0)
            save_columns<DTYPE, BN>(part, args.of.m, n, of.m, first_n, d, added, in.own, lane);
        else save_each<BN>(part, Y, args.of.m, n, of.m, first_n, d, added, lane);
    }
}

template <uint DTYPE, uint BN, uint STAGES, uint W>
[[kernel]] void matmul_hopper(constant codes_args &args [[buffer(0)]],
                              device const uchar *absmax [[buffer(3)]],
                              device const float *nested_absmax [[buffer(4)]],
                              device const kernel_codebook *code [[buffer(5)]],
                              device const kernel_codebook *nested_code [[buffer(6)]],
                              device const float *bias [[buffer(7)]],
                              device uchar *y [[buffer(8)]],
                              device const float *nested_offset [[buffer(9)]],
                              threadgroup uchar *shared [[threadgroup(0)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint3 groups [[threadgroups_per_grid]],
                              uint place [[thread_index_in_threadgroup]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint STAGE = BN * 128 + W * 512;
    threadgroup uchar *table = shared + STAGES * STAGE, *own = table + 4 * BYTE_TABLE_WORDS;
    threadgroup float *nested_values = (threadgroup float *)(own + W * 2048);
    threadgroup ulong *full = (threadgroup ulong *)(nested_values + 256);
    const uint pair = group.x / 2, pairs = groups.x / 2, rank = group.x % 2;
    const uint multiplier = max(simdgroup, uint(BRINGING)) - BRINGING; // of those that multiply, which
    const memory in = {shared, table, own + multiplier * 2048, full, full + STAGES};
    if (place == 0) make_counts<STAGES>(in.full, in.empty, W);
    if (simdgroup >= BRINGING) {
        fill_byte_table<32 * W>((threadgroup uint *)table, DTYPE, code, place - 32 * BRINGING);
        const uint i = place - 32 * BRINGING;
        if (NESTED != 0 && i < 256) nested_values[i] = nested_code->values[i];
    }
    nv_pair_barrier();
    if (simdgroup < BRINGING) {
        nv_give_registers<W == 8 ? 40 : 24>();
        if (place == 0) bring_all<BN, STAGES, W>(args, in, pair, pairs, rank);
    } else {
        const scale_source scales = {absmax,
                                     nested_absmax,
                                     nested_values,
                                     args.of.scales.shift - 5,
                                     args.of.scales.nested_shift,
                                     NESTED != 0 ? nested_offset[0] : 0.0f};
        nv_take_registers<W == 8 ? 232 : 112>();
        multiply_all<DTYPE, BN, STAGES, W>(args, in, scales, pair, pairs, rank, bias, y, multiplier, lane);
    }
    nv_pair_barrier(); // neither is gone while the other may still reach it
}

template [[host_name("matmul_hopper_f16_64")]] [[kernel]] decltype(matmul_hopper<STORE_F16, 64, 8, 16>)
    matmul_hopper<STORE_F16, 64, 8, 16>;
template [[host_name("matmul_hopper_f16_128")]] [[kernel]] decltype(matmul_hopper<STORE_F16, 128, 8, 8>)
    matmul_hopper<STORE_F16, 128, 8, 8>;
template [[host_name("matmul_hopper_f16_256")]] [[kernel]] decltype(matmul_hopper<STORE_F16, 256, 4, 8>)
    matmul_hopper<STORE_F16, 256, 4, 8>;
template [[host_name("matmul_hopper_bf16_64")]] [[kernel]] decltype(matmul_hopper<STORE_BF16, 64, 8, 16>)
    matmul_hopper<STORE_BF16, 64, 8, 16>;
template [[host_name("matmul_hopper_bf16_128")]] [[kernel]] decltype(matmul_hopper<STORE_BF16, 128, 8, 8>)
    matmul_hopper<STORE_BF16, 128, 8, 8>;
template [[host_name("matmul_hopper_bf16_256")]] [[kernel]] decltype(matmul_hopper<STORE_BF16, 256, 4, 8>)
    matmul_hopper<STORE_BF16, 256, 4, 8>;
