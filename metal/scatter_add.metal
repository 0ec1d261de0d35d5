// Weighted rows added to rows of a sum: a thread takes a column, so that each sum has one order. A row that y lacks is
// left out.

constant uint X [[function_constant(0)]];
constant uint Y [[function_constant(1)]];

[[host_name("scatter_add")]] [[kernel, max_total_threads_per_threadgroup(SCATTER_THREADS)]]
void scatter_add(constant scatter_add_args &args [[buffer(0)]],
                 device const uchar *x [[buffer(1)]],
                 device const int *rows [[buffer(2)]],
                 device const float *weights [[buffer(3)]],
                 device uchar *y [[buffer(4)]],
                 uint column [[thread_position_in_grid]]) {
    if (column >= args.columns) return;
    for (uint i = 0; i < args.rows; i++) {
        const uint row = uint(rows[i]);
        if (row >= args.most) continue;
        const ulong at = ulong(row) * args.columns + column;
        const float added = weights[i] * load(x, X, ulong(i) * args.columns + column);
        save(y, Y, at, load(y, Y, at) + added);
    }
}
