// What the kernel families share: elements as floats, and weights out of dense or quantised matrices.
//
// A format is a function constant, so one kernel serves every dtype; it is handed down as an ordinary argument, which
// the compiler folds. A shape that sizes an array is a template parameter. bf16 is held as 16 bits and widened by a
// shift: any M-series chip and MSL 3.0 can do that. Matrices come as bytes, because the dtype isn't in the type.

// Apple's compiler may fuse a product and a sum into one rounding, within a statement at least, and what it fuses
// changes with its version. Where it is wanted kernels say fma; elsewhere each operation is rounded by itself, as on
// every other device.
#pragma METAL fp contract(off)

// A piece of threadgroup memory that only this simdgroup touches.
#ifndef OWN_SLICE
#define OWN_SLICE(slice, elements) slice
#endif

// Before a loop over an array that must live in registers: a compiler that leaves it a loop would put it in memory.
#define UNROLL _Pragma("clang loop unroll(full)")

// Eight elements: a whole load or store of 16 bytes in half precision, and of 32 codes' bits.
struct octet {
    float4 low, high;
};

inline ulong count_of(uint low, uint high) { return ulong(high) << 32 | low; }

// ── Elements ────────────────────────────────────────────────────────────────────────────────────────────────────────

inline float4 widen_bf16(uint2 pairs) {
    return as_type<float4>(uint4(pairs.x << 16, pairs.x & 0xffff0000u, pairs.y << 16, pairs.y & 0xffff0000u));
}

// Rounds to nearest even; a NaN stays one.
inline uint narrow_bf16(float value) {
    const uint bits = as_type<uint>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 64u;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

inline uint2 narrow_bf16(float4 v) {
    return uint2(narrow_bf16(v.x) | narrow_bf16(v.y) << 16, narrow_bf16(v.z) | narrow_bf16(v.w) << 16);
}

inline float load(device const uchar *data, uint store, ulong i) {
    if (store == STORE_F16) return float(((device const half *)data)[i]);
    if (store == STORE_BF16) return as_type<float>(uint(((device const ushort *)data)[i]) << 16);
    return ((device const float *)data)[i];
}

// Elements i to i + 7, where i is a multiple of 8.
inline octet load8(device const uchar *data, uint store, ulong i) {
    if (store == STORE_F32) {
        device const float4 *wide = (device const float4 *)(data + 4 * i);
        return octet{wide[0], wide[1]};
    }
    const uint4 wide = *(device const uint4 *)(data + 2 * i);
    if (store == STORE_BF16) return octet{widen_bf16(wide.xy), widen_bf16(wide.zw)};
    return octet{float4(as_type<half4>(wide.xy)), float4(as_type<half4>(wide.zw))};
}

// Elements i to i + 3, where i is a multiple of 4.
inline float4 load4(device const uchar *data, uint store, ulong i) {
    if (store == STORE_F32) return *(device const float4 *)(data + 4 * i);
    const uint2 wide = *(device const uint2 *)(data + 2 * i);
    return store == STORE_BF16 ? widen_bf16(wide) : float4(as_type<half4>(wide));
}

// Elements i to i + 7 for any i, of which only the first `count` elements are there; the others are zeros.
inline octet load_some(device const uchar *data, uint store, ulong i, uint count) {
    octet v = {float4(0.0f), float4(0.0f)};
    UNROLL for (uint j = 0; j < 4; j++) {
        if (j < count) v.low[j] = load(data, store, i + j);
        if (j + 4 < count) v.high[j] = load(data, store, i + j + 4);
    }
    return v;
}

inline void save(device uchar *data, uint store, ulong i, float value) {
    if (store == STORE_F16)
        ((device half *)data)[i] = half(value);
    else if (store == STORE_BF16)
        ((device ushort *)data)[i] = ushort(narrow_bf16(value));
    else
        ((device float *)data)[i] = value;
}

// Elements i to i + 3, where i is a multiple of 4.
inline void save4(device uchar *data, uint store, ulong i, float4 v) {
    if (store == STORE_F32)
        *(device float4 *)(data + 4 * i) = v;
    else if (store == STORE_BF16)
        *(device uint2 *)(data + 2 * i) = narrow_bf16(v);
    else
        *(device uint2 *)(data + 2 * i) = as_type<uint2>(half4(v));
}

inline void save8(device uchar *data, uint store, ulong i, octet v) {
    if (store == STORE_F32) {
        device float4 *wide = (device float4 *)(data + 4 * i);
        wide[0] = v.low;
        wide[1] = v.high;
    } else if (store == STORE_BF16) {
        *(device uint4 *)(data + 2 * i) = uint4(narrow_bf16(v.low), narrow_bf16(v.high));
    } else {
        *(device uint4 *)(data + 2 * i) = uint4(as_type<uint2>(half4(v.low)), as_type<uint2>(half4(v.high)));
    }
}

inline void save_some(device uchar *data, uint store, ulong i, uint count, octet v) {
    UNROLL for (uint j = 0; j < 4; j++) {
        if (j < count) save(data, store, i + j, v.low[j]);
        if (j + 4 < count) save(data, store, i + j + 4, v.high[j]);
    }
}

// ── Weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────

// A matrix to read from: dense, or codes with a scale a block. The values that codes stand for are looked up in
// threadgroup memory, the fastest place for a small table that each lane indexes otherwise.
struct weights {
    uint                     store, scale_store, offset_store; // STORE_…, SCALES_…, OFFSETS_…
    scale_layout             scales;
    device const uchar      *data;
    device const uchar      *absmax; // floats, or codes of the nested codebook
    device const uchar      *nested_absmax;
    device const float      *nested_offsets; // of each group, or of all
    float                    nested_offset;  // that of all
    device const uchar      *offsets;        // as absmax
    device const uchar      *offsets_absmax;
    threadgroup const float *values, *nested_values;
};

inline bool is_nested(uint scale_store) {
    return scale_store == SCALES_NESTED || scale_store == SCALES_JOINED || scale_store == SCALES_CODED;
}

// The offset that all nested scales have, which a kernel reads once.
inline float offset_of_all(uint scale_store, device const float *nested_offsets) {
    return scale_store == SCALES_NESTED || scale_store == SCALES_CODED ? nested_offsets[0] : 0.0f;
}

inline uint block_of(thread const weights &w, ulong i) {
    return uint(w.scales.shift < 32 ? i >> w.scales.shift : i / w.scales.block);
}

inline uint group_of(thread const weights &w, uint block) {
    return w.scales.nested_shift < 32 ? block >> w.scales.nested_shift : block / w.scales.nested_block;
}

// Code i of a string of codes of so many bits, which lies in one byte or two.
inline uint code_at(device const uchar *codes, uint bits, ulong i) {
    if (bits == 8) return codes[i];
    const uint          from = uint(i * bits) & 7u;
    device const uchar *at = codes + i * bits / 8;
    uint                both = uint(at[0]) << 8;
    if (from + bits > 8) both |= at[1];
    return both >> (16 - from - bits) & ((1u << bits) - 1);
}

// What the code of a block stands for, by the scale of its group.
inline float nested_value(thread const weights &w, device const uchar *codes, device const uchar *absmax, uint block,
                          uint group) {
    return w.nested_values[code_at(codes, w.scales.nested_bits, block)] * load(absmax, w.scales.nested_store, group);
}

// Product and sum are rounded one by one, as bitsandbytes and the CPU do, so that every device gives the same bits.
inline float scale_of(thread const weights &w, uint block) {
    if (w.scale_store == SCALES_F32) return ((device const float *)w.absmax)[block];
    if (w.scale_store == SCALES_F16) return load(w.absmax, STORE_F16, block);
    if (w.scale_store == SCALES_BF16) return load(w.absmax, STORE_BF16, block);
    const uint group = group_of(w, block);
    float      product;
    if (w.scale_store == SCALES_NESTED)
        product = w.nested_values[w.absmax[block]] * ((device const float *)w.nested_absmax)[group];
    else
        product = nested_value(w, w.absmax, w.nested_absmax, block, group);
    return product + (w.scale_store == SCALES_JOINED ? w.nested_offsets[group] : w.nested_offset);
}

// What is added to the block's elements once they are scaled; only where w.offset_store says that there is something.
inline float offset_of(thread const weights &w, uint block) {
    if (w.offset_store != OFFSETS_CODED) return load(w.offsets, w.offset_store - OFFSETS_F32, block);
    return nested_value(w, w.offsets, w.offsets_absmax, block, group_of(w, block));
}

// Eight values under one scale, as the elements that they stand for.
inline octet decoded8(thread const weights &w, octet v, uint block) {
    const float scale = scale_of(w, block);
    v.low *= scale;
    v.high *= scale;
    if (w.offset_store == OFFSETS_NONE) return v;
    const float offset = offset_of(w, block);
    v.low += offset;
    v.high += offset;
    return v;
}

// The bits of a code, and how many values there are.
inline bool is_coded(uint store) { return store >= STORE_CODE; }
inline uint bits_of(uint store) { return store - STORE_CODE; }
inline uint size_of(uint store) { return 1u << bits_of(store); }

// Appends a byte, the jth of 8 codes, to the codes' bits: the first four codes in x, the last four in y.
inline uint2 append_byte(uint2 halves, uint bits, uint j, uint byte) {
    if (2 * j + 2 <= bits) return uint2(halves.x << 8 | byte, halves.y);
    if (2 * j >= bits) return uint2(halves.x, halves.y << 8 | byte);
    return uint2(halves.x << 4 | byte >> 4, byte & 15u);
}

// The codes of 8 elements from i on, a multiple of 8. Those of 4 bits are 4 bytes in x, those of 8 bits 8 bytes, as
// they lie; of others, four codes are the low bits of each word, the last in the lowest.
inline uint2 codes8(thread const weights &w, ulong i) {
    if (w.store == STORE_CODE4) return uint2(*(device const uint *)(w.data + i / 2), 0u);
    if (w.store == STORE_CODE8) return *(device const uint2 *)(w.data + i);
    const uint          bits = bits_of(w.store);
    device const uchar *bytes = w.data + i / 8 * bits;
    uint2               halves = uint2(0u);
    UNROLL for (uint j = 0; j < 7; j++) if (j < bits) halves = append_byte(halves, bits, j, bytes[j]);
    return halves;
}

// The values of 8 codes, before their scale.
inline octet values8(thread const weights &w, uint2 codes) {
    threadgroup const float *of = w.values;
    if (w.store == STORE_CODE4) {
        const uint c = codes.x; // the first of a byte's two codes is the high one
        return octet{float4(of[c >> 4 & 15u], of[c & 15u], of[c >> 12 & 15u], of[c >> 8 & 15u]),
                     float4(of[c >> 20 & 15u], of[c >> 16 & 15u], of[c >> 28], of[c >> 24 & 15u])};
    }
    const uint a = codes.x, b = codes.y;
    if (w.store != STORE_CODE8) {
        const uint bits = bits_of(w.store), mask = size_of(w.store) - 1;
        return octet{float4(of[a >> 3 * bits], of[a >> 2 * bits & mask], of[a >> bits & mask], of[a & mask]),
                     float4(of[b >> 3 * bits], of[b >> 2 * bits & mask], of[b >> bits & mask], of[b & mask])};
    }
    return octet{float4(of[a & 255u], of[a >> 8 & 255u], of[a >> 16 & 255u], of[a >> 24]),
                 float4(of[b & 255u], of[b >> 8 & 255u], of[b >> 16 & 255u], of[b >> 24])};
}

// One weight, wherever it lies.
inline float weight_of(thread const weights &w, ulong i) {
    if (!is_coded(w.store)) return load(w.data, w.store, i);
    const uint  block = block_of(w, i);
    const float scaled = w.values[code_at(w.data, bits_of(w.store), i)] * scale_of(w, block);
    if (w.offset_store == OFFSETS_NONE) return scaled;
    return scaled + offset_of(w, block);
}

// `count` weights from any i on, then zeros: for rows and blocks that the wide loads don't fit.
inline octet gather8(thread const weights &w, ulong i, uint count) {
    octet v = {float4(0.0f), float4(0.0f)};
    UNROLL for (uint j = 0; j < 4; j++) {
        if (j < count) v.low[j] = weight_of(w, i + j);
        if (j + 4 < count) v.high[j] = weight_of(w, i + j + 4);
    }
    return v;
}

// The sum with products added, each rounded once.
inline float add_dot4(float sum, float4 a, float4 b) {
    UNROLL for (uint j = 0; j < 4; j++) sum = fma(a[j], b[j], sum);
    return sum;
}

inline float add_dot8(float sum, octet a, octet b) { return add_dot4(add_dot4(sum, a.low, b.low), a.high, b.high); }

// How many of the 8 elements from `at` on come before `end`.
inline uint within(ulong at, ulong end) { return at >= end ? 0u : uint(min(end - at, ulong(8))); }

// ── Nearest codes ───────────────────────────────────────────────────────────────────────────────────────────────────

// Apple's GPUs take subnormal numbers for zeros, operands and results alike: what is below 2^-126.
constant float LEAST_NORMAL = 0x1p-126f;

// The correctly rounded 1 / x where that is subnormal, times four: for 2^126 < x. With 64 steps down both x and its
// reciprocal are ordinary numbers, and what a subnormal result lacks of 24 bits is rounded off. The quotient has been
// rounded once by then; where that has made it look like halfway between two results, its remainder tells on which side
// it is.
inline float four_over(float x) {
    const float scaled = x * 0x1p-64f, y = 1.0f / scaled;
    const float grid = 0x1p-62f; // of numbers between this and its double the last bit is what a subnormal's is
    float       rounded = y + grid;
    rounded -= grid;
    const float half_step = 0x1p-86f, off = y - rounded;
    const float remainder = fma(-scaled, y, 1.0f);
    if (fabs(off) == half_step && remainder != 0.0f) rounded = remainder > 0.0f ? y + half_step : y - half_step;
    return rounded * 0x1p-62f;
}

// What brings a block into [-1, 1]: x · before · factor. Two steps, since the reciprocal of a large number is
// subnormal.
struct inverse {
    float before, factor;
};

// As the CPU's inverse: of the magnitudes too small for a reciprocal nothing is left here.
inline inverse inverse_of(float absmax) {
    const float magnitude = fabs(absmax);
    if (magnitude > 0x1p126f && magnitude < INFINITY)
        return inverse{0.25f, absmax < 0.0f ? -four_over(-absmax) : four_over(absmax)};
    return inverse{1.0f, magnitude >= LEAST_NORMAL ? 1.0f / absmax : 1e38f};
}

// Within [-1, 1]; a NaN becomes -1, so that what is looked up by it is in a table.
inline float  scaled_by(float x, inverse by) { return precise::clamp(x * by.before * by.factor, -1.0f, 1.0f); }
inline float4 scaled_by(float4 x, inverse by) {
    return precise::clamp(x * by.before * by.factor, float4(-1.0f), float4(1.0f));
}

// Magnitudes are compared as integers, which order floats alike and keep a NaN, where fmax would drop it.
inline uint magnitude_of(float x) { return as_type<uint>(x) & 0x7fffffffu; }

// The count of 255 thresholds strictly below x: the bucket of x gives a first count, and a few thresholds in it remain.
inline uint below8(threadgroup const float *thresholds, threadgroup const uchar *start, uint steps, float x) {
    const uint bits = as_type<uint>(x);
    const uint key = (bits & 0x7fffffffu) >> CODES_BUCKET_SHIFT;
    const uint bucket = key < CODES_BUCKET_BASE ? 0u : key - CODES_BUCKET_BASE;
    uint       below = start[(bits >> 31) * CODES_STARTS + bucket];
    for (uint j = 0; j < steps; j++) below += x > thresholds[below] ? 1u : 0u;
    return below;
}

// ── LLM.int8() ──────────────────────────────────────────────────────────────────────────────────────────────────────

// What a code stands for, with upstream's constant for 1 / 127.
inline float int8_weight(char code, float stats) { return float(code) * stats * 7.874015718698502e-3f; }
