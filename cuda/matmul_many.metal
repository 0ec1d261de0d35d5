// y = x · wᵀ + bias for many rows of x and a weight of 4-bit codes, on the tensor cores of any GPU since 2020: x is the
// left factor, out of threadgroup memory, w the right one, decoded into registers. So a threadgroup decodes its part of
// w once for 16 × MT × WM rows of x, and the decoded weights are never stored. They are rounded to x's dtype, scale and
// all.

constant uint X [[function_constant(0)]];      // of x: STORE_F16 or STORE_BF16
constant uint Y [[function_constant(1)]];      // of y: any float; STORE_F32 where it holds parts of a split
constant uint NESTED [[function_constant(2)]]; // whether absmax holds codes
constant uint BIAS [[function_constant(4)]];

// A weight's scales; places are counted in units of 32 weights, which keeps them in 32 bits.
struct scale_source {
    device const uchar *absmax;
    device const float *nested_absmax;
    threadgroup const float *nested_values;
    uint shift, nested_shift; // of a unit's place to its block's, and of that to its group's
    float offset;
};

inline float scale_at(thread const scale_source &from, uint unit) {
    const uint block = unit >> from.shift;
    if (NESTED == 0) return ((device const float *)from.absmax)[block];
    const float product = from.nested_values[from.absmax[block]] * from.nested_absmax[block >> from.nested_shift];
    return product + from.offset;
}

enum { PITCH = 144 }; // of a row of x's tile: 64 elements, and 16 bytes that spread the rows over the banks

// A simdgroup takes 16 × MT rows of x and 8 × NT of w, WM × WN simdgroups a threadgroup; x comes STAGES - 1 steps of 64
// ahead.
template <uint MT, uint NT, uint WM, uint WN, uint STAGES>
[[kernel]] void matmul_many(constant matmul_args &args [[buffer(0)]],
                            device const uchar *x [[buffer(1)]],
                            device const uchar *data [[buffer(2)]],
                            device const uchar *absmax [[buffer(3)]],
                            device const float *nested_absmax [[buffer(4)]],
                            device const kernel_codebook *code [[buffer(5)]],
                            device const kernel_codebook *nested_code [[buffer(6)]],
                            device const float *bias [[buffer(7)]],
                            device uchar *y [[buffer(8)]],
                            device const float *nested_offset [[buffer(9)]],
                            threadgroup uchar *shared [[threadgroup(0)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint place [[thread_index_in_threadgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]],
                            uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint ROWS = 16 * MT * WM, COLUMNS = 8 * NT * WN, STAGE = ROWS * PITCH, THREADS = 32 * WM * WN;
    threadgroup float *nested_values = (threadgroup float *)(shared + 4 * BYTE_TABLE_WORDS);
    threadgroup uchar *tiles = shared + 4 * BYTE_TABLE_WORDS + 1024;
    const uint g = lane / 4, t = lane % 4, m0 = group.y * ROWS, n0 = group.x * COLUMNS;
    const uint wm = simdgroup % WM * (16 * MT), wn = n0 + simdgroup / WM * (8 * NT);
    const uint         steps = (args.k + 63) / 64, first = group.z * (args.split / 64),
                       end = min(steps, first + args.split / 64);

    // What a thread brings of x in a step: 16 bytes of every THREADS / 8th row, or zeros past the end of a row or of x.
    const uint piece = place % 8, bring_row = place / 8;
    threadgroup uchar *brought = tiles + bring_row * PITCH + piece * 16;
    UNROLL for (uint s = 0; s < STAGES - 1; s++) {
        if (first + s < end)
            UNROLL for (uint i = 0; i < ROWS * 8 / THREADS; i++) {
                const uint m = m0 + bring_row + i * (THREADS / 8), k = (first + s) * 64 + piece * 8;
                const bool there = m < args.m && k < args.k;
                nv_copy(brought + s * STAGE + i * (THREADS / 8) * PITCH, there ? x + 2 * (ulong(m) * args.k + k) : x,
                        there);
            }
        nv_copy_commit();
    }

    // A lane takes 16 weights of a row in a step, 8 bytes. Past the end of a row they are whatever, beside zeros of x.
    const scale_source scales = {
        absmax, nested_absmax, nested_values, args.scales.shift - 5, args.scales.nested_shift,
        NESTED != 0 ? nested_offset[0] : 0.0f};
    const uint units = args.k / 32;
    uint row[NT];
    UNROLL for (uint j = 0; j < NT; j++) row[j] = min(wn + 8 * j + g, args.n - 1) * units;
    uint2 next[NT];
    UNROLL for (uint j = 0; j < NT; j++) {
        const uint unit = row[j] + min(2 * first + t / 2, units - 1);
        next[j] = *(device const uint2 *)(data + 16 * ulong(unit) + t % 2 * 8);
    }
    if (NESTED != 0)
        for (uint i = place; i < 256; i += THREADS) nested_values[i] = nested_code->values[i];
    fill_byte_table<THREADS>((threadgroup uint *)shared, X, code, place);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float next_scale[NT];
    UNROLL for (uint j = 0; j < NT; j++) next_scale[j] = scale_at(scales, row[j] + min(2 * first + t / 2, units - 1));

    float4 sum[MT][NT];
    UNROLL for (uint i = 0; i < MT; i++)
        UNROLL for (uint j = 0; j < NT; j++) sum[i][j] = float4(0.0f);

    uint stage = 0;
    for (uint step = first; step < end; step++) {
        nv_copy_wait<int(STAGES) - 2>();
        threadgroup_barrier(mem_flags::mem_threadgroup); // this step's x is there, and the last one's has been read
        const uint into = stage == 0 ? STAGES - 1 : stage - 1, ahead = step + STAGES - 1;
        if (ahead < end)
            UNROLL for (uint i = 0; i < ROWS * 8 / THREADS; i++) {
                const uint m = m0 + bring_row + i * (THREADS / 8), k = ahead * 64 + piece * 8;
                const bool there = m < args.m && k < args.k;
                nv_copy(brought + into * STAGE + i * (THREADS / 8) * PITCH, there ? x + 2 * (ulong(m) * args.k + k) : x,
                        there);
            }
        nv_copy_commit();

        uint2 codes[NT];
        uint scale[NT];
        UNROLL for (uint j = 0; j < NT; j++) {
            const uint unit = row[j] + min(2 * min(step + 1, end - 1) + t / 2, units - 1);
            codes[j] = next[j];
            scale[j] = pair_of(X, next_scale[j], next_scale[j]);
            next[j] = *(device const uint2 *)(data + 16 * ulong(unit) + t % 2 * 8);
            next_scale[j] = scale_at(scales, unit);
        }
        threadgroup const uchar *from = tiles + stage * STAGE + (wm + g) * PITCH + t * 32;
        UNROLL for (uint side = 0; side < 2; side++) {
            uint4 upper[MT], lower[MT];
            UNROLL for (uint i = 0; i < MT; i++) {
                upper[i] = *(threadgroup const uint4 *)(from + 16 * i * PITCH + side * 16);
                lower[i] = *(threadgroup const uint4 *)(from + (16 * i + 8) * PITCH + side * 16);
            }
            UNROLL for (uint j = 0; j < NT; j++) {
                const uint4 values = word_values(shared, 4 * lane, side == 0 ? codes[j].x : codes[j].y);
                const uint2 early = uint2(multiply_pair(X, values.x, scale[j]), multiply_pair(X, values.y, scale[j]));
                const uint2 late = uint2(multiply_pair(X, values.z, scale[j]), multiply_pair(X, values.w, scale[j]));
                UNROLL for (uint i = 0; i < MT; i++)
                    multiply_tile(X, sum[i][j], uint4(upper[i].x, lower[i].x, upper[i].y, lower[i].y), early);
                UNROLL for (uint i = 0; i < MT; i++)
                    multiply_tile(X, sum[i][j], uint4(upper[i].z, lower[i].z, upper[i].w, lower[i].w), late);
            }
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    nv_copy_wait<0>();

    device uchar *part = y + ulong(group.z) * args.m * args.n * 4;
    UNROLL for (uint i = 0; i < MT; i++)
        UNROLL for (uint h = 0; h < 2; h++)
            UNROLL for (uint j = 0; j < NT; j++)
                save_pair(part, Y, args.m, args.n, m0 + wm + 16 * i + 8 * h + g, wn + 8 * j + 2 * t,
                          h == 0 ? sum[i][j].xy : sum[i][j].zw, bias, BIAS);
}

template
    [[host_name("matmul_many_2_4_1_4_4")]] [[kernel]] decltype(matmul_many<2, 4, 1, 4, 4>) matmul_many<2, 4, 1, 4, 4>;
template
    [[host_name("matmul_many_4_4_1_4_4")]] [[kernel]] decltype(matmul_many<4, 4, 1, 4, 4>) matmul_many<4, 4, 1, 4, 4>;
template
    [[host_name("matmul_many_4_4_2_4_3")]] [[kernel]] decltype(matmul_many<4, 4, 2, 4, 3>) matmul_many<4, 4, 2, 4, 3>;
