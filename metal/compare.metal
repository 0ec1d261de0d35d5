// How far one tensor is from another: sums of squares and the largest error. Each threadgroup leaves one struct of
// sums, and compare_finish makes the four results of them. A thread's sum is short and threads add up in pairs, so that
// fp32 is enough: an error of about 1e-6.

constant uint A [[function_constant(0)]]; // STORE_F32, STORE_F16 or STORE_BF16
constant uint B [[function_constant(1)]];

struct sums {
    float squares, squared_errors, largest_error;
    uint  missing;
};
static_assert(sizeof(sums) == COMPARE_SUMS_BYTES, "the host makes room for struct sums");

inline bool is_number(float x) { return (as_type<uint>(x) & 0x7f800000u) != 0x7f800000u; }

inline void add(thread sums &sum, float a, float b) {
    if (!is_number(a) || !is_number(b)) {
        sum.missing += 1;
        return;
    }
    const float error = fabs(a - b);
    sum.squares += a * a;
    sum.squared_errors += error * error;
    sum.largest_error = precise::max(sum.largest_error, error);
}

// A place for each simdgroup's sums: plain numbers, since C++ gives a struct neither constructor nor assignment in
// threadgroup memory.
enum { SIMDGROUPS = COMPARE_THREADS / 32 };

inline sums across(sums s) {
    return sums{simd_sum(s.squares), simd_sum(s.squared_errors), simd_max(s.largest_error), simd_sum(s.missing)};
}

// The whole threadgroup's sums, in its first thread.
inline sums gather(sums sum, threadgroup float *shared, threadgroup uint *missing, uint simdgroup, uint lane) {
    sum = across(sum);
    if (lane == 0) {
        shared[simdgroup] = sum.squares;
        shared[SIMDGROUPS + simdgroup] = sum.squared_errors;
        shared[2 * SIMDGROUPS + simdgroup] = sum.largest_error;
        missing[simdgroup] = sum.missing;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const bool used = simdgroup == 0 && lane < SIMDGROUPS;
    sum = sums{0.0f, 0.0f, 0.0f, 0u};
    if (used) sum = sums{shared[lane], shared[SIMDGROUPS + lane], shared[2 * SIMDGROUPS + lane], missing[lane]};
    return across(sum);
}

[[host_name("compare")]] [[kernel, max_total_threads_per_threadgroup(COMPARE_THREADS)]]
void compare(constant compare_args &args [[buffer(0)]],
             device const uchar *a [[buffer(1)]],
             device const uchar *b [[buffer(2)]],
             device sums *parts [[buffer(3)]],
             uint group [[threadgroup_position_in_grid]],
             uint groups [[threadgroups_per_grid]],
             uint place [[thread_index_in_threadgroup]],
             uint simdgroup [[simdgroup_index_in_threadgroup]],
             uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float shared[3 * SIMDGROUPS];
    threadgroup uint missing[SIMDGROUPS];
    const ulong count = count_of(args.count_low, args.count_high);
    sums sum = {0.0f, 0.0f, 0.0f, 0u};
    ulong i = (ulong(group) * COMPARE_THREADS + place) * 8;
    for (; i < count; i += ulong(groups) * COMPARE_THREADS * 8) {
        const uint valid = within(i, count);
        const octet as = valid == 8 ? load8(a, A, i) : load_some(a, A, i, valid);
        const octet bs = valid == 8 ? load8(b, B, i) : load_some(b, B, i, valid);
        UNROLL for (uint j = 0; j < 4; j++) {
            add(sum, as.low[j], bs.low[j]);
            add(sum, as.high[j], bs.high[j]);
        }
    }
    sum = gather(sum, shared, missing, simdgroup, lane);
    if (place != 0) return;
    parts[group].squares = sum.squares;
    parts[group].squared_errors = sum.squared_errors;
    parts[group].largest_error = sum.largest_error;
    parts[group].missing = sum.missing;
}

// y = the root mean square of a, that of a - b, the largest |a - b|, and the count of what is no number.
[[host_name("compare_finish")]] [[kernel, max_total_threads_per_threadgroup(COMPARE_THREADS)]]
void compare_finish(constant compare_args &args [[buffer(0)]],
                    device const sums *parts [[buffer(1)]],
                    device float *y [[buffer(2)]],
                    uint place [[thread_index_in_threadgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float shared[3 * SIMDGROUPS];
    threadgroup uint missing[SIMDGROUPS];
    sums sum = {0.0f, 0.0f, 0.0f, 0u};
    for (uint i = place; i < args.parts; i += COMPARE_THREADS) {
        sum.squares += parts[i].squares;
        sum.squared_errors += parts[i].squared_errors;
        sum.largest_error = precise::max(sum.largest_error, parts[i].largest_error);
        sum.missing += parts[i].missing;
    }
    sum = gather(sum, shared, missing, simdgroup, lane);
    if (place != 0) return;
    const float numbers = float(max(count_of(args.count_low, args.count_high) - sum.missing, ulong(1)));
    y[0] = precise::sqrt(sum.squares / numbers);
    y[1] = precise::sqrt(sum.squared_errors / numbers);
    y[2] = sum.largest_error;
    y[3] = float(sum.missing);
}
