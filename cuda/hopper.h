// What Hopper's kernels share whose threadgroups stay, in pairs, for one tile of y after another: which tiles they are,
// and the ring of tiles in threadgroup memory that four simdgroups have brought and the others multiply.

enum { BOX = 8192, BRINGING = 4 }; // bytes of 64 rows of a tile; simdgroups

// What a threadgroup does at once: a tile of y from `m` and `n` on, from one step of 64 of k to another.
struct work {
    uint m, n, first, end, part;
};

// All of it: a pair has two tiles of y, side by side or one below the other.
struct works {
    uint m, n, tile_m, tile_n, side_by_side;
    uint steps, split, splits; // steps that a tile sums, and the parts of y that are summed apart
};

// Of both tiles of a pair, x by y.
inline uint2 pair_of_tiles(thread const works &all) {
    return all.side_by_side != 0 ? uint2(all.tile_m, 2 * all.tile_n) : uint2(2 * all.tile_m, all.tile_n);
}

inline uint work_count(thread const works &all) {
    const uint2 pair = pair_of_tiles(all);
    return (all.m + pair.x - 1) / pair.x * ((all.n + pair.y - 1) / pair.y) * all.splits;
}

// Pairs go down bands of 1,024 rows, so that what runs at once shares rows of both factors.
inline work work_of(thread const works &all, uint index, uint rank) {
    const uint rows = pair_of_tiles(all).x, columns = pair_of_tiles(all).y;
    const uint tiles_m = (all.m + rows - 1) / rows, tiles_n = (all.n + columns - 1) / columns;
    const uint part = index / (tiles_m * tiles_n), tile = index % (tiles_m * tiles_n);
    const uint deep = 1024 / rows, band = deep * tiles_n, in_band = tile % band;
    const uint band_first = tile / band * deep, band_rows = min(tiles_m - band_first, deep);
    const uint m = (band_first + in_band % band_rows) * rows, n = in_band / band_rows * columns;
    const uint first = part * all.split;
    return work{all.side_by_side != 0 ? m : m + rank * all.tile_m, all.side_by_side != 0 ? n + rank * all.tile_n : n,
                first, min(all.steps, first + all.split), part};
}

// A stage of the ring: which it is, and in which of the phases that it passes in turn.
struct ring {
    uint stage, phase;
};
template <uint STAGES>
inline void advance(thread ring &at) {
    at.stage++;
    if (at.stage == STAGES) {
        at.stage = 0;
        at.phase ^= 1;
    }
}

// Counts of a ring: each stage is full once its bytes have come, and empty once all simdgroups that multiply, in both
// of the pair, have read it.
template <uint STAGES>
inline void make_counts(threadgroup ulong *full, threadgroup ulong *empty, uint multiplying) {
    for (uint i = 0; i < STAGES; i++) {
        nv_count_make(full + i, 1);
        nv_count_make(empty + i, multiplying * nv_pair_size());
    }
}

// A factor's tile of a step. Of one that is shared each of a pair brings its part to both.
template <uint ROWS>
inline void bring(threadgroup uchar *tile, constant nv_tensor &from, bool transposed, bool shared, uint row, uint step,
                  threadgroup ulong *count) {
    const uint each = shared ? ROWS / 64 / nv_pair_size() : ROWS / 64, first = shared ? nv_pair_rank() * each : 0;
    UNROLL for (uint i = 0; i < ROWS / 64; i++) {
        const uint at = 64 * (first + i);
        if (i < each)
            nv_bring(tile + 128 * at, from, transposed ? row + at : 64 * step, transposed ? 64 * step : row + at, count,
                     shared);
    }
}

// Says to both of the pair that the simdgroup has read a stage.
inline void release(threadgroup ulong *empty, uint lane) {
    if (lane < nv_pair_size()) nv_count_arrive(empty, lane);
}

// ── Writing where w is the left factor ──────────────────────────────────────────────────────────────────────────────

// A lane's sums one by one, of 16 columns of y from n on: for parts of a split, and for shapes that wide stores don't
// fit.
template <uint BN>
inline void save_each(device uchar *y, uint store, uint rows, uint columns, uint m, uint n,
                      thread const float (&d)[BN / 2], float2 bias, uint lane) {
    UNROLL for (uint j = 0; j < BN / 8; j++)
        UNROLL for (uint e = 0; e < 4; e++) {
            const uint to_m = m + 8 * j + 2 * (lane % 4) + e % 2, to_n = n + lane / 4 + e / 2 * 8;
            if (to_m < rows && to_n < columns)
                save(y, store, ulong(to_m) * columns + to_n, d[4 * j + e] + (e < 2 ? bias.x : bias.y));
        }
}
