// Metal's barriers and simdgroup operations as a warp does them. Every lane takes part, as Metal's rules want.
#pragma once

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
template <class T> SIM_INLINE T *own_slice(T *at, uint) { return at; }
SIM_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((int)a | (int)b); }
SIM_INLINE void threadgroup_barrier(mem_flags) { __nvvm_bar_sync(0); }
SIM_INLINE void simdgroup_barrier(mem_flags) { __nvvm_bar_warp_sync(0xffffffff); }

} // namespace metal

namespace sim {

// Does to a value of any size what `f` does to a word.
template <class T, class F> SIM_INLINE T by_words(T value, F f) {
    constexpr int words = (sizeof(T) + 3) / 4;
    int in[words] = {};
    __builtin_memcpy(in, &value, sizeof(T));
    for (int i = 0; i < words; i++) in[i] = f(in[i]);
    T out;
    __builtin_memcpy(&out, in, sizeof(T));
    return out;
}

} // namespace sim

namespace metal {

#define SIM_SHUFFLE(name, mode, clamp)                                                                  \
    template <class T> SIM_INLINE T name(T value, ushort by) {                                          \
        return sim::by_words(value, [=](int word) __attribute__((always_inline)) {                      \
            return __nvvm_shfl_sync_##mode##_i32(-1, word, by, clamp);                                  \
        });                                                                                             \
    }
SIM_SHUFFLE(simd_shuffle, idx, 31)
SIM_SHUFFLE(simd_broadcast, idx, 31)
SIM_SHUFFLE(simd_shuffle_xor, bfly, 31)
SIM_SHUFFLE(simd_shuffle_down, down, 31)
SIM_SHUFFLE(simd_shuffle_up, up, 0)
#undef SIM_SHUFFLE
template <class T> SIM_INLINE T simd_broadcast_first(T value) { return simd_shuffle(value, ushort(0)); }
template <class T>
SIM_INLINE T quad_shuffle(T value, ushort lane) {
    return simd_shuffle(value, ushort((sim::lane() & ~3u) | (lane & 3u)));
}
template <class T> SIM_INLINE T quad_broadcast(T value, ushort lane) { return quad_shuffle(value, lane); }
template <class T>
SIM_INLINE T quad_shuffle_xor(T value, ushort mask) {
    return simd_shuffle_xor(value, ushort(mask & 3));
}

// In the order of the simulator's tree: lane i with i + 16, then with i + 8, and so on.
#define SIM_REDUCTION(name, first, shuffle, expression)      \
    template <class T> SIM_INLINE T name(T value) {          \
        for (ushort mask = first; mask > 0; mask /= 2) {     \
            T a = value, b = shuffle(value, mask);           \
            value = (T)(expression);                         \
        }                                                    \
        return value;                                        \
    }
SIM_REDUCTION(simd_sum, 16, simd_shuffle_xor, a + b)
SIM_REDUCTION(simd_product, 16, simd_shuffle_xor, a *b)
SIM_REDUCTION(simd_min, 16, simd_shuffle_xor, metal::min(a, b))
SIM_REDUCTION(simd_max, 16, simd_shuffle_xor, metal::max(a, b))
SIM_REDUCTION(simd_and, 16, simd_shuffle_xor, a &b)
SIM_REDUCTION(simd_or, 16, simd_shuffle_xor, a | b)
SIM_REDUCTION(simd_xor, 16, simd_shuffle_xor, a ^ b)
SIM_REDUCTION(quad_sum, 2, quad_shuffle_xor, a + b)
SIM_REDUCTION(quad_min, 2, quad_shuffle_xor, metal::min(a, b))
SIM_REDUCTION(quad_max, 2, quad_shuffle_xor, metal::max(a, b))
#undef SIM_REDUCTION

template <class T> SIM_INLINE T simd_prefix_inclusive_sum(T value) {
    for (ushort by = 1; by < 32; by *= 2) {
        const T other = simd_shuffle_up(value, by);
        if (sim::lane() >= by) value = (T)(value + other);
    }
    return value;
}
template <class T> SIM_INLINE T simd_prefix_exclusive_sum(T value) {
    const T sum = simd_shuffle_up(simd_prefix_inclusive_sum(value), ushort(1));
    return sim::lane() == 0 ? T(0) : sum;
}
SIM_INLINE bool simd_any(bool mine) { return __nvvm_vote_any_sync(-1, mine); }
SIM_INLINE bool simd_all(bool mine) { return __nvvm_vote_all_sync(-1, mine); }
SIM_INLINE bool simd_is_first() { return sim::lane() == 0; }

} // namespace metal
