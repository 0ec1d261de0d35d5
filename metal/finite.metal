// The largest magnitude of a row of numbers, as bits: an infinity is above all that is finite, and a NaN above that.
// Each threadgroup leaves that of what it saw. By them the host knows whether all are finite, and metal/nested.metal
// what to count scales in.

[[host_name("finite")]] [[kernel, max_total_threads_per_threadgroup(FINITE_THREADS)]]
void finite(constant finite_args &args [[buffer(0)]],
            device const float *x [[buffer(1)]],
            device uint *largest [[buffer(2)]],
            uint group [[threadgroup_position_in_grid]],
            uint groups [[threadgroups_per_grid]],
            uint place [[thread_index_in_threadgroup]],
            uint simdgroup [[simdgroup_index_in_threadgroup]],
            uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint shared[FINITE_THREADS / 32];
    uint mine = 0;
    for (uint i = group * FINITE_THREADS + place; i < args.count; i += groups * FINITE_THREADS)
        mine = max(mine, magnitude_of(x[i]));
    mine = simd_max(mine);
    if (lane == 0) shared[simdgroup] = mine;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (place > 0) return;
    for (uint s = 1; s < FINITE_THREADS / 32; s++) mine = max(mine, shared[s]);
    largest[group] = mine;
}
