// y = x · wᵀ + bias for a few rows of x and a weight of 4-bit codes, on tensor cores: w is the left factor of a product
// of 16 × 16 by 16 × 8, x the right one, so that a threadgroup reads each code once for all rows of x.
//
// A lane of four loads 16 bytes of a row of w, 32 codes, and so the four lanes have 128 weights in a row, which tensor
// cores take in any order of k as long as x comes in the same. Where those 128 lie in several blocks, each block's sum
// is kept apart by giving it a column of the right factor of its own: column `blocks × row of x + h` has that row where
// the block is the hth, and zeros elsewhere. So sums are scaled in fp32, and scales are never rounded.

constant uint X [[function_constant(0)]];      // of x: STORE_F16 or STORE_BF16
constant uint Y [[function_constant(1)]];      // of y: any float
constant uint NESTED [[function_constant(2)]]; // whether absmax holds codes
constant uint BLOCKS [[function_constant(3)]]; // in 128 weights: 4, 2, or 1 where blocks are larger
constant uint BIAS [[function_constant(4)]];
constant uint WHOLE [[function_constant(5)]];  // rows are multiples of 256, so that nothing needs a guard

enum { STEP = 256 }; // weights of a row that a simdgroup takes at once, in two spans of 128

// Where scales come from. Places are counted in units of 32 weights, which keeps them in 32 bits.
struct scale_source {
    device const uchar *absmax;
    device const float *nested_absmax;
    uint shift, nested_shift; // of a unit's place to its block's, and of that to its group's
};

// What is loaded of the scales of a lane's two columns in both spans of a step, while the last step is multiplied: the
// scales themselves, x and y of the first span, z and w of the second; or where they are codes, those in `bits.x`, a
// byte each, and the scales of their groups in `outer`, one a span.
struct raw_scales {
    uint4 bits;
    float2 outer;
};

// The block of a unit. Past the row's last unit, which is `last`, that one's: it scales a sum of zeros.
inline uint block_at(thread const scale_source &from, uint unit, uint last) {
    return (WHOLE != 0 ? unit : min(unit, last)) >> from.shift;
}

inline raw_scales fetch_scales(thread const scale_source &from, uint unit, uint last, uint lane) {
    raw_scales to = {uint4(0u), float2(0.0f)};
    const uint at = unit + (BLOCKS == 4 ? 2 * (lane & 1u) : 0u), next = BLOCKS == 4 ? 1u : BLOCKS == 2 ? 2u : 0u;
    const uint4 blocks = uint4(block_at(from, at, last), block_at(from, at + next, last), block_at(from, at + 4, last),
                               block_at(from, at + 4 + next, last));
    if (NESTED == 0) {
        device const uint *scales = (device const uint *)from.absmax;
        if (BLOCKS == 2 && WHOLE != 0) to.bits = *(device const uint4 *)(scales + blocks.x);
        else to.bits = uint4(scales[blocks.x], scales[blocks.y], scales[blocks.z], scales[blocks.w]);
        return to;
    }
    if (BLOCKS == 2 && WHOLE != 0) to.bits.x = *(device const uint *)(from.absmax + blocks.x);
    else
        to.bits.x = uint(from.absmax[blocks.x]) | uint(from.absmax[blocks.y]) << 8 | uint(from.absmax[blocks.z]) << 16 |
                    uint(from.absmax[blocks.w]) << 24;
    const float outer = from.nested_absmax[blocks.x >> from.nested_shift]; // of four in a row that begin a group's four
    to.outer = float2(outer, BLOCKS == 2 && WHOLE != 0 ? outer : from.nested_absmax[blocks.z >> from.nested_shift]);
    return to;
}

inline float4 scales_of(raw_scales raw, threadgroup const float *nested_values, float offset) {
    if (NESTED == 0) return as_type<float4>(raw.bits);
    const uint codes = raw.bits.x;
    float4     scales = float4(nested_values[codes & 255u], nested_values[codes >> 8 & 255u],
                               nested_values[codes >> 16 & 255u], nested_values[codes >> 24]);
    scales *= float4(raw.outer.x, raw.outer.x, raw.outer.y, raw.outer.y);
    return scales + offset;
}

// A threadgroup takes 16 × TALL rows of w, and every simdgroup of its WARPS each WARPS-th step of k. CHOOSE: codes of
// the lower rows are decoded by choosing bytes, so that not all of the work falls to threadgroup memory.
template <uint TILES, uint TALL, uint WARPS, bool CHOOSE>
[[kernel]] void matmul_few(constant matmul_args &args [[buffer(0)]],
                           device const uchar *x [[buffer(1)]],
                           device const uchar *data [[buffer(2)]],
                           device const uchar *absmax [[buffer(3)]],
                           device const float *nested_absmax [[buffer(4)]],
                           device const kernel_codebook *code [[buffer(5)]],
                           device const kernel_codebook *nested_code [[buffer(6)]],
                           device const float *bias [[buffer(7)]],
                           device uchar *y [[buffer(8)]],
                           device const float *nested_offset [[buffer(9)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint place [[thread_index_in_threadgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint ROWS = 16 * TALL, COLUMNS = 8 * TILES;
    static_assert(WARPS * ROWS * COLUMNS <= BYTE_TABLE_WORDS, "the simdgroups' sums must fit where the table was");
    threadgroup uint table[BYTE_TABLE_WORDS];
    threadgroup float nested_values[256];
    nv_let_next_start();
    const uint g = lane / 4, t = lane % 4, n0 = group.x * ROWS;
    const uint steps = (args.k + STEP - 1) / STEP, units = args.k / 32;

    // Where each of the lane's rows begins, in units; past the last row the last one is read again, and not written.
    uint row[2 * TALL];
    UNROLL for (uint r = 0; r < 2 * TALL; r++) row[r] = min(n0 + 8 * r + g, args.n - 1) * units;
    const scale_source scales = {absmax, nested_absmax, args.scales.shift - 5, args.scales.nested_shift};

    const float offset = NESTED != 0 ? nested_offset[0] : 0.0f; // as old as the weight

    // The next step's codes and scales are under way while this one's are multiplied.
    uint4 next[2 * TALL][2];
    raw_scales next_scale[2 * TALL];
    if (simdgroup < steps) {
        UNROLL for (uint r = 0; r < 2 * TALL; r++) {
            UNROLL for (uint span = 0; span < 2; span++) {
                const uint unit = 8 * simdgroup + 4 * span + t;
                next[r][span] = nv_stream16(data + 16 * ulong(row[r] + (WHOLE != 0 ? unit : min(unit, units - 1))));
            }
            next_scale[r] = fetch_scales(scales, row[r] + 8 * simdgroup, row[r] + units - 1, t);
        }
    }

    if (NESTED != 0)
        for (uint i = place; i < 256; i += 32 * WARPS) nested_values[i] = nested_code->values[i];
    fill_byte_table<32 * WARPS>(table, X, code, place);
    const split_values choices = split_of(X, code);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup const uchar *lookup = (threadgroup const uchar *)table;
    nv_wait_for_last(); // the weight is under way; x comes from the launch before

    // A lane's column of the right factor. Where it has zeros it reads the table's values past the sixteenth.
    device const uchar *zeros = (device const uchar *)(code->values + 16);
    const bool mine = BLOCKS == 1 || (BLOCKS == 2 ? t / 2 == g % 2 : t == g % 4);
    device const uchar *of_x[TILES];
    UNROLL for (uint j = 0; j < TILES; j++) {
        const uint m = min((8 * j + g) / BLOCKS, args.m - 1);
        of_x[j] = mine ? x + 2 * (ulong(m) * args.k + simdgroup * STEP + 32 * t) : zeros;
    }

    float2 sum[TALL][TILES][2]; // by rows g and g + 8; x and y are the lane's two columns
    UNROLL for (uint r = 0; r < TALL; r++)
        UNROLL for (uint j = 0; j < TILES; j++)
            UNROLL for (uint h = 0; h < 2; h++) sum[r][j][h] = float2(0.0f);

    for (uint step = simdgroup; step < steps; step += WARPS) {
        uint4 codes[2 * TALL][2];
        raw_scales raw[2 * TALL];
        UNROLL for (uint r = 0; r < 2 * TALL; r++) {
            codes[r][0] = next[r][0];
            codes[r][1] = next[r][1];
            raw[r] = next_scale[r];
            if (step + WARPS < steps) {
                UNROLL for (uint span = 0; span < 2; span++) {
                    const uint unit = 8 * (step + WARPS) + 4 * span + t;
                    next[r][span] = nv_stream16(data + 16 * ulong(row[r] + (WHOLE != 0 ? unit : min(unit, units - 1))));
                }
                next_scale[r] = fetch_scales(scales, row[r] + 8 * (step + WARPS), row[r] + units - 1, t);
            }
        }
        float4 scale[2 * TALL];
        UNROLL for (uint r = 0; r < 2 * TALL; r++) scale[r] = scales_of(raw[r], nested_values, offset);
        UNROLL for (uint span = 0; span < 2; span++) {
            const bool there = mine && (WHOLE != 0 || 8 * step + 4 * span + t < units);
            float4 part[TALL][TILES];
            UNROLL for (uint r = 0; r < TALL; r++)
                UNROLL for (uint j = 0; j < TILES; j++) part[r][j] = float4(0.0f);
            UNROLL for (uint w = 0; w < 4; w++) {
                uint4 right[TILES];
                UNROLL for (uint j = 0; j < TILES; j++) right[j] = *(
                    device const uint4 *)((WHOLE != 0 || there ? of_x[j] + (mine ? 256 * span : 0u) : zeros) + 16 * w);
                UNROLL for (uint r = 0; r < TALL; r++) {
                    const uint4 top = word_values(lookup, 4 * lane, codes[2 * r][span][w]);
                    const uint4 bottom = CHOOSE ? chosen_values(choices, codes[2 * r + 1][span][w])
                                                : word_values(lookup, 4 * lane, codes[2 * r + 1][span][w]);
                    UNROLL for (uint j = 0; j < TILES; j++) {
                        multiply_tile(X, part[r][j], uint4(top.x, bottom.x, top.y, bottom.y), right[j].xy);
                        multiply_tile(X, part[r][j], uint4(top.z, bottom.z, top.w, bottom.w), right[j].zw);
                    }
                }
            }
            UNROLL for (uint r = 0; r < TALL; r++) {
                const float2 upper = span == 0 ? scale[2 * r].xy : scale[2 * r].zw;
                const float2 lower = span == 0 ? scale[2 * r + 1].xy : scale[2 * r + 1].zw;
                UNROLL for (uint j = 0; j < TILES; j++) {
                    sum[r][j][0] = fma(upper, part[r][j].xy, sum[r][j][0]);
                    sum[r][j][1] = fma(lower, part[r][j].zw, sum[r][j][1]);
                }
            }
        }
        UNROLL for (uint j = 0; j < TILES; j++) of_x[j] += mine ? 2 * STEP * WARPS : 0u;
    }

    // The simdgroups' sums meet in threadgroup memory, where a row of x finds its blocks' too.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup float *parts = (threadgroup float *)table;
    UNROLL for (uint r = 0; r < TALL; r++)
        UNROLL for (uint j = 0; j < TILES; j++)
            UNROLL for (uint h = 0; h < 2; h++) {
                threadgroup float *to = parts + (simdgroup * COLUMNS + 8 * j + 2 * t) * ROWS + 16 * r + 8 * h + g;
                to[0] = sum[r][j][h].x;
                to[ROWS] = sum[r][j][h].y;
            }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = place; i < ROWS * COLUMNS; i += 32 * WARPS) {
        const uint m = i / ROWS, n = n0 + i % ROWS;
        if (m >= args.m || n >= args.n) break; // as the rows of the next ones are: beyond m, or beyond n alike
        float total = 0.0f;
        UNROLL for (uint h = 0; h < 4; h++) {
            if (h >= BLOCKS) continue;
            float of[WARPS];
            UNROLL for (uint s = 0; s < WARPS; s++) of[s] = parts[(s * COLUMNS + m * BLOCKS + h) * ROWS + i % ROWS];
            UNROLL for (uint s = 0; s < WARPS; s++) total += of[s];
        }
        save(y, Y, ulong(m) * args.n + n, BIAS != 0 ? total + bias[n] : total);
    }
}

template [[host_name("matmul_few_1_1_8")]] [[kernel]] decltype(matmul_few<1, 1, 8, false>) matmul_few<1, 1, 8, false>;
template
    [[host_name("matmul_few_1_2_8_choose")]] [[kernel]] decltype(matmul_few<1, 2, 8, true>) matmul_few<1, 2, 8, true>;
template [[host_name("matmul_few_2_2_8")]] [[kernel]] decltype(matmul_few<2, 2, 8, false>) matmul_few<2, 2, 8, false>;
template [[host_name("matmul_few_4_2_8")]] [[kernel]] decltype(matmul_few<4, 2, 8, false>) matmul_few<4, 2, 8, false>;
