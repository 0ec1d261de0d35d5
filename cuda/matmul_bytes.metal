// y = x · wᵀ + bias for a row of x and a weight of codes of a byte, in fp32: the head of a language model, most of all.
// The codebook lies in threadgroup memory once for each lane, so that a lookup is one load from the lane's own bank.

constant uint X [[function_constant(0)]];    // of x and y
constant uint BIAS [[function_constant(4)]]; // whether there is one

enum { BYTES_THREADS = 512, BYTES_ROWS = 4, BYTES_STEP = 512 }; // rows and columns that a simdgroup takes at once

// What a lane takes of a row at once: 16 codes, which lie in one block, and its scale.
struct piece {
    uint4 codes;
    float scale;
};

// Of rows from n on; past the last row the last one is read again.
inline void fetch_rows(thread piece (&to)[BYTES_ROWS], device const uchar *codes, device const float *absmax,
                       constant matmul_args &args, uint n, uint k) {
    UNROLL for (uint r = 0; r < BYTES_ROWS; r++) {
        const ulong at = ulong(min(n + r, args.n - 1)) * args.k + min(k, args.k - 16);
        to[r] = piece{nv_stream16(codes + at), absmax[at >> args.scales.shift]};
    }
}

inline float sum_of(threadgroup const float *table, uint4 codes, thread const float (&x)[16]) {
    float sum = 0.0f;
    UNROLL for (uint w = 0; w < 4; w++)
        UNROLL for (uint b = 0; b < 4; b++)
            sum = fma(table[32 * (codes[w] >> 8 * b & 255u)], x[4 * w + b], sum);
    return sum;
}

// Every simdgroup takes BYTES_ROWS rows of w at once, and those of the whole grid take turns.
[[host_name("matmul_bytes")]] [[kernel]]
void matmul_bytes(constant matmul_args &args [[buffer(0)]],
                  device const uchar *x [[buffer(1)]],
                  device const uchar *codes [[buffer(2)]],
                  device const float *absmax [[buffer(3)]],
                  device const float *nested_absmax [[buffer(4)]],
                  device const kernel_codebook *code [[buffer(5)]],
                  device const kernel_codebook *nested_code [[buffer(6)]],
                  device const float *bias [[buffer(7)]],
                  device uchar *y [[buffer(8)]],
                  uint3 group [[threadgroup_position_in_grid]],
                  uint3 groups [[threadgroups_per_grid]],
                  uint place [[thread_index_in_threadgroup]],
                  uint simdgroup [[simdgroup_index_in_threadgroup]],
                  uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float tables[256 * 32];
    for (uint i = place; i < 256 * 32; i += BYTES_THREADS) tables[i] = code->values[i / 32];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup const float *table = tables + lane;
    const uint turns = (args.n + BYTES_ROWS - 1) / BYTES_ROWS, simdgroups = BYTES_THREADS / 32;
    for (uint turn = group.x * simdgroups + simdgroup; turn < turns; turn += groups.x * simdgroups) {
        const uint n = turn * BYTES_ROWS;
        float sum[BYTES_ROWS];
        UNROLL for (uint r = 0; r < BYTES_ROWS; r++) sum[r] = 0.0f;
        piece next[BYTES_ROWS]; // is under way while the last is looked up
        fetch_rows(next, codes, absmax, args, n, 16 * lane);
        for (uint k = 16 * lane; k < args.k; k += BYTES_STEP) {
            piece of[BYTES_ROWS];
            UNROLL for (uint r = 0; r < BYTES_ROWS; r++) of[r] = next[r];
            if (k + BYTES_STEP < args.k) fetch_rows(next, codes, absmax, args, n, k + BYTES_STEP);
            const octet first = load8(x, X, k), second = load8(x, X, k + 8);
            float part[16];
            UNROLL for (uint e = 0; e < 4; e++) {
                part[e] = first.low[e], part[4 + e] = first.high[e];
                part[8 + e] = second.low[e], part[12 + e] = second.high[e];
            }
            UNROLL for (uint r = 0; r < BYTES_ROWS; r++)
                sum[r] = fma(sum_of(table, of[r].codes, part), of[r].scale, sum[r]);
        }
        UNROLL for (uint r = 0; r < BYTES_ROWS; r++) {
            const float total = simd_sum(sum[r]);
            if (lane == 0 && n + r < args.n) save(y, X, n + r, BIAS != 0 ? total + bias[n + r] : total);
        }
    }
}
