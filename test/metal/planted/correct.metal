// Correct kernels that use what the checker follows; they must stay clean. Run by planted.test.ts.
#include <metal_stdlib>
using namespace metal;

struct Sizes {
    uint count;
    uint columns;
};
static_assert(sizeof(Sizes) == 8, "the host's Sizes");

constant bool doubled [[function_constant(0)]];
constant uint power [[function_constant(1)]];
constant float factor = doubled ? 2.0f * power : 1.0f;

// Sums through simdgroups, then through threadgroup memory, twice, so that every barrier is needed.
static float sum_threadgroup(float value, threadgroup float *partial, uint lane, uint simdgroup, uint simdgroups) {
    value = simd_sum(value);
    if (lane == 0) partial[simdgroup] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float total = 0;
    for (uint s = 0; s < simdgroups; s++) total += partial[s];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return total;
}

template <typename T, int Passes>
[[kernel]] void sums(device const T *x [[buffer(0)]], device float *y [[buffer(1)]],
                     constant Sizes &sizes [[buffer(2)]], uint group [[threadgroup_position_in_grid]],
                     uint thread_ [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
                     ushort lane [[thread_index_in_simdgroup]], ushort simdgroup [[simdgroup_index_in_threadgroup]],
                     ushort simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    float total = 0;
    for (int pass = 0; pass < Passes; pass++) {
        float mine = 0;
        for (uint c = thread_; c < sizes.columns; c += threads) mine += float(x[group * sizes.columns + c]);
        total += sum_threadgroup(mine, partial, lane, simdgroup, simdgroups);
    }
    if (thread_ == 0) y[group] = factor * total;
}
template [[host_name("sums_float_1")]] [[kernel]] decltype(sums<float, 1>) sums<float, 1>;
template [[host_name("sums_half_2")]] [[kernel]] decltype(sums<half, 2>) sums<half, 2>;

// A simdgroup exchanges values through threadgroup memory with its own barrier only.
kernel void simdgroup_exchange(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                               uint i [[thread_index_in_threadgroup]]) {
    threadgroup float s[64];
    s[i] = x[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = s[i ^ 1];
}

kernel void histogram(device const uint *x [[buffer(0)]], device atomic_uint *bins [[buffer(1)]],
                      constant Sizes &sizes [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < sizes.count) atomic_fetch_add_explicit(&bins[x[i] % 8], 1u, memory_order_relaxed);
}

// Lanes that a ragged simdgroup lacks are no error where nobody reads them; prefix sums and votes over what is there.
kernel void ragged(device const uint *x [[buffer(0)]], device uint *y [[buffer(1)]],
                   uint i [[thread_index_in_threadgroup]]) {
    const uint before = simd_prefix_exclusive_sum(x[i]);
    const bool odd = simd_any((x[i] & 1) != 0);
    y[i] = before + (odd ? 1000u : 0u) + uint(simd_broadcast_first(x[i]));
}

// y[16, 16] = x[16, 24] w[24, 16] from padded threadgroup memory, four simdgroups, one 8 × 8 tile each.
kernel void tiles(device const half *x [[buffer(0)]], device const half *w [[buffer(1)]], device float *y [[buffer(2)]],
                  uint thread_ [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                  threadgroup half *rows [[threadgroup(0)]]) {
    constexpr uint stride = 12;
    threadgroup half columns[8 * 20];
    const uint row = simdgroup / 2 * 8, column = simdgroup % 2 * 8;
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint k = 0; k < 24; k += 8) {
        rows[thread_ / 8 * stride + thread_ % 8] = x[thread_ / 8 * 24 + k + thread_ % 8];
        columns[thread_ / 16 * 20 + thread_ % 16] = w[(k + thread_ / 16) * 16 + thread_ % 16];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_half8x8 a, b;
        simdgroup_load(a, rows + row * stride, stride);
        simdgroup_load(b, columns + column, 20);
        simdgroup_multiply_accumulate(sum, a, b, sum);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    simdgroup_store(sum, y + row * 16 + column, 16);
}

// Vectors: constructors, conversions, swizzles, casts, comparisons, bits.
kernel void vectors(device const uchar4 *x [[buffer(0)]], device float4 *y [[buffer(1)]],
                    uint i [[thread_position_in_grid]]) {
    const uchar4 v = x[i];
    const int4 wide = int4(v);
    const half4 h = half4(half2(wide.xy), 0.5h, half(wide.w));
    const float4 f = (float4)h + float4(as_type<float>(0x3F800000u));
    float4 result = select(f, -f, wide > int4(100));
    result.zw = f.wz;
    result[0] = clamp(result[0], -50.0f, 50.0f) + float(popcount(uint(v.x))) + float(clz(uint(v.y)));
    y[i] = fma(result, float4(2.0f), float4(1.0f));
}

// The order in which threads of one threadgroup, and threadgroups, come to a counter.
kernel void arrival(device atomic_uint *count [[buffer(0)]], device uint *order [[buffer(1)]],
                    uint i [[thread_position_in_grid]]) {
    order[atomic_fetch_add_explicit(count, 1u, memory_order_relaxed)] = i;
}
