// The Metal standard library for an estimate of what a kernel takes: the translator's CUDA, as HIP for a GPU whose
// compiler clang has in it. What that GPU does not have in common with Apple's are instructions of no text but their
// name, so that they cost one each and hold their operands in registers.
#pragma once
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __grid_constant__
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#pragma clang force_cuda_host_device begin

#define SIM_INLINE inline __attribute__((always_inline))
#define SIM_MAX_THREADS ESTIMATE_THREADS

#include "metal/scalars.h"

#include "metal/types.h"

#include "metal/limits.h"

namespace sim {

// A function of Apple's that this GPU has no instruction for.
template <class T> SIM_INLINE T function(T value) {
    constexpr int words = (sizeof(T) + 3) / 4;
    uint in[words] = {};
    __builtin_memcpy(in, &value, sizeof(T));
    for (int i = 0; i < words; i++) asm("; function %0" : "+v"(in[i]));
    __builtin_memcpy(&value, in, sizeof(T));
    return value;
}

} // namespace sim

#define __builtin_elementwise_tanh(x) sim::function(x)
#define __builtin_elementwise_sinh(x) sim::function(x)
#define __builtin_elementwise_cosh(x) sim::function(x)
#define __builtin_elementwise_tan(x) sim::function(x)
#define __builtin_elementwise_asin(x) sim::function(x)
#define __builtin_elementwise_acos(x) sim::function(x)
#define __builtin_elementwise_atan(x) sim::function(x)
#define __builtin_elementwise_pow(x, y) sim::function((x) + (y))
#define __builtin_elementwise_atan2(x, y) sim::function((x) + (y))
#define __builtin_elementwise_fmod(x, y) sim::function((x) + (y))

#include "metal/math.h"

namespace sim {

SIM_INLINE uint workitem() { return __builtin_amdgcn_workitem_id_x(); }
SIM_INLINE uint counted(int which) {
    return ((const __attribute__((address_space(4))) uint *)__builtin_amdgcn_dispatch_ptr())[which];
}

} // namespace sim

// The way into a kernel's parameters is that of CUDA, but for the constants, which are known here.
#define __nvvm_read_ptx_sreg_tid_x() sim::workitem()
#define __nvvm_read_ptx_sreg_ntid_x() (uint) ESTIMATE_THREADS
#define __nvvm_read_ptx_sreg_ctaid_x() __builtin_amdgcn_workgroup_id_x()
#define __nvvm_read_ptx_sreg_ctaid_y() __builtin_amdgcn_workgroup_id_y()
#define __nvvm_read_ptx_sreg_ctaid_z() __builtin_amdgcn_workgroup_id_z()
#define __nvvm_read_ptx_sreg_nctaid_x() sim::counted(3)
#define __nvvm_read_ptx_sreg_nctaid_y() sim::counted(4)
#define __nvvm_read_ptx_sreg_nctaid_z() sim::counted(5)
#define patched patched_in_ptx
#include "cuda/entry.h"
#undef patched

namespace sim {
template <int Index> struct patched {
    SIM_INLINE constexpr operator uint() const {
        constexpr uint values[] = {ESTIMATE_CONSTANTS};
        return Index < (int)(sizeof values / sizeof *values) ? values[Index] : 0u;
    }
};
} // namespace sim

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
template <class T> SIM_INLINE T *own_slice(T *at, uint) { return at; }
SIM_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((int)a | (int)b); }
SIM_INLINE void threadgroup_barrier(mem_flags) { asm volatile("; barrier" ::: "memory"); }
SIM_INLINE void simdgroup_barrier(mem_flags) { asm volatile("; simdgroup_barrier" ::: "memory"); }

} // namespace metal

namespace sim {

template <class T> SIM_INLINE T across(T value) {
    constexpr int words = (sizeof(T) + 3) / 4;
    uint in[words] = {};
    __builtin_memcpy(in, &value, sizeof(T));
    for (int i = 0; i < words; i++) asm volatile("; across %0" : "+v"(in[i]));
    __builtin_memcpy(&value, in, sizeof(T));
    return value;
}

} // namespace sim

namespace metal {

#define ESTIMATE_OF_ONE(name) \
    template <class T> SIM_INLINE T name(T value) { return sim::across(value); }
#define ESTIMATE_OF_TWO(name) \
    template <class T> SIM_INLINE T name(T value, ushort) { return sim::across(value); }
ESTIMATE_OF_ONE(simd_sum) ESTIMATE_OF_ONE(simd_product) ESTIMATE_OF_ONE(simd_min) ESTIMATE_OF_ONE(simd_max)
ESTIMATE_OF_ONE(simd_and) ESTIMATE_OF_ONE(simd_or) ESTIMATE_OF_ONE(simd_xor) ESTIMATE_OF_ONE(simd_broadcast_first)
ESTIMATE_OF_ONE(simd_prefix_inclusive_sum) ESTIMATE_OF_ONE(simd_prefix_exclusive_sum) ESTIMATE_OF_ONE(quad_sum)
ESTIMATE_OF_ONE(quad_min) ESTIMATE_OF_ONE(quad_max)
ESTIMATE_OF_TWO(simd_shuffle) ESTIMATE_OF_TWO(simd_broadcast) ESTIMATE_OF_TWO(simd_shuffle_xor)
ESTIMATE_OF_TWO(simd_shuffle_down) ESTIMATE_OF_TWO(simd_shuffle_up) ESTIMATE_OF_TWO(quad_shuffle)
ESTIMATE_OF_TWO(quad_broadcast) ESTIMATE_OF_TWO(quad_shuffle_xor)
SIM_INLINE bool simd_any(bool mine) { return sim::across((uint)mine) != 0; }
SIM_INLINE bool simd_all(bool mine) { return sim::across((uint)mine) != 0; }
SIM_INLINE bool simd_is_first() { return sim::lane() == 0; }

// Two elements a lane; a product is one instruction of five pairs.
template <class T, int Columns = 8, int Rows = Columns> struct simdgroup_matrix {
    vec<T, 2> elements;
};
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;
template <class T, int Columns, int Rows = Columns>
SIM_INLINE simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
    return {vec<T, 2>(value)};
}
template <class T, class P>
SIM_INLINE void simdgroup_load(simdgroup_matrix<T> &matrix, const P *at, ulong row_elements = 8,
                               ulong2 origin = ulong2(0), bool = false) {
    const uint row = sim::lane() / 4, column = sim::lane() % 4 * 2;
    matrix.elements = *(const vec<T, 2> *)(at + (origin.y + row) * row_elements + origin.x + column);
}
template <class T, class P>
SIM_INLINE void simdgroup_store(simdgroup_matrix<T> matrix, P *at, ulong row_elements = 8, ulong2 origin = ulong2(0),
                                bool = false) {
    const uint row = sim::lane() / 4, column = sim::lane() % 4 * 2;
    *(vec<T, 2> *)(at + (origin.y + row) * row_elements + origin.x + column) = matrix.elements;
}
template <class T> SIM_INLINE uint2 sim_words(vec<T, 2> pair) { // half is one word, and counts as one
    if constexpr (sizeof(T) == 4) return __builtin_bit_cast(uint2, pair);
    else return uint2{__builtin_bit_cast(uint, pair), 0u};
}
template <class D, class A, class B, class C>
SIM_INLINE void simdgroup_multiply_accumulate(simdgroup_matrix<D> &d, simdgroup_matrix<A> a, simdgroup_matrix<B> b,
                                              simdgroup_matrix<C> c) {
    const uint2 x = sim_words(a.elements), y = sim_words(b.elements);
    float first = c.elements.x, second = c.elements.y;
    asm volatile("; multiply %0 %1 %2 %3 %4 %5" : "+v"(first), "+v"(second) : "v"(x.x), "v"(x.y), "v"(y.x), "v"(y.y));
    d.elements = vec<D, 2>{(D)first, (D)second};
}

} // namespace metal

#include "metal/atomic.h"

extern __shared__ __attribute__((aligned(16))) uchar sim_shared[];

#define inline inline __attribute__((always_inline))
#define device
#define threadgroup
#define thread
#define constant const
