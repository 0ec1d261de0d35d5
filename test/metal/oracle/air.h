// The functions that Apple's compiler leaves to the GPU (air.*), on the simulator's runtime. Included by the C++
// that air.ts writes for one kernel.
#pragma once
#include "metal.h"

#define AIR_SITE(name) \
    sim_site { "air", 1, name }
#define AIR extern "C" __attribute__((used))

AIR float air_simd_sum(float value) __asm__("air.simd_sum.f32");
float air_simd_sum(float value) { return metal::simd_sum(value, AIR_SITE("air.simd_sum")); }

AIR void air_wg_barrier(int flags, int) __asm__("air.wg.barrier");
void air_wg_barrier(int flags, int) { sim_threadgroup_barrier((sim_u32)flags, AIR_SITE("air.wg.barrier")); }

AIR void air_simdgroup_barrier(int flags, int) __asm__("air.simdgroup.barrier");
void air_simdgroup_barrier(int flags, int) { sim_simdgroup_barrier((sim_u32)flags, AIR_SITE("air.simdgroup.barrier")); }

AIR float air_convert_f_s(int value) __asm__("air.convert.f.f32.s.i32");
float air_convert_f_s(int value) { return (float)value; }

AIR float air_convert_f_u(uint value) __asm__("air.convert.f.f32.u.i32");
float air_convert_f_u(uint value) { return (float)value; }

AIR int air_min_s(int a, int b) __asm__("air.min.s.i32");
int air_min_s(int a, int b) { return a < b ? a : b; }

AIR int air_max_s(int a, int b) __asm__("air.max.s.i32");
int air_max_s(int a, int b) { return a > b ? a : b; }

// A lane's two elements of each matrix; air.ts unpacks them from the 64-element vectors that Apple's compiler passes.
AIR void sim_air_multiply_accumulate(float a0, float a1, float b0, float b1, float c0, float c1, float *out) {
    metal::simdgroup_float8x8 a, b, c, d;
    a.elements = float2{a0, a1};
    b.elements = float2{b0, b1};
    c.elements = float2{c0, c1};
    metal::simdgroup_multiply_accumulate(d, a, b, c, AIR_SITE("air.simdgroup_matrix_8x8_multiply_accumulate"));
    out[0] = d.elements.x;
    out[1] = d.elements.y;
}
