// What the kernels for tensor cores share: pairs of half precision, and 4-bit codes looked up a byte at a time.
//
// The language is metal/'s, with the words of scripts/msl/library/cuda/nvidia.h. A dtype is handed down as an argument,
// STORE_F16 or STORE_BF16, which the compiler folds.

// Two numbers in half precision, the first in the low half.
inline uint pair_of(uint dtype, float first, float second) {
    return dtype == STORE_F16 ? as_type<uint>(half2(half(first), half(second))) : nv_pack_bf16(first, second);
}

inline uint multiply_pair(uint dtype, uint a, uint b) {
    return dtype == STORE_F16 ? as_type<uint>(as_type<half2>(a) * as_type<half2>(b)) : nv_mul_bf16(a, b);
}

// d += a · b, where a is 16 × 16 and b 16 × 8.
inline void multiply_tile(uint dtype, thread float4 &d, uint4 a, uint2 b) {
    if (dtype == STORE_F16) nv_mma_f16(d, a, b);
    else nv_mma_bf16(d, a, b);
}

// A table of all bytes of codes: 256 rows of a byte's two values, a copy for each lane, so that a lookup is one load
// from the lane's own bank. 32 KB.
enum { BYTE_TABLE_WORDS = 256 * 32 };

// A thread's bytes share their low code, and its loads are all under way at once.
template <uint THREADS>
inline void fill_byte_table(threadgroup uint *table, uint dtype, device const kernel_codebook *code, uint place) {
    static_assert(THREADS % 128 == 0, "bytes THREADS / 8 apart must have one low code");
    const float low = code->values[place / 8 & 15u];
    float high[2048 / THREADS];
    UNROLL for (uint j = 0; j < 2048 / THREADS; j++) high[j] = code->values[(place + j * THREADS) / 128];
    UNROLL for (uint j = 0; j < 2048 / THREADS; j++) {
        const uint pair = pair_of(dtype, high[j], low);
        *(threadgroup uint4 *)(table + 4 * (place + j * THREADS)) = uint4(pair, pair, pair, pair);
    }
}

// The values of the byte that starts at bit `from` of a word; `lane4` is 4 × the lane.
inline uint byte_values(threadgroup const uchar *table, uint lane4, uint word, uint from) {
    const uint row = (from == 0 ? word << 7 : word >> (from - 7)) & 0x7f80u;
    return *(threadgroup const uint *)(table + (row | lane4));
}

// The values of a word's 8 codes, in their order.
inline uint4 word_values(threadgroup const uchar *table, uint lane4, uint word) {
    return uint4(byte_values(table, lane4, word, 0), byte_values(table, lane4, word, 8),
                 byte_values(table, lane4, word, 16), byte_values(table, lane4, word, 24));
}

// The same without a table, by choosing bytes: the 16 values' low and high bytes, four a word.
struct split_values {
    uint low[4], high[4];
};

inline split_values split_of(uint dtype, device const kernel_codebook *code) {
    split_values to;
    UNROLL for (uint i = 0; i < 4; i++) {
        const uint a = pair_of(dtype, code->values[4 * i], code->values[4 * i + 1]);
        const uint b = pair_of(dtype, code->values[4 * i + 2], code->values[4 * i + 3]);
        to.low[i] = nv_permute(a, b, 0x6420u);
        to.high[i] = nv_permute(a, b, 0x7531u);
    }
    return to;
}

inline uint4 chosen_values(thread const split_values &of, uint word) {
    const uint index = word & 0x77777777u, upper = ((word >> 1) & 0x44444444u) | 0x32103210u;
    uint4 to = uint4(0u);
    UNROLL for (uint h = 0; h < 2; h++) {
        const uint i = index >> (16 * h), u = upper >> (16 * h);
        const uint high = nv_permute(nv_permute(of.high[0], of.high[1], i), nv_permute(of.high[2], of.high[3], i), u);
        const uint low = nv_permute(nv_permute(of.low[0], of.low[1], i), nv_permute(of.low[2], of.low[3], i), u);
        to[2 * h] = nv_permute(low, high, 0x4051u);
        to[2 * h + 1] = nv_permute(low, high, 0x6273u);
    }
    return to;
}

// Two neighbours of a row of y, or of a part of it, with their bias: what of them is there. n is even.
inline void save_pair(device uchar *y, uint store, uint rows, uint columns, uint m, uint n, float2 v,
                      device const float *bias, uint has_bias) {
    if (m >= rows || n >= columns) return;
    const ulong at = ulong(m) * columns + n;
    const bool both = n + 1 < columns;
    if (has_bias != 0) v += float2(bias[n], both ? bias[n + 1] : 0.0f);
    if (!both || columns % 2 != 0) { // pairs that don't lie on a word of memory
        save(y, store, at, v.x);
        if (both) save(y, store, at + 1, v.y);
    } else if (store == STORE_F32) *(device float2 *)(y + 4 * at) = v;
    else *(device uint *)(y + 2 * at) = pair_of(store, v.x, v.y);
}
