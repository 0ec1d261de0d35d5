// Owns Metal's barriers and simdgroup operations: each waits for the threads that take part, and checks that all do.
#pragma once

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = SIM_MEM_DEVICE, mem_threadgroup = SIM_MEM_THREADGROUP };
SIM_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((int)a | (int)b); }

SIM_INLINE void threadgroup_barrier(mem_flags flags, SIM_SITE("threadgroup_barrier")) {
    sim_threadgroup_barrier((sim_u32)flags, site);
}
SIM_INLINE void simdgroup_barrier(mem_flags flags, SIM_SITE("simdgroup_barrier")) {
    sim_simdgroup_barrier((sim_u32)flags, site);
}

} // namespace metal

namespace sim {

// What a lane sends: its value, and the argument that Metal wants to be the same in all lanes.
template <class T>
struct sent {
    T       value;
    sim_u32 argument;
};
template <class T>
SIM_UNCHECKED void same_argument(char *slots, sim_u32 active) {
    const sim_u32 first = ((const sent<T> *)(slots + __builtin_ctz(active) * SIM_SLOT_BYTES))->argument;
    bool          same = true;
    for (int i = 0; i < SIM_LANES; i++)
        same &= !(active >> i & 1) || ((const sent<T> *)(slots + i * SIM_SLOT_BYTES))->argument == first;
    for (int i = 0; i < SIM_LANES; i++) ((sent<T> *)(slots + i * SIM_SLOT_BYTES))->argument = same;
}

template <class T>
inline constexpr bool travels = (sizeof(element<T>) <= 4) && !metal::is_same_v<element<T>, bool>;

// The value of a lane, which each may choose for itself.
template <class T>
SIM_INLINE T from_lane(T value, int lane, sim_site site) {
    static_assert(travels<T>, "simdgroup operations take no 64 bits and no bool");
    T result;
    sim_exchange(&value, &result, sizeof value, lane, nullptr, site);
    return result;
}

// The same, by an argument that must be the same in all lanes: where it isn't, Metal leaves the result undefined.
template <class T>
SIM_INLINE T from_same(T value, int lane, sim_u32 argument, sim_site site) {
    static_assert(travels<T>, "simdgroup operations take no 64 bits and no bool");
    sent<T> mine = {value, argument};
    sim_exchange(&mine, &mine, sizeof mine, lane, same_argument<T>, site);
    if (!mine.argument) sim_report_lanes(site, "must be given the same second argument by all lanes");
    return mine.value;
}

// Combines in the order of a tree, as hardware may do: lane i with i + 16, then with i + 8, and so on. A seed puts the
// lanes into another order first.
template <class T, class Operation>
SIM_UNCHECKED void reduce(char *slots, sim_u32 active) {
    T                    values[SIM_LANES];
    const unsigned char *order = sim_lane_order();
    sim_u32              there = 0;
    for (int i = 0; i < SIM_LANES; i++) {
        __builtin_memcpy(&values[i], slots + order[i] * SIM_SLOT_BYTES, sizeof(T));
        there |= (active >> order[i] & 1u) << i;
    }
    active = there;
    for (int distance = SIM_LANES / 2; distance > 0; distance /= 2) {
        for (int i = 0; i < distance; i++) {
            if (!(active >> (i + distance) & 1)) continue;
            values[i] = active >> i & 1 ? Operation::of(values[i], values[i + distance]) : values[i + distance];
            active |= 1u << i;
        }
    }
    for (int i = 0; i < SIM_LANES; i++) __builtin_memcpy(slots + i * SIM_SLOT_BYTES, &values[0], sizeof(T));
}

// Each lane's sum of those before it, and of itself if Inclusive.
template <class T, bool Inclusive>
SIM_UNCHECKED void scan(char *slots, sim_u32 active) {
    T sum{};
    for (int i = 0; i < SIM_LANES; i++) {
        if (!(active >> i & 1)) continue;
        T value;
        __builtin_memcpy(&value, slots + i * SIM_SLOT_BYTES, sizeof(T));
        T next = sum + value;
        __builtin_memcpy(slots + i * SIM_SLOT_BYTES, Inclusive ? &next : &sum, sizeof(T));
        sum = next;
    }
}

template <class T, sim_combine Combine>
SIM_INLINE T combined(T value, sim_site site) {
    static_assert(travels<T>, "simdgroup operations take no 64 bits and no bool");
    T result;
    sim_exchange(&value, &result, sizeof value, SIM_OWN_LANE, Combine, site);
    return result;
}

SIM_UNCHECKED inline void collect_votes(char *slots, sim_u32 active) {
    sim_u32 votes = 0;
    for (int i = 0; i < SIM_LANES; i++) votes |= (active >> i & 1 && slots[i * SIM_SLOT_BYTES]) ? 1u << i : 0;
    for (int i = 0; i < SIM_LANES; i++) __builtin_memcpy(slots + i * SIM_SLOT_BYTES, &votes, sizeof votes);
}

struct vote {
    sim_u32 votes, active;
};
SIM_INLINE vote ballot(bool mine, sim_site site) {
    sim_u32 in = mine;
    vote    result;
    result.active = sim_exchange(&in, &result.votes, sizeof in, SIM_OWN_LANE, collect_votes, site);
    return result;
}

// The lane to read when lanes beyond the edge keep their own value.
SIM_INLINE int neighbour(int lane) { return lane < 0 || lane >= SIM_LANES ? SIM_OWN_LANE : lane; }

} // namespace sim

namespace metal {

template <class T>
SIM_INLINE T *own_slice(T *at, uint elements) {
    sim_own_slice(at, elements * sizeof(T));
    return at;
}

#define SIM_REDUCTION(name, expression)                                                                                \
    struct sim_##name {                                                                                                \
        template <class T>                                                                                             \
        static T of(T a, T b) {                                                                                        \
            return (T)(expression);                                                                                    \
        }                                                                                                              \
    };                                                                                                                 \
    template <class T>                                                                                                 \
    SIM_INLINE T name(T value, SIM_SITE(#name)) {                                                                      \
        return sim::combined<T, sim::reduce<T, sim_##name>>(value, site);                                              \
    }
SIM_REDUCTION(simd_sum, a + b)
SIM_REDUCTION(simd_product, a *b)
SIM_REDUCTION(simd_min, precise::min(a, b))
SIM_REDUCTION(simd_max, precise::max(a, b))
SIM_REDUCTION(simd_and, a &b)
SIM_REDUCTION(simd_or, a | b)
SIM_REDUCTION(simd_xor, a ^ b)

template <class T>
SIM_INLINE T simd_prefix_inclusive_sum(T value, SIM_SITE("simd_prefix_inclusive_sum")) {
    return sim::combined<T, sim::scan<T, true>>(value, site);
}
template <class T>
SIM_INLINE T simd_prefix_exclusive_sum(T value, SIM_SITE("simd_prefix_exclusive_sum")) {
    return sim::combined<T, sim::scan<T, false>>(value, site);
}

template <class T>
SIM_INLINE T simd_shuffle(T value, ushort lane, SIM_SITE("simd_shuffle")) {
    if (lane >= SIM_LANES) sim_report_lanes(site, "reads a lane past the last");
    return sim::from_lane(value, lane, site);
}
template <class T>
SIM_INLINE T simd_broadcast(T value, ushort lane, SIM_SITE("simd_broadcast")) {
    if (lane >= SIM_LANES) sim_report_lanes(site, "reads a lane past the last");
    return sim::from_same(value, lane, lane, site);
}
template <class T>
SIM_INLINE T simd_broadcast_first(T value, SIM_SITE("simd_broadcast_first")) {
    return sim::from_lane(value, SIM_FIRST_LANE, site);
}
template <class T>
SIM_INLINE T simd_shuffle_xor(T value, ushort mask, SIM_SITE("simd_shuffle_xor")) {
    if (mask >= SIM_LANES) sim_report_lanes(site, "reads a lane past the last");
    return sim::from_same(value, (int)(sim_lane() ^ mask), mask, site);
}
template <class T>
SIM_INLINE T simd_shuffle_down(T value, ushort delta, SIM_SITE("simd_shuffle_down")) {
    return sim::from_same(value, sim::neighbour((int)sim_lane() + delta), delta, site);
}
template <class T>
SIM_INLINE T simd_shuffle_up(T value, ushort delta, SIM_SITE("simd_shuffle_up")) {
    return sim::from_same(value, sim::neighbour((int)sim_lane() - delta), delta, site);
}

SIM_INLINE bool simd_any(bool mine, SIM_SITE("simd_any")) { return sim::ballot(mine, site).votes != 0; }
SIM_INLINE bool simd_all(bool mine, SIM_SITE("simd_all")) { return sim::ballot(!mine, site).votes == 0; }
SIM_INLINE bool simd_is_first(SIM_SITE("simd_is_first")) {
    return sim_lane() == (sim_u32)__builtin_ctz(sim::ballot(true, site).active);
}

template <class T>
SIM_INLINE T quad_shuffle(T value, ushort lane, SIM_SITE("quad_shuffle")) {
    if (lane >= 4) sim_report_lanes(site, "reads a lane past the quadgroup's last");
    return sim::from_lane(value, (int)((sim_lane() & ~3u) | (lane & 3u)), site);
}
template <class T>
SIM_INLINE T quad_broadcast(T value, ushort lane, SIM_SITE("quad_broadcast")) {
    return quad_shuffle(value, lane, site);
}
template <class T>
SIM_INLINE T quad_shuffle_xor(T value, ushort mask, SIM_SITE("quad_shuffle_xor")) {
    return sim::from_lane(value, (int)(sim_lane() ^ (mask & 3u)), site);
}
#define SIM_QUAD_REDUCTION(name, expression)                                                                           \
    template <class T>                                                                                                 \
    SIM_INLINE T name(T value, SIM_SITE(#name)) {                                                                      \
        for (ushort mask = 1; mask < 4; mask *= 2) {                                                                   \
            T a = value, b = quad_shuffle_xor(value, mask, site);                                                      \
            value = (T)(expression);                                                                                   \
        }                                                                                                              \
        return value;                                                                                                  \
    }
SIM_QUAD_REDUCTION(quad_sum, a + b)
SIM_QUAD_REDUCTION(quad_min, precise::min(a, b))
SIM_QUAD_REDUCTION(quad_max, precise::max(a, b))

} // namespace metal
