// Positions sorted by the index that stands at each, those of one index in their order: by 8 bits in a pass, from the
// lowest on. A pass counts the digits in each tile (sort_count), finds where a tile's elements of each digit go
// (sort_scan), and moves them there (sort_move). An element is its key, then its position; an index that is left out
// has a key above all others.

constant uint FIRST [[function_constant(0)]]; // whether elements are yet to be made, of indices
constant uint ALONE [[function_constant(1)]]; // whether there is one tile, which needs no counts but its own

constant uint SIMDGROUPS = SORT_THREADS / 32;
constant uint EACH = SORT_TILE / SIMDGROUPS; // elements of a simdgroup, one after the other

inline uint2 element_at(constant sort_args &args, device const int *indices, device const uint2 *from, uint i) {
    if (FIRST == 0) return from[i];
    const uint index = uint(indices[i]);
    return uint2(index < args.rows && index != args.padding ? index : args.rows, i);
}

// Which lanes hold this lane's digit, for those that hold one.
inline uint lanes_alike(uint digit, bool there, uint lane) {
    uint alike = simd_or(there ? 1u << lane : 0u);
    UNROLL for (uint bit = 0; bit < SORT_BITS; bit++) {
        const bool one = (digit >> bit & 1u) != 0;
        const uint ones = simd_or(one ? 1u << lane : 0u);
        alike &= one ? ones : ~ones;
    }
    return alike;
}

// The next place for each lane's digit, in the order of lanes; the simdgroup's places go on from there.
inline uint take_place(threadgroup uint *places, uint digit, bool there, uint lane) {
    const uint alike = lanes_alike(digit, there, lane), before = alike & ((1u << lane) - 1u);
    const uint next = there ? places[digit] : 0u;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (there && before == 0) places[digit] = next + popcount(alike);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    return next + popcount(before);
}

// Takes places from 0 on for all that the simdgroups have, so that `counts` is how many there are: of each simdgroup by
// digits.
inline void count_digits(constant sort_args &args, device const int *indices, device const uint2 *from,
                         threadgroup uint *counts, uint first, uint place, uint simdgroup, uint lane) {
    for (uint s = 0; s < SIMDGROUPS; s++) counts[s * SORT_DIGITS + place] = 0;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint end = min(first + EACH, args.count);
    for (uint i = first; i < end; i += 32) {
        const bool there = i + lane < end;
        const uint key = there ? element_at(args, indices, from, i + lane).x : 0u;
        take_place(counts + simdgroup * SORT_DIGITS, key >> args.shift & (SORT_DIGITS - 1u), there, lane);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The sum of what threads before this one have, and of what all have.
inline uint2 sums_before(uint value, threadgroup uint *shared, uint simdgroup, uint lane) {
    const uint before = simd_prefix_exclusive_sum(value);
    threadgroup_barrier(mem_flags::mem_threadgroup); // the last sums have been read
    if (lane == 31) shared[simdgroup] = before + value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint2 sums = uint2(before, 0u);
    for (uint s = 0; s < SIMDGROUPS; s++) {
        if (s < simdgroup) sums.x += shared[s];
        sums.y += shared[s];
    }
    return sums;
}

// How many elements of each digit a tile has: counts[digit, tile].
[[host_name("sort_count")]] [[kernel, max_total_threads_per_threadgroup(SORT_THREADS)]]
void sort_count(constant sort_args &args [[buffer(0)]],
                device const int *indices [[buffer(1)]],
                device const uint2 *from [[buffer(2)]],
                device uint *counts [[buffer(3)]],
                uint tile [[threadgroup_position_in_grid]],
                uint tiles [[threadgroups_per_grid]],
                uint place [[thread_index_in_threadgroup]],
                uint simdgroup [[simdgroup_index_in_threadgroup]],
                uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint own[SIMDGROUPS * SORT_DIGITS];
    count_digits(args, indices, from, own, tile * SORT_TILE + simdgroup * EACH, place, simdgroup, lane);
    uint total = 0;
    for (uint s = 0; s < SIMDGROUPS; s++) total += own[s * SORT_DIGITS + place];
    counts[ulong(place) * tiles + tile] = total;
}

// A threadgroup for each digit: its counts become how many of it the tiles before have, and totals[digit] is how many
// there are.
[[host_name("sort_scan")]] [[kernel, max_total_threads_per_threadgroup(SORT_THREADS)]]
void sort_scan(constant sort_args &args [[buffer(0)]],
               device uint *counts [[buffer(1)]],
               device uint *totals [[buffer(2)]],
               uint digit [[threadgroup_position_in_grid]],
               uint place [[thread_index_in_threadgroup]],
               uint simdgroup [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint shared[SIMDGROUPS];
    const uint tiles = (args.count - 1) / SORT_TILE + 1;
    device uint *row = counts + ulong(digit) * tiles;
    uint total = 0;
    for (uint first = 0; first < tiles; first += SORT_THREADS) {
        const uint tile = first + place;
        const uint2 sums = sums_before(tile < tiles ? row[tile] : 0u, shared, simdgroup, lane);
        if (tile < tiles) row[tile] = total + sums.x;
        total += sums.y;
    }
    if (place == 0) totals[digit] = total;
}

[[host_name("sort_move")]] [[kernel, max_total_threads_per_threadgroup(SORT_THREADS)]]
void sort_move(constant sort_args &args [[buffer(0)]],
               device const int *indices [[buffer(1)]],
               device const uint2 *from [[buffer(2)]],
               device const uint *counts [[buffer(3)]],
               device const uint *totals [[buffer(4)]],
               device uint2 *to [[buffer(5)]],
               uint tile [[threadgroup_position_in_grid]],
               uint tiles [[threadgroups_per_grid]],
               uint place [[thread_index_in_threadgroup]],
               uint simdgroup [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint places[SIMDGROUPS * SORT_DIGITS], shared[SIMDGROUPS];
    const uint first = tile * SORT_TILE + simdgroup * EACH;
    count_digits(args, indices, from, places, first, place, simdgroup, lane);

    uint own = 0; // a thread for each digit
    for (uint s = 0; s < SIMDGROUPS; s++) own += places[s * SORT_DIGITS + place];
    uint next = sums_before(ALONE != 0 ? own : totals[place], shared, simdgroup, lane).x;
    if (ALONE == 0) next += counts[ulong(place) * tiles + tile];
    for (uint s = 0; s < SIMDGROUPS; s++) {
        const uint count = places[s * SORT_DIGITS + place];
        places[s * SORT_DIGITS + place] = next;
        next += count;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const uint end = min(first + EACH, args.count);
    for (uint i = first; i < end; i += 32) {
        const bool there = i + lane < end;
        const uint2 element = there ? element_at(args, indices, from, i + lane) : uint2(0u, 0u);
        const uint digit = element.x >> args.shift & (SORT_DIGITS - 1u);
        const uint at = take_place(places + simdgroup * SORT_DIGITS, digit, there, lane);
        if (there) to[at] = element;
    }
}
static_assert(SORT_THREADS == SORT_DIGITS, "sort_count and sort_move take a digit a thread");

// starts[key] = how many elements come before the first of that key, for each key and what is left out.
[[host_name("sort_starts")]] [[kernel, max_total_threads_per_threadgroup(SORT_THREADS)]]
void sort_starts(constant sort_args &args [[buffer(0)]],
                 device const uint2 *sorted [[buffer(1)]],
                 device uint *starts [[buffer(2)]],
                 uint thread_index [[thread_position_in_grid]],
                 uint threads [[threads_per_grid]]) {
    for (uint key = thread_index; key <= args.rows; key += threads) {
        uint low = 0, high = args.count;
        while (low < high) {
            const uint middle = (low + high) / 2;
            if (sorted[middle].x < key) low = middle + 1;
            else high = middle;
        }
        starts[key] = low;
    }
}
