// Writes the matrix that codes and scales stand for: code × scale in fp32, rounded once. Bound by its writes, so a
// thread takes 8 elements: one load of codes, one scale, one or two stores of 16 bytes.

constant uint CODES [[function_constant(0)]]; // STORE_CODE + bits
constant uint TO [[function_constant(1)]];
constant uint SCALES [[function_constant(2)]];  // SCALES_…
constant uint OFFSETS [[function_constant(3)]]; // OFFSETS_…

constant uint TURNS = 4;

[[host_name("dequantize")]] [[kernel, max_total_threads_per_threadgroup(DEQUANTIZE_THREADS)]]
void dequantize(constant dequantize_args &args [[buffer(0)]],
                device const uchar *codes [[buffer(1)]],
                device const uchar *absmax [[buffer(2)]],
                device const uchar *nested_absmax [[buffer(3)]],
                device const kernel_codebook *code [[buffer(4)]],
                device const kernel_codebook *nested_code [[buffer(5)]],
                device uchar *y [[buffer(6)]],
                device const uchar *offsets [[buffer(7)]],
                device const float *nested_offsets [[buffer(8)]],
                device const uchar *offsets_absmax [[buffer(9)]],
                uint thread_index [[thread_position_in_grid]],
                uint threads [[threads_per_grid]],
                uint place [[thread_index_in_threadgroup]],
                uint simdgroup [[simdgroup_index_in_threadgroup]],
                uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float values[DEQUANTIZE_THREADS / 32 * 256];
    threadgroup float nested_values[256];

    const uint size = size_of(CODES);
    threadgroup float *slice =
        OWN_SLICE(values + simdgroup * size, size); // a simdgroup's own: shared tables were measured slower
    for (uint j = lane; j < size; j += 32) slice[j] = code->values[j];
    if (is_nested(SCALES)) nested_values[place] = nested_code->values[place];
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const weights w = {CODES, SCALES, OFFSETS, args.scales, codes, absmax, nested_absmax,
                       nested_offsets, offset_of_all(SCALES, nested_offsets),
                       offsets, offsets_absmax, slice, nested_values};
    const bool whole = w.scales.shift >= 3 && w.scales.shift < 32; // 8 elements share a block
    const ulong count = count_of(args.count_low, args.count_high), step = ulong(threads) * 8;
    ulong i = ulong(thread_index) * 8;
    if (whole)
        for (; i + (TURNS - 1) * step + 8 <= count; i += TURNS * step) { // whose loads are under way at once
            octet v[TURNS];
            UNROLL for (uint j = 0; j < TURNS; j++)
                v[j] = decoded8(w, values8(w, codes8(w, i + j * step)), block_of(w, i + j * step));
            UNROLL for (uint j = 0; j < TURNS; j++) save8(y, TO, i + j * step, v[j]);
        }
    for (; i < count; i += step) {
        const uint valid = within(i, count);
        if (valid == 8 && whole) {
            save8(y, TO, i, decoded8(w, values8(w, codes8(w, i)), block_of(w, i)));
        } else {
            save_some(y, TO, i, valid, gather8(w, i, valid));
        }
    }
}
static_assert(DEQUANTIZE_THREADS == 256, "dequantize fills the nested codebook with a value a thread");
