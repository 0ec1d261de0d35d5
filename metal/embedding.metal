// Rows of a dense or a quantised table by their indices, and the gradient of that. A thread takes 8 elements of a row;
// an index that is no row of the table gives NaNs.

constant uint W [[function_constant(0)]];      // how the table is stored, any STORE_; backward, of dy
constant uint SCALES [[function_constant(1)]]; // SCALES_…
constant uint WHOLE [[function_constant(2)]];  // WHOLE_… for multiples of 8
constant uint Y [[function_constant(3)]];
constant uint OFFSETS [[function_constant(4)]]; // OFFSETS_…

[[host_name("embedding")]] [[kernel, max_total_threads_per_threadgroup(EMBEDDING_THREADS)]]
void embedding(constant embedding_args &args [[buffer(0)]],
               device const int *indices [[buffer(1)]],
               device const uchar *data [[buffer(2)]],
               device const uchar *absmax [[buffer(3)]],
               device const uchar *nested_absmax [[buffer(4)]],
               device const kernel_codebook *code [[buffer(5)]],
               device const kernel_codebook *nested_code [[buffer(6)]],
               device uchar *y [[buffer(7)]],
               device const uchar *offsets [[buffer(8)]],
               device const float *nested_offsets [[buffer(9)]],
               device const uchar *offsets_absmax [[buffer(10)]],
               uint thread_index [[thread_position_in_grid]],
               uint threads [[threads_per_grid]],
               uint place [[thread_index_in_threadgroup]]) {
    threadgroup float values[256], nested_values[256];
    if (is_coded(W) && place < size_of(W)) values[place] = code->values[place];
    if (is_nested(SCALES)) nested_values[place] = nested_code->values[place];
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const weights w = {W, SCALES, OFFSETS, args.scales, data, absmax, nested_absmax,
                       nested_offsets, offset_of_all(SCALES, nested_offsets),
                       offsets, offsets_absmax, values, nested_values};
    const uint pieces = (args.columns + 7) / 8;
    const ulong count = count_of(args.rows_low, args.rows_high) * pieces;
    for (ulong piece = thread_index; piece < count; piece += threads) {
        const ulong row = piece / pieces;
        const uint column = uint(piece % pieces) * 8, valid = within(column, args.columns);
        const uint index = uint(indices[row]);
        const ulong from = ulong(index) * args.columns + column, to = row * args.columns + column;
        if (index >= args.table_rows) {
            const float4 nothing = float4(as_type<float>(0x7fc00000u));
            save_some(y, Y, to, valid, octet{nothing, nothing});
        } else if (WHOLE == 0) {
            save_some(y, Y, to, valid, gather8(w, from, valid));
        } else if (!is_coded(W)) {
            save8(y, Y, to, load8(data, W, from));
        } else {
            save8(y, Y, to, decoded8(w, values8(w, codes8(w, from)), WHOLE == WHOLE_ROWS ? index : block_of(w, from)));
        }
    }
}
static_assert(EMBEDDING_THREADS == 256, "embedding fills the codebooks with a value a thread");

// dw[row] = the sum of dy[sorted[i].y], starts[row] <= i < starts[row + 1]: as metal/sort.metal leaves them.
[[host_name("embedding_backward")]] [[kernel, max_total_threads_per_threadgroup(EMBEDDING_THREADS)]]
void embedding_backward(constant embedding_args &args [[buffer(0)]],
                        device const uchar *dy [[buffer(1)]],
                        device const uint *starts [[buffer(2)]],
                        device const uint2 *sorted [[buffer(3)]],
                        device uchar *dw [[buffer(4)]],
                        uint thread_index [[thread_position_in_grid]],
                        uint threads [[threads_per_grid]]) {
    const uint pieces = (args.columns + 7) / 8;
    const ulong count = count_of(args.rows_low, args.rows_high) * pieces;
    for (ulong piece = thread_index; piece < count; piece += threads) {
        const ulong row = piece / pieces;
        const uint column = uint(piece % pieces) * 8, valid = within(column, args.columns);
        octet sum = {float4(0.0f), float4(0.0f)};
        for (uint i = starts[row]; i < starts[row + 1]; i++) {
            const ulong from = ulong(sorted[i].y) * args.columns + column;
            const octet v = WHOLE != 0 ? load8(dy, W, from) : load_some(dy, W, from, valid);
            sum.low += v.low;
            sum.high += v.high;
        }
        const ulong to = row * args.columns + column;
        if (WHOLE != 0) save8(dw, Y, to, sum);
        else save_some(dw, Y, to, valid, sum);
    }
}
