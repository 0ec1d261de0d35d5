// One fault a kernel; the line that the checker must name says which. Run by planted.test.ts, not part of the product.
#include <metal_stdlib>
using namespace metal;

#define ARGUMENTS                                                                                                      \
    device const float *a [[buffer(0)]], device float *o [[buffer(1)]], uint i [[thread_index_in_threadgroup]],        \
        uint g [[thread_position_in_grid]]

kernel void read_past_buffer(ARGUMENTS) {
    o[i] = a[i + 1]; // read out of bounds
}

kernel void write_past_buffer(ARGUMENTS) {
    o[2 * i] = a[i]; // write out of bounds
}

kernel void write_before_buffer(ARGUMENTS) {
    o[int(i) - 1] = a[i]; // write out of bounds
}

kernel void threadgroup_overflow(ARGUMENTS) {
    threadgroup float first[64];
    first[i + 1] = a[i]; // array out of bounds
    o[i] = 0;
}

kernel void threadgroup_overflow_by_pointer(ARGUMENTS) {
    threadgroup float first[64];
    threadgroup float second[64];
    threadgroup float *p = first + i;
    second[i] = a[i];
    p[1] = a[i]; // write out of bounds
    o[i] = second[i];
}

kernel void threadgroup_argument_overflow(ARGUMENTS, threadgroup float *s [[threadgroup(0)]]) {
    s[i] = a[i]; // write out of bounds
    o[i] = s[i];
}

kernel void thread_array(ARGUMENTS) {
    float s[4] = {1, 2, 3, 4};
    o[i] = s[i & 7] + a[i]; // array out of bounds
}

static float third(thread const float *s, uint at) {
    return s[at]; // array out of bounds
}

kernel void thread_array_in_helper(ARGUMENTS) {
    float s[4] = {1, 2, 3, a[i]};
    o[i] = third(s, i & 7);
}

constant float table[4] = {1, 2, 3, 4};

kernel void constant_array(ARGUMENTS) {
    o[i] = table[i & 7] + a[i]; // array out of bounds
}

kernel void race_read_after_write(ARGUMENTS) {
    threadgroup float s[64];
    s[i] = a[i];     // data race
    o[i] = s[i ^ 1]; // data race or uninitialised read
}

kernel void race_write_after_read(ARGUMENTS) {
    threadgroup float s[64];
    float t = 0;
    for (int k = 0; k < 2; k++) {
        s[i] = a[i] + k; // data race
        threadgroup_barrier(mem_flags::mem_threadgroup);
        t += s[63 - i]; // data race
    }
    o[i] = t;
}

kernel void race_write_after_read_in_step(ARGUMENTS) {
    threadgroup float s[64];
    s[i] = a[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const float t = simd_sum(s[i ^ 1]);
    s[i] = t; // data race
    o[i] = t;
}

kernel void race_same_value(ARGUMENTS) {
    threadgroup float s[1];
    s[0] = 1.0f; // data race
    threadgroup_barrier(mem_flags::mem_threadgroup);
    o[i] = s[0] + a[i];
}

kernel void race_device(ARGUMENTS) {
    o[g / 2] = a[i]; // data race
}

kernel void race_between_threadgroups(ARGUMENTS) {
    o[i] = a[i]; // data race
}

kernel void race_read_between_threadgroups(ARGUMENTS) {
    const float before = o[(g + 64) % 128]; // data race
    o[g] = before + a[i]; // data race
}

kernel void race_write_after_read_elsewhere(ARGUMENTS) {
    if (g > 64) return;
    const float t = o[0];         // data race
    if (g == 64) o[0] = t + a[i]; // data race
}

kernel void race_with_atomic(device const float *a [[buffer(0)]], device atomic_uint *count [[buffer(1)]],
                             uint i [[thread_index_in_threadgroup]]) {
    device uint *plain = (device uint *)count;
    if (i == 63) plain[0] = uint(a[0]);                                  // data race
    else atomic_fetch_add_explicit(count, uint(a[i]), memory_order_relaxed); // data race
}

kernel void wrong_barrier_flag(ARGUMENTS) {
    threadgroup float s[64];
    s[i] = a[i]; // data race
    threadgroup_barrier(mem_flags::mem_device);
    o[i] = s[63 - i]; // data race or uninitialised read
}

kernel void wrong_barrier_scope(ARGUMENTS) {
    threadgroup float s[64];
    s[i] = a[i]; // data race
    simdgroup_barrier(mem_flags::mem_threadgroup);
    o[i] = s[63 - i]; // data race or uninitialised read
}

kernel void shuffle_is_no_barrier(ARGUMENTS) {
    threadgroup float s[64];
    s[i] = a[i]; // data race
    const float t = simd_sum(a[i]);
    o[i] = t + s[i ^ 1]; // data race or uninitialised read
}

kernel void divergent_barrier(ARGUMENTS) {
    if (i < 40) {
        o[i] = a[i];
        threadgroup_barrier(mem_flags::mem_device); // divergent barrier
    } else {
        o[i] = 2;
    }
}

kernel void barriers_of_two_branches(ARGUMENTS) {
    if (i < 32) {
        threadgroup_barrier(mem_flags::mem_device); // divergent barrier
    } else {
        threadgroup_barrier(mem_flags::mem_device); // divergent barrier
    }
    o[i] = a[i];
}

kernel void divergent_simd(ARGUMENTS) {
    float t = 0;
    if (i & 1) t = simd_sum(a[i]); // divergent simdgroup operation
    threadgroup_barrier(mem_flags::mem_device);
    o[i] = t;
}

kernel void returned_lanes(ARGUMENTS) {
    if (i % 32 == 31) return;
    o[i] = simd_max(a[i]); // divergent simdgroup operation
}

kernel void inactive_lane(ARGUMENTS) {
    o[i] = simd_shuffle(a[i], 31); // shuffle from an inactive lane
}

kernel void different_tiles(device const float *a [[buffer(0)]], device float *o [[buffer(1)]],
                            uint i [[thread_index_in_threadgroup]]) {
    simdgroup_float8x8 m;
    simdgroup_load(m, a + i, 8); // divergent simdgroup operation
    simdgroup_store(m, o, 8);
}

kernel void uninitialised_threadgroup(ARGUMENTS) {
    threadgroup float s[64];
    if (i < 32) s[i] = a[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    o[i] = s[i]; // uninitialised read
}

kernel void uninitialised_sum(ARGUMENTS) {
    threadgroup float s[64];
    s[i] += a[i]; // uninitialised read
    o[i] = s[i];
}

kernel void uninitialised_device(ARGUMENTS) {
    o[i] += a[i]; // uninitialised read
}

kernel void uninitialised_thread(ARGUMENTS) {
    float t;
    if (a[i] > 0) t = 1; // variable 't' is used uninitialized
    o[i] = t;
}

kernel void misaligned(ARGUMENTS) {
    const float4 v = *(device const float4 *)(a + i % 8); // misaligned access
    o[i] = v.x;
}

kernel void write_to_constant(constant float *a [[buffer(0)]], device float *o [[buffer(1)]],
                              uint i [[thread_index_in_threadgroup]]) {
    device float *b = (device float *)a;
    b[i] = 1; // write to constant memory
    o[i] = 0;
}

kernel void bad_shift(device const int *a [[buffer(0)]], device int *o [[buffer(1)]],
                      uint i [[thread_index_in_threadgroup]]) {
    o[i] = a[i] << i; // bad shift
}

kernel void division_by_zero(device const int *a [[buffer(0)]], device int *o [[buffer(1)]],
                             uint i [[thread_index_in_threadgroup]]) {
    o[i] = 7 / a[i]; // integer division
}

kernel void bad_conversion(ARGUMENTS) {
    o[i] = int(a[i] * 1e20f); // bad conversion
}

kernel void lane_of_each(ARGUMENTS) {
    o[i] = simd_broadcast(a[i], ushort(i % 32)); // undefined lane
}

kernel void distance_of_each(ARGUMENTS) {
    o[i] = simd_shuffle_down(a[i], ushort(i % 2)); // undefined lane
}

kernel void mask_of_each(ARGUMENTS) {
    o[i] = simd_shuffle_xor(a[i], ushort(i % 4)); // undefined lane
}

kernel void lane_past_the_last(ARGUMENTS) {
    o[i] = simd_shuffle(a[i], ushort(i % 32 + 1)); // undefined lane
}

kernel void broadcast_past_the_last(ARGUMENTS) {
    o[i] = simd_broadcast(a[i], ushort(40)); // undefined lane
}

kernel void lane_past_the_quad(ARGUMENTS) {
    o[i] = quad_shuffle(a[i], ushort(4)); // undefined lane
}

kernel void transposed_by_some(device const float *a [[buffer(0)]], device float *o [[buffer(1)]],
                               uint i [[thread_index_in_threadgroup]]) {
    simdgroup_float8x8 m;
    simdgroup_load(m, a, 8, ulong2(0, 0), i % 2 == 0); // divergent simdgroup operation
    simdgroup_store(m, o, 8);
}

kernel void int_overflow(device const int *a [[buffer(0)]], device int *o [[buffer(1)]],
                         uint i [[thread_index_in_threadgroup]]) {
    o[i] = (a[i] + 2147483647) / 2; // integer overflow
}

kernel void index_overflow(device const uint *a [[buffer(0)]], device uint *o [[buffer(1)]],
                           uint i [[thread_index_in_threadgroup]]) {
    const uint rows = a[i] * 65536u;
    o[i] = uint(ulong(rows * 65536u + i)); // integer overflow
}

kernel void size_below_zero(device const uint *a [[buffer(0)]], device uint *o [[buffer(1)]],
                            uint i [[thread_index_in_threadgroup]]) {
    o[i] = (a[i] - 2u) & 7u; // integer overflow
}

kernel void negated_least(device const int *a [[buffer(0)]], device int *o [[buffer(1)]],
                          uint i [[thread_index_in_threadgroup]]) {
    o[i] = -(a[i] - 2147483647 - 2); // integer overflow
}

// Where the simulator puts what it checks; to Metal it is the slice alone.
kernel void slice_of_another(ARGUMENTS) {
    threadgroup float s[128];
    threadgroup float *mine = OWN_SLICE(s + i / 32 * 64, 64);
    mine[i % 32] = a[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    o[i] = s[(i / 32 ^ 1u) * 64 + i % 32]; // another simdgroup's slice
}
