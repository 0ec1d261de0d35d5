// What Hopper alone has, as scripts/msl/library/cuda/hopper.h names it: products that four simdgroups issue together,
// and tiles that come on their own.
//
// A simdgroup's 16 rows of the 64 depend on nobody else's, so that here each simdgroup multiplies by itself, and at
// once: a missing wait or fence does not show. A tile comes at once too, but threads that wait for counts run in any
// order: what is brought before its place is free, or read before it has come, is wrong here as there.
#pragma once

// ── Products ────────────────────────────────────────────────────────────────────────────────────────────────────────

namespace sim {

// Element k of a row of a tile, whose pieces of 16 bytes have changed places; `at` is where its 32 bytes of row 0
// begin, or of a transposed factor, the tile's row of k = 0.
template <nv_kind Kind>
SIM_INLINE double nv_tile_element(const uchar *at, uint row, uint k, bool transposed = false) {
    ulong start = (ulong)at & ~1023ul, line = row, offset = ((ulong)at & 127) + k * (Kind == NV_S8 ? 1 : 2);
    if (transposed) {
        start = (ulong)at + row / 64 * 8192;
        line = k;
        offset = row % 64 * 2;
    }
    const uchar *from = (const uchar *)(start + line * 128 + ((offset / 16 ^ (line & 7)) * 16 + offset % 16));
    if constexpr (Kind == NV_S8)
        return *(const signed char *)from;
    else
        return nv_element<Kind>(*(const ushort *)from, 0);
}

template <nv_kind Kind, uint N, class T, class A>
SIM_INLINE void nv_wgmma(T (&d)[N / 2], A element_of_a, const uchar *b, bool b_transposed = false) {
    constexpr uint depth = Kind == NV_S8 ? 32 : 16;
    const uint     t = sim_lane() % 4;
    for (uint i = 0; i < N / 2; i++) {
        const uint column = i / 4 * 8 + 2 * t + i % 2;
        double     sum = (double)d[i];
        for (uint k = 0; k < depth; k++)
            sum += element_of_a(i / 2 % 2, k) * nv_tile_element<Kind>(b, column, k, b_transposed);
        d[i] = (T)sum;
    }
}

template <nv_kind Kind, uint N, class T>
SIM_INLINE void nv_wgmma_tiles(T (&d)[N / 2], const uchar *a, const uchar *b, bool a_transposed, bool b_transposed) {
    const uint row = 16 * (sim_thread() / SIM_LANES % 4) + sim_lane() / 4;
    nv_wgmma<Kind, N>(
        d, [=](uint h, uint k) { return nv_tile_element<Kind>(a, row + 8 * h, k, a_transposed); }, b, b_transposed);
}

} // namespace sim

SIM_INLINE void nv_wgmma_see() {}
SIM_INLINE void nv_wgmma_begin() {}
SIM_INLINE void nv_wgmma_commit() {}
// The lanes wait together, so that none is still reading when one says that all have read.
template <int Left>
SIM_INLINE void nv_wgmma_wait(SIM_SITE("nv_wgmma_wait")) {
    sim_simdgroup_barrier(0, site);
}
template <uint N>
SIM_INLINE void nv_wgmma_fresh(float (&d)[N]) {
    for (uint i = 0; i < N; i++) d[i] = __builtin_nanf("");
}
template <uint N>
SIM_INLINE void nv_wgmma_done(float (&)[N]) {}
template <uint N>
SIM_INLINE void nv_wgmma_done(int (&)[N]) {}

template <uint Dtype, uint N>
SIM_INLINE void nv_wgmma(float (&d)[N / 2], uint4 a, const uchar *b, bool adds, SIM_SITE("nv_wgmma")) {
    for (uint i = 0; i < N / 2 && !adds; i++) d[i] = 0.0f;
    constexpr sim::nv_kind kind = Dtype == 1 ? sim::NV_F16 : sim::NV_BF16;
    uint4                  row[4]; // of the lanes that share rows
    for (int q = 0; q < 4; q++) row[q] = sim::nv_from_lane(a, (int)(sim_lane() & ~3u) + q, site);
    sim::nv_wgmma<kind, N>(
        d, [&](uint h, uint k) { return sim::nv_element<kind>(row[k % 8 / 2][k / 8 * 2 + h], (int)k % 2); }, b);
}
template <uint Dtype, uint N>
SIM_INLINE void nv_wgmma_tiles(float (&d)[N / 2], const uchar *a, const uchar *b, uint a_transposed, uint b_transposed,
                               bool adds) {
    for (uint i = 0; i < N / 2 && !adds; i++) d[i] = 0.0f;
    sim::nv_wgmma_tiles<Dtype == 1 ? sim::NV_F16 : sim::NV_BF16, N>(d, a, b, a_transposed, b_transposed);
}
template <uint N>
SIM_INLINE void nv_wgmma_s8(int (&d)[N / 2], const uchar *a, const uchar *b) {
    sim::nv_wgmma_tiles<sim::NV_S8, N>(d, a, b, false, false);
}

SIM_INLINE void nv_store_matrix(uchar *row, uint4 words, SIM_SITE("nv_store_matrix")) {
    for (int i = 0; i < 4; i++) {
        const ulong to = sim::nv_from_lane((ulong)row, 8 * i + (int)sim_lane() / 4, site);
        ((uint *)to)[sim_lane() % 4] = words[i];
    }
}
SIM_INLINE void nv_store_transposed(uchar *row, uint4 words, SIM_SITE("nv_store_transposed")) {
    // Lane 4c + q holds rows 2q and 2q + 1 of column c of each matrix.
    for (int i = 0; i < 4; i++) {
        const uint word = words[i];
        for (uint e = 0; e < 2; e++) {
            const ulong to = sim::nv_from_lane((ulong)row, 8 * i + 2 * (int)(sim_lane() % 4) + (int)e, site);
            ((ushort *)to)[sim_lane() / 4] = (ushort)(word >> (16 * e));
        }
    }
}

// ── Tiles that come on their own ────────────────────────────────────────────────────────────────────────────────────

// A threadgroup is alone: what each of a pair brings to both, it brings all by itself.
SIM_INLINE constexpr uint nv_pair_size() { return 1; }
SIM_INLINE constexpr uint nv_pair_rank() { return 0; }
SIM_INLINE void           nv_pair_barrier(SIM_SITE("nv_pair_barrier")) {
    sim_threadgroup_barrier(SIM_MEM_DEVICE | SIM_MEM_THREADGROUP, site);
}

namespace sim {

// What a count's 64 bits are here.
struct nv_count {
    uint phase : 1, arrivals : 15, missing : 16; // of the arrivals
    int  bytes;                                  // that are yet to come
};

SIM_UNCHECKED inline void nv_count_change(ulong *at, uint arrived, int bytes) {
    nv_count *count = (nv_count *)at;
    count->missing -= arrived;
    count->bytes += bytes;
    if (count->missing == 0 && count->bytes == 0) {
        count->phase ^= 1;
        count->missing = count->arrivals;
    }
    sim_changed();
}

SIM_UNCHECKED inline uint nv_phase(const ulong *at) { return ((const nv_count *)at)->phase; }

} // namespace sim

SIM_UNCHECKED inline void nv_count_make(ulong *count, uint arrivals) {
    *(sim::nv_count *)count = {0, arrivals, arrivals, 0};
}
SIM_INLINE void nv_count_expect(ulong *count, uint bytes) { sim::nv_count_change(count, 1, (int)bytes); }
SIM_INLINE void nv_count_arrive(ulong *count, uint) { sim::nv_count_change(count, 1, 0); }
SIM_INLINE void nv_count_wait(ulong *count, uint phase, SIM_SITE("nv_count_wait")) {
    while (sim::nv_phase(count) == phase) sim_pause(site);
}

// As test/cuda/host/modules.c describes it: sides and boxes in numbers of `size` bytes, the pitch in bytes.
struct alignas(64) nv_tensor {
    const uchar *at;
    ulong        columns, rows, pitch;
    uint         size, box_columns, box_rows, turns; // as many bits of 128-byte lines' places change those of 16 bytes
    uchar        rest[80];
};

SIM_UNCHECKED inline void nv_bring(uchar *tile, const nv_tensor &from, uint column, uint row, ulong *count, bool) {
    const uint line = from.box_columns * from.size, bytes = line * from.box_rows;
    for (uint to = 0; to < bytes; to++) {
        const ulong r = row + to / line, byte = (ulong)column * from.size + to % line;
        const bool  there = r < from.rows && byte < from.columns * from.size;
        tile[to ^ (to >> 7 & from.turns) << 4] = there ? from.at[r * from.pitch + byte] : 0;
    }
    sim_brought(tile, bytes);
    sim::nv_count_change(count, 0, -(int)bytes);
}

template <uint Most>
SIM_INLINE void nv_give_registers() {}
template <uint Most>
SIM_INLINE void nv_take_registers() {}
