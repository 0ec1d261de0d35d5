// Dequantising 4-bit codes at memory's speed, in the place of metal/dequantize.metal's kernel for blocks that are
// powers of two from 32 on: the same arguments and bytes.
//
// A simdgroup takes 1,024 elements, whose loads are all under way together: a lane has 4 words of codes and the scale
// of 32 elements. What it stores is 16 bytes next to its neighbours', so that it asks other lanes for scales; and for
// the codebook's 16 values, of which a lane holds one. Simdgroups share nothing and wait for nobody. What is left
// behind the last 1,024 is taken by further simdgroups, an element a lane.

constant uint TO [[function_constant(1)]];
constant uint SCALES [[function_constant(2)]]; // SCALES_F32 or SCALES_NESTED

enum { WORDS = DEQUANTIZE4_SPAN / 256 }; // of 8 codes, a lane's

struct source {
    device const uchar *codes, *absmax;
    device const float *nested_absmax, *nested_values;
    float nested_offset;
    uint shift, nested_shift; // of blocks
};

// A span's words of codes, of which a lane has one in 32, and the scale of its elements from 32 · lane on.
struct held {
    uint words[WORDS];
    float scale;
};

// Product and sum are rounded one by one, as scale_of in metal/common.h does.
inline float scale_at(thread const source &of, ulong i) {
    const uint block = uint(i >> of.shift);
    if (SCALES == SCALES_F32) return ((device const float *)of.absmax)[block];
    const float product = of.nested_values[of.absmax[block]] * of.nested_absmax[block >> of.nested_shift];
    return product + of.nested_offset;
}

inline held hold(thread const source &of, uint span, uint lane) {
    device const uint *words = (device const uint *)of.codes + ulong(span) * (DEQUANTIZE4_SPAN / 8) + lane;
    held to;
    UNROLL for (uint j = 0; j < WORDS; j++) to.words[j] = words[32 * j];
    to.scale = scale_at(of, ulong(span) * DEQUANTIZE4_SPAN + 32 * lane);
    return to;
}

// The values of the 4 codes in a word's low half; the first of a byte's two codes is the high one.
inline float4 values_of(float value, uint word) {
    return float4(nv_from_lane(value, word >> 4), nv_from_lane(value, word), nv_from_lane(value, word >> 12),
                  nv_from_lane(value, word >> 8));
}

// Writes a span's elements, of which a lane has 4 in 128.
inline void write_floats(thread const held &of, float value, device uint4 *y, uint lane) {
    UNROLL for (uint j = 0; j < 2 * WORDS; j++) {
        const uint word = nv_from_lane(of.words[j / 2], 16 * (j % 2) + lane / 2) >> (16 * (lane % 2));
        y[32 * j + lane] = as_type<uint4>(values_of(value, word) * nv_from_lane(of.scale, 4 * j + lane / 8));
    }
}

// The same in half precision, of which it has 8 in 256.
inline void write_halves(thread const held &of, float value, device uint4 *y, uint lane) {
    UNROLL for (uint j = 0; j < WORDS; j++) {
        const float scale = nv_from_lane(of.scale, 8 * j + lane / 4);
        const float4 low = values_of(value, of.words[j]) * scale;
        const float4 high = values_of(value, of.words[j] >> 16) * scale;
        y[32 * j + lane] = uint4(pair_of(TO, low.x, low.y), pair_of(TO, low.z, low.w), pair_of(TO, high.x, high.y),
                                 pair_of(TO, high.z, high.w));
    }
}

[[host_name("dequantize4")]] [[kernel, max_total_threads_per_threadgroup(DEQUANTIZE_THREADS)]]
void dequantize4(constant dequantize_args &args [[buffer(0)]],
                 device const uchar *codes [[buffer(1)]],
                 device const uchar *absmax [[buffer(2)]],
                 device const float *nested_absmax [[buffer(3)]],
                 device const kernel_codebook *code [[buffer(4)]],
                 device const kernel_codebook *nested_code [[buffer(5)]],
                 device uchar *y [[buffer(6)]],
                 device const uchar *offsets [[buffer(7)]], // of blocks, which have none
                 device const float *nested_offset [[buffer(8)]],
                 uint group [[threadgroup_position_in_grid]],
                 uint simdgroup [[simdgroup_index_in_threadgroup]],
                 uint lane [[thread_index_in_simdgroup]]) {
    const source of = {codes,
                       absmax,
                       nested_absmax,
                       nested_code->values,
                       SCALES == SCALES_NESTED ? nested_offset[0] : 0.0f,
                       args.scales.shift,
                       args.scales.nested_shift};
    const float value = code->values[lane % 16];
    const ulong count = count_of(args.count_low, args.count_high);
    const uint spans = uint(count / DEQUANTIZE4_SPAN), span = group * (DEQUANTIZE_THREADS / 32) + simdgroup;
    if (span < spans) {
        const held now = hold(of, span, lane);
        device uint4 *to = (device uint4 *)y + ulong(span) * (DEQUANTIZE4_SPAN / (TO == STORE_F32 ? 4 : 8));
        if (TO == STORE_F32) write_floats(now, value, to, lane);
        else write_halves(now, value, to, lane);
    } else {
        const ulong i = ulong(spans) * DEQUANTIZE4_SPAN + ulong(span - spans) * 32 + lane;
        if (i < count) save(y, TO, i, code->values[code_at(codes, 4, i)] * scale_at(of, i));
    }
}
