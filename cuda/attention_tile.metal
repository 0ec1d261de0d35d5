// Attention over a cache of f16 on tensor cores: scores and sums of 16 rows of q a simdgroup by tiles of keys and
// values in threadgroup memory, with a running maximum and sum a row, so that scores are never stored
// (FlashAttention-2, Dao 2023). The 16 are rows of a head, where there are many; else the heads that share keys, of
// one row. Queries, and the weights of values, are rounded to f16, as keys and values are in the cache; sums are fp32.
//
// The queries are those that attention_prepare left, scaled. The constants are attention's.

constant uint X [[function_constant(0)]]; // of y
constant uint CACHED [[function_constant(2)]];
constant uint ROTATES [[function_constant(3)]];
constant uint SPLIT [[function_constant(6)]]; // whether the result is a part, for attention_merge
constant uint PAGED [[function_constant(7)]];

enum { FLASH_ROWS = 64, FLASH_KEYS = 64, FLASH_THREADS = 128, FEW_KEYS = 32 };
constant float NOTHING = -3.0e38f; // below every score, and no infinity, of which differences are not numbers

// Bytes from a row of a tile of D columns to the next: 16 more than it has, so that eight rows' like pieces lie in
// different banks.
template <uint D> struct tile_of {
    enum { PITCH = 2 * D + 16 };
};

inline uint halves(float first, float second) { return as_type<uint>(half2(half(first), half(second))); }

// Where keys and values lie, of one head.
struct stored_heads {
    device const uchar *keys, *values;
    device const int *pages;
    uint head;
};

// Has THREADS threads bring KEYS keys and their values from `first` on, zeros from `end` on.
template <uint D, uint KEYS, uint THREADS>
inline void bring(threadgroup uchar *tile, constant attention_args &args, thread const stored_heads &from, uint text,
                  uint first, uint end, uint place) {
    UNROLL for (uint i = 0; i < KEYS * (D / 8) / THREADS; i++) {
        const uint at = place + i * THREADS, key = at / (D / 8), piece = at % (D / 8);
        const bool there = first + key < end;
        const ulong row = there ? place_of(args, from.pages, text, from.head, first + key, PAGED) : 0;
        const ulong byte = there ? 2 * row * D + 16 * piece : 0;
        nv_copy(tile + key * tile_of<D>::PITCH + 16 * piece, from.keys + byte, there);
        nv_copy(tile + (KEYS + key) * tile_of<D>::PITCH + 16 * piece, from.values + byte, there);
    }
    nv_copy_commit();
}

// The larger of what the four lanes have that share a row; and the sum.
inline float largest_of_four(float x) {
    x = max(x, simd_shuffle_xor(x, ushort(1)));
    return max(x, simd_shuffle_xor(x, ushort(2)));
}
inline float sum_of_four(float x) {
    x += simd_shuffle_xor(x, ushort(1));
    return x + simd_shuffle_xor(x, ushort(2));
}

// Scores are counted in powers of two: of a weight of e to the x, x · log2 e.
constant float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

inline float capped(float score, float softcap) {
    const float share = score * LN_2 / softcap;
    return LOG2_E * softcap * (fabs(share) > 15.0f ? (share < 0.0f ? -1.0f : 1.0f) : tanh(share));
}

// What a lane keeps of its rows g and g + 8.
template <uint D> struct row_pair {
    uint4 q[D / 16];
    float4 sum[D / 8]; // x and y of row g, z and w of row g + 8, columns 8j + 2t and the next
    float2 most, total;
    uint2 first, last; // keys that they see of the text that is gone through
};

inline uint query_at(device const float *query, uint at) {
    return halves(query[at] * LOG2_E, query[at + 1] * LOG2_E);
}

// With the queries of its rows, of which it has seen nothing yet.
template <uint D>
inline void start(thread row_pair<D> &rows, device const float *upper, device const float *lower, uint lane) {
    rows.most = float2(NOTHING), rows.total = float2(0.0f);
    UNROLL for (uint j = 0; j < D / 8; j++) rows.sum[j] = float4(0.0f);
    UNROLL for (uint s = 0; s < D / 16; s++) {
        const uint at = 16 * s + lane % 4 * 2;
        rows.q[s] = uint4(query_at(upper, at), query_at(lower, at), query_at(upper, at + 8), query_at(lower, at + 8));
    }
}

template <uint D, uint KEYS>
inline void attend(thread row_pair<D> &rows, threadgroup const uchar *keys, uint base, float softcap, uint lane) {
    threadgroup const uchar *values = keys + KEYS * tile_of<D>::PITCH;
    const uint t = lane % 4;
    float4 score[KEYS / 8];
    UNROLL for (uint j = 0; j < KEYS / 8; j++) score[j] = float4(0.0f);
    UNROLL for (uint s = 0; s < D / 16; s++)
        UNROLL for (uint j = 0; j < KEYS / 8; j += 2) { // two tiles of 8 keys
            const uint key = 8 * j + lane % 8 + lane / 16 * 8, piece = 2 * s + lane / 8 % 2;
            const uint4 right = nv_ldmatrix(keys + key * tile_of<D>::PITCH + 16 * piece);
            nv_mma_f16(score[j], rows.q[s], right.xy);
            nv_mma_f16(score[j + 1], rows.q[s], right.zw);
        }

    if (softcap > 0.0f)
        UNROLL for (uint j = 0; j < KEYS / 8; j++)
            UNROLL for (uint e = 0; e < 4; e++) score[j][e] = capped(score[j][e], softcap);
    // Where rows see not all of the tile, the others' scores are left out.
    const bool sees_all = base >= rows.first.x && base + KEYS <= rows.last.x && base >= rows.first.y &&
                          base + KEYS <= rows.last.y;
    if (!simd_all(sees_all))
        UNROLL for (uint j = 0; j < KEYS / 8; j++)
            UNROLL for (uint e = 0; e < 4; e++) {
                const uint key = base + 8 * j + 2 * t + e % 2;
                const bool seen =
                    e < 2 ? key >= rows.first.x && key < rows.last.x : key >= rows.first.y && key < rows.last.y;
                score[j][e] = seen ? score[j][e] : NOTHING;
            }
    float2 top = rows.most;
    UNROLL for (uint j = 0; j < KEYS / 8; j++) {
        top.x = max(top.x, max(score[j].x, score[j].y));
        top.y = max(top.y, max(score[j].z, score[j].w));
    }
    top = float2(largest_of_four(top.x), largest_of_four(top.y));
    const float2 shrink = float2(exp2(rows.most.x - top.x), exp2(rows.most.y - top.y));
    rows.most = top;
    rows.total *= shrink;
    UNROLL for (uint j = 0; j < D / 8; j++) rows.sum[j] *= float4(shrink.x, shrink.x, shrink.y, shrink.y);
    // What is subtracted is never NOTHING, so that the weight of what is left out is zero.
    const float2 from = float2(max(top.x, NOTHING / 2), max(top.y, NOTHING / 2));
    UNROLL for (uint j = 0; j < KEYS / 8; j++) {
        score[j] = float4(exp2(score[j].x - from.x), exp2(score[j].y - from.x), exp2(score[j].z - from.y),
                          exp2(score[j].w - from.y));
        rows.total += float2(score[j].x + score[j].y, score[j].z + score[j].w);
    }
    UNROLL for (uint s = 0; s < KEYS / 16; s++) {
        const float4 near = score[2 * s], far = score[2 * s + 1];
        const uint4 left = uint4(halves(near.x, near.y), halves(near.z, near.w), halves(far.x, far.y),
                                 halves(far.z, far.w));
        UNROLL for (uint j = 0; j < D / 8; j += 2) { // two tiles of 8 columns
            const uint key = 16 * s + lane % 8 + lane / 8 % 2 * 8, piece = j + lane / 16;
            const uint4 right = nv_ldmatrix_transposed(values + key * tile_of<D>::PITCH + 16 * piece);
            nv_mma_f16(rows.sum[j], left, right.xy);
            nv_mma_f16(rows.sum[j + 1], left, right.zw);
        }
    }
}

// A threadgroup takes 64 rows of a head. Rows that belong to several texts see them one after the other.
template <uint D>
[[kernel]] void attention_tile(constant attention_args &args [[buffer(0)]],
                               device const float *queries [[buffer(1)]],
                               device const int *rows [[buffer(2)]],
                               device const uchar *keys [[buffer(3)]],
                               device const uchar *values [[buffer(4)]],
                               device const float *key_scales [[buffer(5)]],
                               device const float *value_scales [[buffer(6)]],
                               device const float *bias [[buffer(7)]],
                               device uchar *y [[buffer(8)]],
                               device const int *pages [[buffer(9)]],
                               threadgroup uchar *shared [[threadgroup(0)]],
                               uint3 group [[threadgroup_position_in_grid]],
                               uint place [[thread_index_in_threadgroup]],
                               uint simdgroup [[simdgroup_index_in_threadgroup]],
                               uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint STAGE = 2 * FLASH_KEYS * tile_of<D>::PITCH;
    threadgroup uint text_of[FLASH_ROWS], first_of[FLASH_ROWS], last_of[FLASH_ROWS];
    const uint tiles = (args.rows + FLASH_ROWS - 1) / FLASH_ROWS, head = group.x;
    const uint m0 = (tiles - 1 - group.y) * FLASH_ROWS; // those that see most begin first
    const uint g = lane / 4, t = lane % 4, own = 16 * simdgroup + g;
    if (place < FLASH_ROWS) {
        row_of_text at = {};
        if (m0 + place < args.rows) at = row_at(args, rows, m0 + place, CACHED, ROTATES);
        text_of[place] = at.text;
        first_of[place] = at.sound ? at.first : 0u;
        last_of[place] = at.sound ? at.last : 0u;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    row_pair<D> mine;
    const ulong upper = ulong(min(m0 + own, args.rows - 1)) * args.heads + head;
    const ulong lower = ulong(min(m0 + own + 8, args.rows - 1)) * args.heads + head;
    start(mine, queries + upper * D, queries + lower * D, lane);
    const stored_heads from = {keys, values, pages, head / (args.heads / args.kv_heads)};

    for (uint row = 0; row < FLASH_ROWS;) {
        // The rows of a text from this one on, and all keys that any of them sees.
        const uint text = text_of[row];
        uint past = row, begin = 0xffffffffu, end = 0;
        for (; past < FLASH_ROWS && text_of[past] == text; past++)
            if (first_of[past] < last_of[past]) begin = min(begin, first_of[past]), end = max(end, last_of[past]);
        const bool has_upper = own >= row && own < past, has_lower = own + 8 >= row && own + 8 < past;
        mine.first = uint2(first_of[own], first_of[own + 8]);
        mine.last = uint2(has_upper ? last_of[own] : 0u, has_lower ? last_of[own + 8] : 0u);
        row = past;
        if (begin >= end) continue;
        const uint steps = (end - begin + FLASH_KEYS - 1) / FLASH_KEYS;
        bring<D, FLASH_KEYS, FLASH_THREADS>(shared, args, from, text, begin, end, place);
        for (uint step = 0; step < steps; step++) {
            const uint base = begin + step * FLASH_KEYS;
            if (step + 1 < steps)
                bring<D, FLASH_KEYS, FLASH_THREADS>(shared + (step + 1) % 2 * STAGE, args, from, text,
                                                    base + FLASH_KEYS, end, place);
            else nv_copy_commit();
            nv_copy_wait<1>();
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const bool sees = (base < mine.last.x && base + FLASH_KEYS > mine.first.x) ||
                              (base < mine.last.y && base + FLASH_KEYS > mine.first.y);
            if (simd_any(sees)) attend<D, FLASH_KEYS>(mine, shared + step % 2 * STAGE, base, args.softcap, lane);
            threadgroup_barrier(mem_flags::mem_threadgroup); // before the next tile takes this one's place
        }
    }

    const float2 total = float2(sum_of_four(mine.total.x), sum_of_four(mine.total.y));
    const float2 by = float2(total.x > 0.0f ? 1.0f / total.x : total.x, total.y > 0.0f ? 1.0f / total.y : total.y);
    UNROLL for (uint j = 0; j < D / 8; j++) {
        const uint column = head * D + 8 * j + 2 * t, columns = args.heads * D;
        save_pair(y, X, args.rows, columns, m0 + own, column, mine.sum[j].xy * by.x, queries, 0);
        save_pair(y, X, args.rows, columns, m0 + own + 8, column, mine.sum[j].zw * by.y, queries, 0);
    }
}

// A threadgroup takes the heads of a row that share keys, and a part of those, 32 a simdgroup at a time.
template <uint D>
[[kernel]] void attention_few(constant attention_args &args [[buffer(0)]],
                              device const float *queries [[buffer(1)]],
                              device const int *rows [[buffer(2)]],
                              device const uchar *keys [[buffer(3)]],
                              device const uchar *values [[buffer(4)]],
                              device const float *key_scales [[buffer(5)]],
                              device const float *value_scales [[buffer(6)]],
                              device const float *bias [[buffer(7)]],
                              device uchar *y [[buffer(8)]],
                              device const int *pages [[buffer(9)]],
                              threadgroup uchar *shared [[threadgroup(0)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint place [[thread_index_in_threadgroup]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
    constexpr uint STAGE = 2 * FEW_KEYS * tile_of<D>::PITCH, SIMDGROUPS = FLASH_THREADS / 32;
    static_assert(STAGE >= 16 * D * sizeof(float), "a simdgroup's sums must fit where its tile was");
    threadgroup float mosts[SIMDGROUPS * 16], totals[SIMDGROUPS * 16];
    threadgroup uchar *tile = shared + simdgroup * STAGE;
    const uint row = group.y, part = group.z, g = lane / 4, t = lane % 4;
    const uint each = args.heads / args.kv_heads, first_head = group.x * each;
    const row_of_text at = row_at(args, rows, row, CACHED, ROTATES);
    const uint seen = at.sound ? at.last - at.first : 0u;
    const uint share = ((seen + args.parts - 1) / args.parts + 31) / 32 * 32;
    const uint begin = min(at.last, at.first + part * share), end = at.sound ? min(at.last, begin + share) : begin;

    row_pair<D> mine;
    device const float *own = queries + (ulong(row) * args.heads + first_head) * D;
    start(mine, own + min(g, each - 1) * D, own + min(g + 8, each - 1) * D, lane);
    mine.first = uint2(begin, begin);
    mine.last = uint2(g < each ? end : 0u, g + 8 < each ? end : 0u);
    const stored_heads from = {keys, values, pages, group.x};
    for (uint base = begin + FEW_KEYS * simdgroup; base < end; base += FEW_KEYS * SIMDGROUPS) {
        bring<D, FEW_KEYS, 32>(tile, args, from, at.text, base, end, lane);
        nv_copy_wait<0>();
        simdgroup_barrier(mem_flags::mem_threadgroup);
        attend<D, FEW_KEYS>(mine, tile, base, args.softcap, lane);
        simdgroup_barrier(mem_flags::mem_threadgroup); // before the next tile takes this one's place
    }

    threadgroup float *sums = (threadgroup float *)tile;
    const float2 total = float2(sum_of_four(mine.total.x), sum_of_four(mine.total.y));
    if (t == 0) {
        mosts[16 * simdgroup + g] = mine.most.x, mosts[16 * simdgroup + g + 8] = mine.most.y;
        totals[16 * simdgroup + g] = total.x, totals[16 * simdgroup + g + 8] = total.y;
    }
    UNROLL for (uint j = 0; j < D / 8; j++) {
        if (g < each) *(threadgroup float2 *)(sums + g * D + 8 * j + 2 * t) = mine.sum[j].xy;
        if (g + 8 < each) *(threadgroup float2 *)(sums + (g + 8) * D + 8 * j + 2 * t) = mine.sum[j].zw;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = place; i < each * D; i += FLASH_THREADS) {
        const uint h = i / D, c = i % D;
        const ulong unit = ulong(row) * args.heads + first_head + h;
        float all = NOTHING, whole = 0.0f, merged = 0.0f;
        UNROLL for (uint s = 0; s < SIMDGROUPS; s++) all = max(all, mosts[16 * s + h]);
        UNROLL for (uint s = 0; s < SIMDGROUPS; s++) {
            const float shrink = exp2(mosts[16 * s + h] - all);
            whole += totals[16 * s + h] * shrink;
            merged += ((threadgroup const float *)(shared + s * STAGE))[i] * shrink;
        }
        if (SPLIT != 0) {
            device float *partial = (device float *)y + (ulong(part) * args.rows * args.heads + unit) * (D + 2);
            partial[2 + c] = merged;
            if (c == 0) partial[0] = all * LN_2, partial[1] = whole;
        } else save(y, X, unit * D + c, whole > 0.0f ? merged / whole : whole);
    }
}

template [[host_name("attention_tile_64")]] [[kernel]] decltype(attention_tile<64>) attention_tile<64>;
template [[host_name("attention_tile_96")]] [[kernel]] decltype(attention_tile<96>) attention_tile<96>;
template [[host_name("attention_tile_128")]] [[kernel]] decltype(attention_tile<128>) attention_tile<128>;
template [[host_name("attention_few_64")]] [[kernel]] decltype(attention_few<64>) attention_few<64>;
template [[host_name("attention_few_96")]] [[kernel]] decltype(attention_few<96>) attention_few<96>;
template [[host_name("attention_few_128")]] [[kernel]] decltype(attention_few<128>) attention_few<128>;
