// The largest elements of a row, found one after the other by a threadgroup: each time the first in order after the
// last. Where they are experts, their shares of the softmax take the place of their values.

constant uint X [[function_constant(0)]];
constant uint ROUTES [[function_constant(1)]];     // whether shares are asked for,
constant uint NORMALISED [[function_constant(2)]]; // and among the chosen alone
constant uint FOUND [[function_constant(3)]];      // whether topk_part has found the largest of each part before

constant uint SIMDGROUPS = TOPK_THREADS / 32;

// Bits that order floats as unsigned numbers; a NaN is as small as the least.
inline uint order_of(float x) {
    const uint bits = as_type<uint>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x007fffffu; // that of negative infinity
    if (bits == 0x80000000u) return 0x80000000u;                // zeros are equal
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// An element by its order and its place: x is larger for what comes first, then y smaller.
inline uint2 first_of(uint2 a, uint2 b) { return a.x > b.x || (a.x == b.x && a.y < b.y) ? a : b; }

inline uint2 first_in_simdgroup(uint2 mine) {
    const uint most = simd_max(mine.x);
    return uint2(most, simd_min(mine.x == most ? mine.y : 0xffffffffu));
}

inline float sum_all(float v, threadgroup float *shared, uint simdgroup, uint lane) {
    const float part = simd_sum(v);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) shared[simdgroup] = part;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float total = 0.0f;
    for (uint j = 0; j < SIMDGROUPS; j++) total += shared[j];
    return total;
}

// An exponent that is NaN counts as the least, as it does for the order.
inline float share_of(float x, float most) { return x == x ? exp(x - most) : 0.0f; }

// The first in order after `last` that the simdgroups have found between them.
inline uint2 first_of_all(uint2 mine, threadgroup uint2 *firsts, uint simdgroup, uint lane) {
    uint2 next = first_in_simdgroup(mine);
    threadgroup_barrier(mem_flags::mem_threadgroup); // the last firsts have been read
    if (lane == 0) firsts[simdgroup] = next;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = 0; j < SIMDGROUPS; j++) next = first_of(next, firsts[j]);
    return next;
}

inline bool is_after(uint2 mine, uint2 last) { return mine.x < last.x || (mine.x == last.x && mine.y > last.y); }

// Of a part of a row, whose columns are a multiple of the threads but for the last part's: the largest, as order and
// place, for topk to choose among.
[[host_name("topk_part")]] [[kernel, max_total_threads_per_threadgroup(TOPK_THREADS)]]
void topk_part(constant topk_args &args [[buffer(0)]],
               device const uchar *x [[buffer(1)]],
               device uint2 *found [[buffer(2)]],
               uint2 group [[threadgroup_position_in_grid]],
               uint place [[thread_index_in_threadgroup]],
               uint simdgroup [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint2 firsts[SIMDGROUPS];
    const ulong row = ulong(group.y) * args.columns;
    const uint first = group.x * args.part, end = min(args.columns, first + args.part);
    uint2 last = uint2(0xffffffffu, 0u);
    for (uint n = 0; n < args.count; n++) {
        uint2 next = uint2(0u, 0xffffffffu);
        for (uint c = first + place; c < end; c += TOPK_THREADS) {
            const uint2 mine = uint2(order_of(load(x, X, row + c)), c);
            if (is_after(mine, last)) next = first_of(next, mine);
        }
        last = first_of_all(next, firsts, simdgroup, lane);
        if (place == 0) found[(ulong(group.y) * args.parts + group.x) * args.count + n] = last;
    }
}

[[host_name("topk")]] [[kernel, max_total_threads_per_threadgroup(TOPK_THREADS)]]
void topk(constant topk_args &args [[buffer(0)]],
          device const uchar *x [[buffer(1)]],
          device int *y [[buffer(2)]],
          device const uint2 *found [[buffer(3)]],
          uint group [[threadgroup_position_in_grid]],
          uint place [[thread_index_in_threadgroup]],
          uint simdgroup [[simdgroup_index_in_threadgroup]],
          uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint2 firsts[SIMDGROUPS];
    threadgroup float shared[SIMDGROUPS];
    const ulong row = ulong(group) * args.columns;
    device int *indices = y + ulong(group) * 2 * args.count;
    device float *values = (device float *)(indices + args.count);
    uint2 last = uint2(0xffffffffu, 0u); // no element comes before it
    float most = 0.0f, total = 0.0f;
    for (uint n = 0; n < args.count; n++) {
        uint2 next = uint2(0u, 0xffffffffu);
        const uint candidates = FOUND != 0 ? args.parts * args.count : args.columns;
        for (uint c = place; c < candidates; c += TOPK_THREADS) {
            const uint2 mine =
                FOUND != 0 ? found[ulong(group) * candidates + c] : uint2(order_of(load(x, X, row + c)), c);
            if (is_after(mine, last)) next = first_of(next, mine);
        }
        last = first_of_all(next, firsts, simdgroup, lane);
        const float value = load(x, X, row + last.y);
        if (n == 0) most = value;
        total += share_of(value, most);
        if (place == 0) indices[n] = int(last.y), values[n] = ROUTES != 0 ? share_of(value, most) : value;
    }
    if (ROUTES == 0) return;
    if (NORMALISED == 0) {
        float mine = 0.0f;
        for (uint c = place; c < args.columns; c += TOPK_THREADS) mine += share_of(load(x, X, row + c), most);
        total = sum_all(mine, shared, simdgroup, lane);
    }
    if (place == 0)
        for (uint n = 0; n < args.count; n++) values[n] = values[n] / total;
}
