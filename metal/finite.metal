// Whether all numbers of a row are finite, as the scales of what is quantised must be: each threadgroup leaves a word,
// which is 0 where all that it saw are.

[[host_name("finite")]] [[kernel, max_total_threads_per_threadgroup(FINITE_THREADS)]]
void finite(constant finite_args &args [[buffer(0)]],
            device const uint *x [[buffer(1)]],
            device uint *bad [[buffer(2)]],
            uint group [[threadgroup_position_in_grid]],
            uint groups [[threadgroups_per_grid]],
            uint place [[thread_index_in_threadgroup]],
            uint simdgroup [[simdgroup_index_in_threadgroup]],
            uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint found[FINITE_THREADS / 32];
    uint mine = 0;
    for (uint i = group * FINITE_THREADS + place; i < args.count; i += groups * FINITE_THREADS)
        mine |= (x[i] & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
    mine = simd_max(mine);
    if (lane == 0) found[simdgroup] = mine;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (place > 0) return;
    for (uint s = 1; s < FINITE_THREADS / 32; s++) mine |= found[s];
    bad[group] = mine;
}
