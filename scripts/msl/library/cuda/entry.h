// The way from a CUDA kernel's parameters into a Metal kernel's: types by place, positions in the grid, and constants.
#pragma once

namespace sim {

// A function constant: a word in the PTX, which the driver replaces by its value.
template <int Index> struct patched {
    SIM_INLINE operator uint() const {
        uint value;
        asm("mov.b32 %0, BNB%1;" : "=r"(value) : "n"(Index));
        return value;
    }
};

template <class F> struct types_of {};
template <class F, int N> struct nth_;
template <class First, class... Rest> struct nth_<types_of<void (*)(First, Rest...)>, 0> {
    using type = First;
};
template <class First, class... Rest, int N> struct nth_<types_of<void (*)(First, Rest...)>, N> {
    using type = typename nth_<types_of<void (*)(Rest...)>, N - 1>::type;
};
template <class F, int N> using nth = typename nth_<F, N>::type;
template <class P> using referred = metal::remove_reference_t<P>;
template <class P> struct pointed_ {
    using type = P;
};
template <class P> struct pointed_<P *> {
    using type = P;
};
// The struct that a parameter refers or points to.
template <class F, int N> using value_of = __remove_cv(typename pointed_<metal::remove_reference_t<nth<F, N>>>::type);

struct three {
    uint x, y, z;
};
template <class P, class V> SIM_INLINE P position(V value) {
    using T = metal::remove_cv_t<P>;
    if constexpr (!__is_same(V, three)) return (T)value;
    else if constexpr (size<T> == 1) return (T)value.x;
    else if constexpr (size<T> == 2) return T{(element<T>)value.x, (element<T>)value.y};
    else return T{(element<T>)value.x, (element<T>)value.y, (element<T>)value.z};
}

SIM_INLINE three group_position() {
    return {(uint)__nvvm_read_ptx_sreg_ctaid_x(), (uint)__nvvm_read_ptx_sreg_ctaid_y(),
            (uint)__nvvm_read_ptx_sreg_ctaid_z()};
}
SIM_INLINE three group_count() {
    return {(uint)__nvvm_read_ptx_sreg_nctaid_x(), (uint)__nvvm_read_ptx_sreg_nctaid_y(),
            (uint)__nvvm_read_ptx_sreg_nctaid_z()};
}
// A threadgroup has one dimension: the driver's launch gives no other.
SIM_INLINE uint thread_index() { return (uint)__nvvm_read_ptx_sreg_tid_x(); }
SIM_INLINE uint thread_count() { return (uint)__nvvm_read_ptx_sreg_ntid_x(); }
SIM_INLINE uint lane() { return thread_index() & 31u; }

} // namespace sim

#define SIM_THREAD_POSITION_IN_GRID                                                                                    \
    (sim::three{sim::group_position().x * sim::thread_count() + sim::thread_index(), sim::group_position().y,          \
                sim::group_position().z})
#define SIM_THREAD_POSITION_IN_THREADGROUP (sim::three{sim::thread_index(), 0, 0})
#define SIM_THREADGROUP_POSITION_IN_GRID sim::group_position()
#define SIM_THREADS_PER_THREADGROUP (sim::three{sim::thread_count(), 1, 1})
#define SIM_THREADS_PER_GRID                                                                                           \
    (sim::three{sim::group_count().x * sim::thread_count(), sim::group_count().y, sim::group_count().z})
#define SIM_THREADGROUPS_PER_GRID sim::group_count()
#define SIM_THREAD_INDEX_IN_THREADGROUP sim::thread_index()
#define SIM_THREAD_INDEX_IN_SIMDGROUP sim::lane()
#define SIM_SIMDGROUP_INDEX_IN_THREADGROUP (sim::thread_index() / 32u)
#define SIM_SIMDGROUPS_PER_THREADGROUP ((sim::thread_count() + 31u) / 32u)
#define SIM_THREADS_PER_SIMDGROUP 32u
#define SIM_THREAD_INDEX_IN_QUADGROUP (sim::thread_index() & 3u)
#define SIM_QUADGROUP_INDEX_IN_THREADGROUP (sim::thread_index() / 4u)
#define SIM_QUADGROUPS_PER_THREADGROUP ((sim::thread_count() + 3u) / 4u)
