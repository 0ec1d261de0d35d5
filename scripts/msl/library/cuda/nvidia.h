// What Metal has no word for: NVIDIA's tensor cores, copies that pass by registers, and loads that pass through once.
// The kernels of cuda/ use it; test/metal/runtime/nvidia.h is the same for the simulator.
#pragma once

// d += a · b for a 16 × 16 and b 16 × 8 in half precision; nv_mma_s8 32 deep. Lane 4g + t holds of `a` row g (x, z) and
// row g + 8 (y, w), of `b` column g, of `d` rows g (x, y) and g + 8 (z, w), columns 2t and 2t + 1.
#define SIM_MMA(name, shape, word, of, C)                                                                          \
    SIM_INLINE void name(C &d, uint4 a, uint2 b) {                                                                 \
        sim::element<C> x = d.x, y = d.y, z = d.z, w = d.w;                                                        \
        asm("mma.sync.aligned." shape " {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"                        \
            : of(x), of(y), of(z), of(w)                                                                           \
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));                                         \
        d = C{x, y, z, w};                                                                                         \
    }
SIM_MMA(nv_mma_f16, "m16n8k16.row.col.f32.f16.f16.f32", float, "+f", float4)
SIM_MMA(nv_mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "+f", float4)
SIM_MMA(nv_mma_s8, "m16n8k32.row.col.s32.s8.s8.s32", int, "+r", int4)
#undef SIM_MMA

SIM_INLINE uint sim_shared_address(const void *at) {
    return (uint)(size_t)(__attribute__((address_space(3))) const void *)at;
}

// Four 8 × 8 matrices of 16 bits: lane 8i + r names row r of matrix i, and gets word lane % 4 of row lane / 4 of each;
// nv_ldmatrix_transposed: of column lane / 4.
#define SIM_LDMATRIX(name, trans)                                                                                      \
    SIM_INLINE uint4 name(const uchar *row) {                                                                          \
        uint a, b, c, d;                                                                                               \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0,%1,%2,%3},[%4];"                           \
                     : "=r"(a), "=r"(b), "=r"(c), "=r"(d)                                                              \
                     : "r"(sim_shared_address(row))                                                                    \
                     : "memory");                                                                                      \
        return uint4{a, b, c, d};                                                                                      \
    }
SIM_LDMATRIX(nv_ldmatrix, "")
SIM_LDMATRIX(nv_ldmatrix_transposed, ".trans")
#undef SIM_LDMATRIX

// Sixteen bytes to threadgroup memory, or zeros where they aren't there; they have come once nv_copy_wait says so.
SIM_INLINE void nv_copy(uchar *to, const uchar *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(sim_shared_address(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}
SIM_INLINE void nv_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Left> SIM_INLINE void nv_copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory"); }

// Loads that pass through once.
SIM_INLINE uint2 nv_stream8(const uchar *at) {
    uint x, y;
    asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0,%1},[%2];" : "=r"(x), "=r"(y) : "l"(at));
    return uint2{x, y};
}
SIM_INLINE uint4 nv_stream16(const uchar *at) {
    uint x, y, z, w;
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0,%1,%2,%3},[%4];"
                 : "=r"(x), "=r"(y), "=r"(z), "=r"(w)
                 : "l"(at));
    return uint4{x, y, z, w};
}

// What the lane has that the low five bits of `from` name.
template <class T> SIM_INLINE T nv_from_lane(T value, uint from) {
    return __builtin_bit_cast(T, __nvvm_shfl_sync_idx_i32(-1, __builtin_bit_cast(int, value), (int)from, 31));
}

// On Hopper and later a launch may begin while the one before it ends: what that one writes may be read, and anything
// be written, only behind the wait. csrc/gpu/cuda/cuda.c sees to it that what is read before is older.
SIM_INLINE void nv_let_next_start() {
#ifdef SIM_OVERLAP
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
SIM_INLINE void nv_wait_for_last() {
#ifdef SIM_OVERLAP
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Two floats rounded to bf16, the first in the low half.
SIM_INLINE uint nv_pack_bf16(float first, float second) {
    uint pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
// Two products of bf16, each rounded once: sm_80 has the fused form alone.
SIM_INLINE uint nv_mul_bf16(uint a, uint b) {
    uint pair;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(0x80008000u));
    return pair;
}
// Four bytes out of eight: each nibble of `select` names one.
SIM_INLINE uint nv_permute(uint a, uint b, uint select) {
    uint bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(select));
    return bytes;
}
