// Attention in three steps. attention_prepare normalises and rotates, and puts keys and values where they are kept: a
// simdgroup takes a head of a row. attention takes a head of a row with a threadgroup, whose simdgroups go over the
// keys by turns, 32 at a time: a lane scores a key, then the lanes share the columns of the values among themselves,
// with a running maximum and sum (Milakov and Gimelshein 2018). Where the keys are split, attention_merge makes one of
// the parts.

constant uint X [[function_constant(0)]];       // of q, k, v and y
constant uint STORE [[function_constant(1)]];   // of keys and values: STORE_F32, STORE_F16 or STORE_I8
constant uint CACHED [[function_constant(2)]];  // whether keys are counted by position, else by row
constant uint ROTATES [[function_constant(3)]]; // whether there is a table of angles
constant uint NORMS [[function_constant(4)]];   // whether heads are normalised
constant uint BIAS [[function_constant(5)]];    // whether scores are biased by distance
constant uint SPLIT [[function_constant(6)]];   // whether the result is a part
constant uint PAGED [[function_constant(7)]];   // whether a text's keys lie in pages, else in one slot

constant uint SIMDGROUPS = ATTEND_THREADS / 32;
constant float NOTHING = -3.0e38f; // below every score, and no infinity, of which differences are not numbers

inline float stored(device const uchar *data, device const float *scales, ulong row, ulong i) {
    if (STORE == STORE_I8) return float(((device const char *)data)[i]) * scales[row];
    return load(data, STORE, i);
}

// Elements i to i + 3 of a row of d, where i and d are multiples of 4.
inline float4 stored4(device const uchar *data, device const float *scales, ulong row, uint d, uint i) {
    if (STORE != STORE_I8) return load4(data, STORE, row * d + i);
    return float4(as_type<char4>(*(device const uint *)(data + row * d + i))) * scales[row];
}

// Elements i to i + 7, where i and d are multiples of 8.
inline octet stored8(device const uchar *data, device const float *scales, ulong row, uint d, uint i) {
    if (STORE != STORE_I8) return load8(data, STORE, row * d + i);
    const uint2 codes = *(device const uint2 *)(data + row * d + i);
    return octet{float4(as_type<char4>(codes.x)) * scales[row], float4(as_type<char4>(codes.y)) * scales[row]};
}

// As int8_code of csrc/cpu/forms.h.
inline char code_of(float x, float factor) {
    const float code = clamp(x * factor, -127.0f, 127.0f);
    return char(rint(code));
}

[[host_name("attention_prepare")]] [[kernel, max_total_threads_per_threadgroup(PREPARE_THREADS)]]
void attention_prepare(constant attention_args &args [[buffer(0)]],
                       device const uchar *q [[buffer(1)]],
                       device const uchar *k [[buffer(2)]],
                       device const uchar *v [[buffer(3)]],
                       device const int *rows [[buffer(4)]],
                       device const float *rope [[buffer(5)]],
                       device const float *q_norm [[buffer(6)]],
                       device const float *k_norm [[buffer(7)]],
                       device float *queries [[buffer(8)]],
                       device uchar *keys [[buffer(9)]],
                       device uchar *values [[buffer(10)]],
                       device float *key_scales [[buffer(11)]],
                       device float *value_scales [[buffer(12)]],
                       device const int *pages [[buffer(13)]],
                       uint2 group [[threadgroup_position_in_grid]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float heads[PREPARE_THREADS / 32 * ATTEND_MOST];
    threadgroup float *head = OWN_SLICE(heads + simdgroup * ATTEND_MOST, ATTEND_MOST);
    const uint row = group.y, d = args.d, which = group.x * (PREPARE_THREADS / 32) + simdgroup;
    const row_of_text at = row_at(args, rows, row, CACHED, ROTATES);
    if (!at.sound || which >= args.heads + 2 * args.kv_heads) return;
    const bool is_query = which < args.heads, is_value = which >= args.heads + args.kv_heads;
    const uint index = is_query ? which : (which - args.heads) % args.kv_heads;

    ulong from = ulong(row) * args.v_columns + args.v_first + index * d;
    if (is_query) from = ulong(row) * args.q_columns + index * d;
    else if (!is_value) from = ulong(row) * args.k_columns + args.k_first + index * d;
    float squares = 0.0f;
    for (uint i = lane; i < d; i += 32) {
        const float x = is_query ? load(q, X, from + i) : is_value ? load(v, X, from + i) : load(k, X, from + i);
        head[i] = x;
        squares += x * x;
    }
    const float total = simd_sum(squares);
    if (NORMS != 0 && !is_value) {
        const float inverse = 1.0f / precise::sqrt(total / float(d) + args.norm_eps);
        for (uint i = lane; i < d; i += 32) {
            const float weight = args.norm_offset + (is_query ? q_norm[i] : k_norm[i]);
            head[i] *= weight * inverse;
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (ROTATES != 0 && !is_value) {
        const uint half_of = args.rotated / 2;
        device const float *cosines = rope + ulong(at.position) * args.rotated, *sines = cosines + half_of;
        for (uint i = lane; i < half_of; i += 32) {
            const float a = head[i], b = head[i + half_of];
            head[i] = a * cosines[i] - b * sines[i];
            head[i + half_of] = b * cosines[i] + a * sines[i];
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }

    if (is_query) {
        for (uint i = lane; i < d; i += 32) queries[(ulong(row) * args.heads + index) * d + i] = head[i] * args.scale;
        return;
    }
    const ulong place = place_of(args, pages, at.text, index, at.own, PAGED);
    device uchar *to = is_value ? values : keys;
    if (STORE != STORE_I8) {
        for (uint i = lane; i < d; i += 32) save(to, STORE, place * d + i, head[i]);
        return;
    }
    float most = 0.0f;
    for (uint i = lane; i < d; i += 32) most = max(most, fabs(head[i]));
    most = simd_max(most);
    const float factor = most > 1e-36f ? 1.0f / most * 127.0f : 0.0f;
    for (uint i = lane; i < d; i += 32) ((device char *)to)[place * d + i] = code_of(head[i], factor);
    if (lane == 0) (is_value ? value_scales : key_scales)[place] = most / 127.0f;
}

// What the bias adds to a key that lies so far after the row; beyond its ends the ends stand.
inline float bias_at(constant attention_args &args, device const float *bias, uint head, int distance) {
    const int most = int(args.span) - 1;
    return bias[head * (2 * args.span - 1) + uint(clamp(distance, -most, most) + most)];
}

inline float score_of_octet(threadgroup const float *query, octet k, float score) {
    const float4 low = *(threadgroup const float4 *)query, high = *(threadgroup const float4 *)(query + 4);
    UNROLL for (uint e = 0; e < 4; e++) score = fma(low[e], k.low[e], score);
    UNROLL for (uint e = 0; e < 4; e++) score = fma(high[e], k.high[e], score);
    return score;
}

// A key's score, before what is done to scores.
inline float score_of(threadgroup const float *query, device const uchar *keys, device const float *key_scales,
                      ulong key, uint d) {
    float score = 0.0f;
    uint i = 0;
    if (d % 32 == 0)
        for (; i < d; i += 32) { // whose loads are under way at once
            octet k[4];
            UNROLL for (uint j = 0; j < 4; j++) k[j] = stored8(keys, key_scales, key, d, i + 8 * j);
            UNROLL for (uint j = 0; j < 4; j++) score = score_of_octet(query + i + 8 * j, k[j], score);
        }
    else if (d % 8 == 0)
        for (; i < d; i += 8) score = score_of_octet(query + i, stored8(keys, key_scales, key, d, i), score);
    for (; i < d; i++) score = fma(query[i], stored(keys, key_scales, key, key * d + i), score);
    return score;
}

// Four columns of a key's value from i on; zeros past the last.
inline float4 value_of(device const uchar *values, device const float *value_scales, ulong key, uint d, uint i) {
    if (d % 4 == 0) return i < d ? stored4(values, value_scales, key, d, i) : float4(0.0f);
    float4 v = float4(0.0f);
    UNROLL for (uint e = 0; e < 4; e++)
        if (i + e < d) v[e] = stored(values, value_scales, key, key * d + i + e);
    return v;
}

// Heads of up to 128 / SHARE × J columns. The lanes take four columns each of SHARE keys at once, by J turns.
template <uint SHARE, uint J>
[[kernel, max_total_threads_per_threadgroup(ATTEND_THREADS)]]
void attention(constant attention_args &args [[buffer(0)]],
               device const float *queries [[buffer(1)]],
               device const int *rows [[buffer(2)]],
               device const uchar *keys [[buffer(3)]],
               device const uchar *values [[buffer(4)]],
               device const float *key_scales [[buffer(5)]],
               device const float *value_scales [[buffer(6)]],
               device const float *bias [[buffer(7)]],
               device uchar *y [[buffer(8)]],
               device const int *pages [[buffer(9)]],
               uint3 group [[threadgroup_position_in_grid]],
               uint place [[thread_index_in_threadgroup]],
               uint simdgroup [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint COLUMNS = 128 / SHARE * J, TURNS = J == 1 ? 8 : J == 8 ? 1 : 4;
    threadgroup float4 query4[COLUMNS / 4];
    threadgroup float4 sums4[SIMDGROUPS * COLUMNS / 4];
    threadgroup float mosts[SIMDGROUPS], totals[SIMDGROUPS];
    threadgroup float *query = (threadgroup float *)query4, *sums = (threadgroup float *)sums4;
    const uint head = group.x, row = group.y, part = group.z, d = args.d;
    const uint kv_head = head / (args.heads / args.kv_heads);
    const row_of_text at = row_at(args, rows, row, CACHED, ROTATES);
    const uint seen = at.sound ? at.last - at.first : 0u;
    const uint share = ((seen + args.parts - 1) / args.parts + 31) / 32 * 32;
    const uint begin = min(at.last, at.first + part * share), end = at.sound ? min(at.last, begin + share) : begin;

    for (uint i = place; i < COLUMNS; i += ATTEND_THREADS)
        query[i] = i < d && at.sound ? queries[(ulong(row) * args.heads + head) * d + i] : 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const uint own_share = lane / (32 / SHARE), column = 4 * (lane % (32 / SHARE));
    float most = NOTHING, total = 0.0f;
    float4 sum[J];
    UNROLL for (uint j = 0; j < J; j++) sum[j] = float4(0.0f);
    for (uint base = begin + simdgroup * 32; base < end; base += ATTEND_THREADS) {
        const uint count = min(32u, end - base);
        const ulong key = place_of(args, pages, at.text, kv_head, base + min(lane, count - 1), PAGED);
        float score = NOTHING;
        if (lane < count) {
            score = score_of(query, keys, key_scales, key, d);
            if (args.softcap > 0.0f) {
                const float share_of_cap = score / args.softcap;
                score =
                    args.softcap * (fabs(share_of_cap) > 15.0f ? (score < 0.0f ? -1.0f : 1.0f) : tanh(share_of_cap));
            }
            if (BIAS != 0) score += bias_at(args, bias, head, int(base + lane) - int(at.own));
        }
        const float top = max(most, simd_max(score));
        const float weight = lane < count ? exp(score - top) : 0.0f, shrink = exp(most - top);
        total = total * shrink + simd_sum(weight);
        most = top;
        UNROLL for (uint j = 0; j < J; j++) sum[j] *= shrink;
        // The loads of some turns are under way at once; past the last key the weights are zeros, and the key is the
        // last.
        for (uint first = 0; first < count; first += TURNS * SHARE)
            UNROLL for (uint turn = 0; turn < TURNS; turn++) {
                const ushort of = ushort(first + turn * SHARE + own_share);
                const float of_key = simd_shuffle(weight, of);
                const ulong from = count_of(simd_shuffle(uint(key), of), simd_shuffle(uint(key >> 32), of));
                UNROLL for (uint j = 0; j < J; j++) {
                    const float4 v = value_of(values, value_scales, from, d, column + 128 / SHARE * j);
                    UNROLL for (uint e = 0; e < 4; e++) sum[j][e] = fma(of_key, v[e], sum[j][e]);
                }
            }
    }
    if (SHARE == 2)
        UNROLL for (uint j = 0; j < J; j++)
            UNROLL for (uint e = 0; e < 4; e++) sum[j][e] += simd_shuffle_xor(sum[j][e], ushort(16));

    if (lane == 0) mosts[simdgroup] = most, totals[simdgroup] = total;
    if (own_share == 0)
        UNROLL for (uint j = 0; j < J; j++) sums4[(simdgroup * COLUMNS + column + 128 / SHARE * j) / 4] = sum[j];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float all = NOTHING, whole = 0.0f;
    for (uint s = 0; s < SIMDGROUPS; s++) all = max(all, mosts[s]);
    for (uint s = 0; s < SIMDGROUPS; s++) whole += totals[s] * exp(mosts[s] - all);
    const ulong unit = ulong(row) * args.heads + head;
    device float *partial = (device float *)y + (ulong(part) * args.rows * args.heads + unit) * (d + 2);
    for (uint i = place; i < d; i += ATTEND_THREADS) {
        float merged = 0.0f;
        for (uint s = 0; s < SIMDGROUPS; s++) merged += sums[s * COLUMNS + i] * exp(mosts[s] - all);
        if (SPLIT != 0) partial[2 + i] = merged;
        else save(y, X, unit * d + i, whole > 0.0f ? merged / whole : whole);
    }
    if (SPLIT != 0 && place == 0) partial[0] = all, partial[1] = whole;
}

template [[host_name("attention_2")]] [[kernel]] decltype(attention<2, 1>) attention<2, 1>;
template [[host_name("attention_4")]] [[kernel]] decltype(attention<1, 1>) attention<1, 1>;
template [[host_name("attention_8")]] [[kernel]] decltype(attention<1, 2>) attention<1, 2>;
template [[host_name("attention_32")]] [[kernel]] decltype(attention<1, 8>) attention<1, 8>;

// A head of a row, whose parts' shares of the whole are worked out first, a thread for each part.
[[host_name("attention_merge")]] [[kernel, max_total_threads_per_threadgroup(MERGE_THREADS)]]
void attention_merge(constant attention_args &args [[buffer(0)]],
                     device const float *partial [[buffer(1)]],
                     device uchar *y [[buffer(2)]],
                     uint unit [[threadgroup_position_in_grid]],
                     uint place [[thread_index_in_threadgroup]]) {
    threadgroup float mosts[MERGE_THREADS], totals[MERGE_THREADS];
    const uint stride = args.d + 2;
    const ulong step = ulong(args.rows) * args.heads * stride;
    device const float *first = partial + ulong(unit) * stride;
    mosts[place] = place < args.parts ? first[place * step] : NOTHING;
    totals[place] = place < args.parts ? first[place * step + 1] : 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float all = NOTHING, whole = 0.0f;
    for (uint part = 0; part < args.parts; part++) all = max(all, mosts[part]);
    for (uint part = 0; part < args.parts; part++) whole += totals[part] * exp(mosts[part] - all);
    for (uint i = place; i < args.d; i += MERGE_THREADS) {
        float merged = 0.0f;
        uint part = 0;
        for (; part + 4 <= args.parts; part += 4) { // whose loads are under way at once
            float of[4];
            UNROLL for (uint j = 0; j < 4; j++) of[j] = first[(part + j) * step + 2 + i];
            UNROLL for (uint j = 0; j < 4; j++) merged += of[j] * exp(mosts[part + j] - all);
        }
        for (; part < args.parts; part++) merged += first[part * step + 2 + i] * exp(mosts[part] - all);
        save(y, X, ulong(unit) * args.d + i, whole > 0.0f ? merged / whole : whole);
    }
}
