// Small kernels that each show one thing of the host.

struct small_args {
    uint count;
    float value;
};

// Writes beyond `count` where the constant says so: the host must pass on what the device says about it.
constant uint BEYOND [[function_constant(0)]];

// y = x + value
[[host_name("add")]] [[kernel, max_total_threads_per_threadgroup(1024)]]
void add(constant small_args &args [[buffer(0)]], device const float *x [[buffer(1)]], device float *y [[buffer(2)]],
         uint i [[thread_position_in_grid]]) {
    if (i < args.count + BEYOND) y[i] = x[i < args.count ? i : 0] + args.value;
}

// Threadgroup memory that the host sizes: y[i] = value + count - 1 - i, by way of it.
[[host_name("shared")]] [[kernel]] void shared(constant small_args &args [[buffer(0)]], device float *y [[buffer(1)]],
                                               threadgroup float *values [[threadgroup(0)]],
                                               uint i [[thread_index_in_threadgroup]]) {
    values[i] = args.value + float(i);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (i < args.count) y[i] = values[args.count - 1 - i];
}

// Says nothing of its threads, so that the registers it takes decide how many it may have.
[[host_name("undeclared")]] [[kernel]] void undeclared(constant small_args &args [[buffer(0)]],
                                                       device float        *y [[buffer(1)]],
                                                       uint                 i [[thread_position_in_grid]]) {
    if (i < args.count) y[i] = args.value;
}

// More threadgroup memory than an Apple GPU has.
[[host_name("greedy")]] [[kernel]] void greedy(constant small_args &args [[buffer(0)]], device float *y [[buffer(1)]],
                                               uint i [[thread_index_in_threadgroup]]) {
    threadgroup float large[9000];
    large[i] = args.value;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (i < args.count) y[i] = large[i];
}
