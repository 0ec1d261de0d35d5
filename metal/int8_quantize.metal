// LLM.int8()'s quantising and dequantising. The bytes are those of int8_code and int8_weight in csrc/cpu/forms.h.

constant uint X [[function_constant(0)]]; // of x, or of what is dequantised to: STORE_F32, STORE_F16 or STORE_BF16
constant uint LIMITED [[function_constant(1)]];    // whether there is a threshold
constant uint BY_COLUMN [[function_constant(2)]];  // whether stats belong to columns
constant uint FINDS [[function_constant(3)]];      // whether stats are found, else given
constant uint CODES [[function_constant(4)]];      // whether codes are wanted
constant uint OUTLIERS [[function_constant(5)]];   // whether there is a list of columns that become zeros
constant uint WHOLE [[function_constant(6)]];      // whether columns are multiples of 8: then a thread takes 8 at once
constant uint KEPT [[function_constant(7)]];       // as many times 8 columns of a row are kept by a thread; or 0

// ── Columns: what goes down a matrix ────────────────────────────────────────────────────────────────────────────────

constant uint SIMDGROUPS = INT8_THREADS / 32;

// The largest magnitude of a lane's column, as bits, in the first simdgroup; `limit` is what an outlier's reaches. With
// `outliers` the outliers are looked at instead: all bits where there is one. Simdgroups take every eighth row.
inline uint down_column(constant int8_quantize_args &args, device const uchar *x, bool outliers, uint column,
                        uint simdgroup, uint lane, threadgroup uint *shared) {
    uint found = 0;
    if (column < args.columns) {
        for (ulong row = simdgroup; row < args.rows; row += SIMDGROUPS) {
            const float element = load(x, X, row * args.columns + column);
            const bool reaches = fabs(element) >= args.threshold;
            if (outliers) found |= reaches ? 0xffffffffu : 0u;
            else if (LIMITED == 0 || !reaches) found = max(found, magnitude_of(element));
        }
    }
    shared[simdgroup * 32 + lane] = found;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 0)
        for (uint j = 1; j < SIMDGROUPS; j++) found = max(found, shared[j * 32 + lane]);
    return found;
}

// flags[c] = -1 where column c holds an outlier, else 0.
[[host_name("int8_flags")]] [[kernel, max_total_threads_per_threadgroup(INT8_THREADS)]]
void int8_flags(constant int8_quantize_args &args [[buffer(0)]],
                device const uchar *x [[buffer(1)]],
                device int *flags [[buffer(2)]],
                uint group [[threadgroup_position_in_grid]],
                uint simdgroup [[simdgroup_index_in_threadgroup]],
                uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint shared[INT8_THREADS];
    const uint column = group * 32 + lane;
    const uint found = down_column(args, x, true, column, simdgroup, lane, shared);
    if (simdgroup == 0 && column < args.columns) flags[column] = int(found);
}

[[host_name("int8_column_stats")]] [[kernel, max_total_threads_per_threadgroup(INT8_THREADS)]]
void int8_column_stats(constant int8_quantize_args &args [[buffer(0)]],
                       device const uchar *x [[buffer(1)]],
                       device float *stats [[buffer(2)]],
                       uint group [[threadgroup_position_in_grid]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint shared[INT8_THREADS];
    const uint column = group * 32 + lane;
    const uint found = down_column(args, x, false, column, simdgroup, lane, shared);
    if (simdgroup == 0 && column < args.columns) stats[column] = as_type<float>(found);
}

// The flagged columns in ascending order, then -1. One threadgroup: a list is short work, and each part needs the count
// of those before it.
[[host_name("int8_list")]] [[kernel, max_total_threads_per_threadgroup(INT8_THREADS)]]
void int8_list(constant int8_quantize_args &args [[buffer(0)]],
               device const int *flags [[buffer(1)]],
               device int *list [[buffer(2)]],
               uint place [[thread_index_in_threadgroup]],
               uint simdgroup [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint counts[SIMDGROUPS];
    uint before = 0;
    for (uint part = 0; part < args.columns; part += INT8_THREADS) {
        const uint column = part + place;
        uint flagged = 0;
        if (column < args.columns && flags[column] != 0) flagged = 1;
        const uint rank = simd_prefix_exclusive_sum(flagged), count = simd_sum(flagged);
        if (lane == 0) counts[simdgroup] = count;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint at = before + rank;
        for (uint j = 0; j < SIMDGROUPS; j++) {
            if (j < simdgroup) at += counts[j];
            before += counts[j];
        }
        if (flagged != 0) list[at] = int(column);
        threadgroup_barrier(mem_flags::mem_threadgroup); // the counts have been read
    }
    for (uint i = before + place; i < args.columns; i += INT8_THREADS) list[i] = -1;
}

// ── Rows: a threadgroup each ────────────────────────────────────────────────────────────────────────────────────────

// Whether an element counts for the stats.
inline bool is_usual(float element, float threshold) { return LIMITED == 0 || !(fabs(element) >= threshold); }

inline uint usual_of(octet v, float threshold) {
    uint largest = 0;
    UNROLL for (uint j = 0; j < 4; j++) {
        if (is_usual(v.low[j], threshold)) largest = max(largest, magnitude_of(v.low[j]));
        if (is_usual(v.high[j], threshold)) largest = max(largest, magnitude_of(v.high[j]));
    }
    return largest;
}

// What a thread keeps of a row, and zeros past its end.
inline octet kept_of(constant int8_quantize_args &args, device const uchar *x, ulong first, uint c) {
    return c < args.columns ? load8(x, X, first + c) : octet{float4(0.0f), float4(0.0f)};
}

// The largest of all threads'.
inline uint largest_of(uint largest, uint simdgroup, uint lane, threadgroup uint *shared) {
    largest = simd_max(largest);
    if (lane == 0) shared[simdgroup] = largest;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = 0; j < SIMDGROUPS; j++) largest = max(largest, shared[j]);
    return largest;
}

// The largest magnitude of a row, as bits, in every thread.
inline uint along_row(constant int8_quantize_args &args, device const uchar *x, ulong first, uint place, uint simdgroup,
                      uint lane, threadgroup uint *shared) {
    uint largest = 0;
    if (WHOLE != 0) {
        for (uint c = 8 * place; c < args.columns; c += 8 * INT8_THREADS) {
            largest = max(largest, usual_of(load8(x, X, first + c), args.threshold));
        }
    } else {
        for (uint c = place; c < args.columns; c += INT8_THREADS) {
            const float element = load(x, X, first + c);
            if (is_usual(element, args.threshold)) largest = max(largest, magnitude_of(element));
        }
    }
    return largest_of(largest, simdgroup, lane, shared);
}

// What brings a row into [-127, 127].
inline inverse factor_of(float stats) {
    inverse by = stats > 1e-36f ? inverse_of(stats) : inverse{1.0f, 0.0f};
    by.factor *= 127.0f;
    return by;
}

inline char code_of(float element, inverse by, float threshold) {
    if (LIMITED != 0 && fabs(element) >= threshold) return 0;
    const float code = element * by.before * by.factor;
    if (!(code < 127.0f)) return 127; // a NaN too
    return char(rint(precise::max(code, -127.0f)));
}

inline uint2 codes_of(octet v, inverse by, float threshold) {
    char4 low, high;
    UNROLL for (uint j = 0; j < 4; j++) {
        low[j] = code_of(v.low[j], by, threshold);
        high[j] = code_of(v.high[j], by, threshold);
    }
    return uint2(as_type<uint>(low), as_type<uint>(high));
}

// Stats and codes of a row that is read once, where its threads can keep it.
[[host_name("int8_rows")]] [[kernel, max_total_threads_per_threadgroup(INT8_THREADS)]]
void int8_rows(constant int8_quantize_args &args [[buffer(0)]],
               device const uchar *x [[buffer(1)]],
               device const int *outliers [[buffer(2)]],
               device float *stats [[buffer(3)]],
               device char *codes [[buffer(4)]],
               uint row [[threadgroup_position_in_grid]],
               uint place [[thread_index_in_threadgroup]],
               uint simdgroup [[simdgroup_index_in_threadgroup]],
               uint lane [[thread_index_in_simdgroup]]) {
    threadgroup uint shared[SIMDGROUPS];
    const ulong first = ulong(row) * args.columns;
    float of_row = 0.0f;
    octet kept[INT8_KEPT_MOST];
    if (KEPT != 0) {
        uint largest = 0;
        UNROLL for (uint j = 0; j < INT8_KEPT_MOST; j++) {
            if (j >= KEPT) continue;
            kept[j] = kept_of(args, x, first, 8 * (place + j * INT8_THREADS));
            largest = max(largest, usual_of(kept[j], args.threshold));
        }
        of_row = as_type<float>(largest_of(largest, simdgroup, lane, shared));
        if (place == 0) stats[row] = of_row;
    } else if (FINDS != 0) {
        of_row = as_type<float>(along_row(args, x, first, place, simdgroup, lane, shared));
        if (place == 0) stats[row] = of_row;
    } else if (BY_COLUMN == 0) {
        of_row = stats[row];
    }
    if (CODES == 0) return;
    const inverse factor = factor_of(of_row);
    if (KEPT != 0) {
        UNROLL for (uint j = 0; j < INT8_KEPT_MOST; j++) {
            const uint c = 8 * (place + j * INT8_THREADS);
            if (j < KEPT && c < args.columns)
                *(device uint2 *)(codes + first + c) = codes_of(kept[j], factor, args.threshold);
        }
    } else if (WHOLE != 0 && BY_COLUMN == 0) {
        for (uint c = 8 * place; c < args.columns; c += 8 * INT8_THREADS)
            *(device uint2 *)(codes + first + c) = codes_of(load8(x, X, first + c), factor, args.threshold);
    } else {
        for (uint c = place; c < args.columns; c += INT8_THREADS) {
            const inverse by = BY_COLUMN != 0 ? factor_of(stats[c]) : factor;
            codes[first + c] = code_of(load(x, X, first + c), by, args.threshold);
        }
    }
    if (OUTLIERS == 0) return;
    threadgroup_barrier(mem_flags::mem_device);
    for (uint o = place; o < args.columns; o += INT8_THREADS) {
        const uint c = uint(outliers[o]); // past the list's end -1, which is no column either
        if (c >= args.columns) break;
        codes[first + c] = 0;
    }
}

[[host_name("int8_dequantize")]] [[kernel, max_total_threads_per_threadgroup(INT8_THREADS)]]
void int8_dequantize(constant int8_quantize_args &args [[buffer(0)]],
                     device const char *codes [[buffer(1)]],
                     device const float *stats [[buffer(2)]],
                     device uchar *y [[buffer(3)]],
                     uint row [[threadgroup_position_in_grid]],
                     uint place [[thread_index_in_threadgroup]]) {
    const ulong first = ulong(row) * args.columns;
    const float of_row = stats[row];
    if (WHOLE == 0) {
        for (uint c = place; c < args.columns; c += INT8_THREADS)
            save(y, X, first + c, int8_weight(codes[first + c], of_row));
        return;
    }
    for (uint c = 8 * place; c < args.columns; c += 8 * INT8_THREADS) {
        const uint2 words = *(device const uint2 *)(codes + first + c);
        const char4 low = as_type<char4>(words.x), high = as_type<char4>(words.y);
        octet v;
        UNROLL for (uint j = 0; j < 4; j++) {
            v.low[j] = int8_weight(low[j], of_row);
            v.high[j] = int8_weight(high[j], of_row);
        }
        save8(y, X, first + c, v);
    }
}
