// Owns Metal's 8 × 8 matrices that a simdgroup holds together, two elements a lane.
#pragma once

namespace sim {

// The row and the first of two columns that a lane holds, in the layout seen on Apple's GPUs. Kernels must not rely on
// it; MLX's do, so the oracle needs the true one.
SIM_INLINE void place(int lane, int &row, int &column) {
    int quad = lane / 4;
    row = (quad & 4) + lane / 2 % 4;
    column = (quad & 2) * 2 + lane % 2 * 2;
}

struct fragment {
    float a[2], b[2], c[2];
};

SIM_UNCHECKED inline void multiply_accumulate(char *slots, sim_u32) {
    float a[8][8], b[8][8], c[8][8];
    for (int lane = 0; lane < SIM_LANES; lane++) {
        int row, column;
        place(lane, row, column);
        const fragment *f = (const fragment *)(slots + lane * SIM_SLOT_BYTES);
        __builtin_memcpy(&a[row][column], f->a, 8);
        __builtin_memcpy(&b[row][column], f->b, 8);
        __builtin_memcpy(&c[row][column], f->c, 8);
    }
    const unsigned char *order = sim_lane_order();
    for (int n = 0; n < SIM_LANES; n++) {
        const int k = order[n];
        if (k >= 8) continue;
        for (int i = 0; i < 8; i++) {
            for (int j = 0; j < 8; j++) c[i][j] = __builtin_fmaf(a[i][k], b[k][j], c[i][j]);
        }
    }
    for (int lane = 0; lane < SIM_LANES; lane++) {
        int row, column;
        place(lane, row, column);
        __builtin_memcpy(slots + lane * SIM_SLOT_BYTES, &c[row][column], 8);
    }
}

// All lanes of a simdgroup must load or store the same tile.
struct tile {
    const void *at;
    ulong       row_elements, transpose;
};
SIM_UNCHECKED inline void same_tile(char *slots, sim_u32 active) {
    const tile first = *(const tile *)(slots + __builtin_ctz(active) * SIM_SLOT_BYTES);
    for (int lane = 0; lane < SIM_LANES; lane++) {
        tile   *mine = (tile *)(slots + lane * SIM_SLOT_BYTES);
        sim_u32 differs = active >> lane & 1 && (mine->at != first.at || mine->row_elements != first.row_elements ||
                                                 mine->transpose != first.transpose);
        __builtin_memcpy(mine, &differs, sizeof differs);
    }
}

} // namespace sim

namespace metal {

template <class T, int Columns = 8, int Rows = Columns>
struct simdgroup_matrix {
    static_assert(Columns == 8 && Rows == 8, "simdgroup matrices are 8 by 8");
    vec<T, 2> elements;
    simdgroup_matrix() = default;
    explicit SIM_INLINE simdgroup_matrix(T diagonal) {
        int row, column;
        sim::place((int)sim_lane(), row, column);
        elements = vec<T, 2>{row == column ? diagonal : T(0), row == column + 1 ? diagonal : T(0)};
    }
    SIM_INLINE vec<T, 2> &thread_elements() { return elements; }
};
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half>  simdgroup_half8x8;

template <class T, int Columns, int Rows = Columns>
SIM_INLINE simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, Columns, Rows> result;
    result.elements = vec<T, 2>(value);
    return result;
}

template <class P>
SIM_INLINE void sim_check_tile(const P *at, ulong row_elements, bool transpose, sim_site site) {
#ifdef SIM_CHECKED
    sim::tile mine = {at, row_elements, transpose};
    sim_exchange(&mine, &mine, sizeof mine, SIM_OWN_LANE, sim::same_tile, site); // gives back as much as it takes
    sim_u32 differs;
    __builtin_memcpy(&differs, &mine, sizeof differs);
    if (differs) sim_report_different_tiles(site);
#endif
}

template <class T, class P>
SIM_INLINE void simdgroup_load(simdgroup_matrix<T> &matrix, const P *at, ulong row_elements = 8,
                               ulong2 origin = ulong2(0), bool transpose = false, SIM_SITE("simdgroup_load")) {
    static_assert(is_same_v<T, P>, "simdgroup_load takes memory of the matrix's type");
    sim_check_tile(at + origin.y * row_elements + origin.x, row_elements, transpose, site);
    int row, column;
    sim::place((int)sim_lane(), row, column);
    for (int i = 0; i < 2; i++) {
        ulong r = transpose ? column + i : row, c = transpose ? row : column + i;
        matrix.elements[i] = at[(r + origin.y) * row_elements + c + origin.x];
    }
}

template <class T, class P>
SIM_INLINE void simdgroup_store(simdgroup_matrix<T> matrix, P *at, ulong row_elements = 8, ulong2 origin = ulong2(0),
                                bool transpose = false, SIM_SITE("simdgroup_store")) {
    static_assert(is_same_v<T, P>, "simdgroup_store takes memory of the matrix's type");
    sim_check_tile(at + origin.y * row_elements + origin.x, row_elements, transpose, site);
    int row, column;
    sim::place((int)sim_lane(), row, column);
    for (int i = 0; i < 2; i++) {
        ulong r = transpose ? column + i : row, c = transpose ? row : column + i;
        at[(r + origin.y) * row_elements + c + origin.x] = matrix.elements[i];
    }
}

template <class D, class A, class B, class C>
SIM_INLINE void simdgroup_multiply_accumulate(simdgroup_matrix<D> &d, simdgroup_matrix<A> a, simdgroup_matrix<B> b,
                                              simdgroup_matrix<C> c, SIM_SITE("simdgroup_multiply_accumulate")) {
    const sim::fragment in = {{(float)a.elements.x, (float)a.elements.y},
                              {(float)b.elements.x, (float)b.elements.y},
                              {(float)c.elements.x, (float)c.elements.y}};
    float               out[6];
    sim_exchange(&in, out, sizeof in, SIM_OWN_LANE, sim::multiply_accumulate, site);
    d.elements = vec<D, 2>{(D)out[0], (D)out[1]};
}

template <class D, class A, class B>
SIM_INLINE void simdgroup_multiply(simdgroup_matrix<D> &d, simdgroup_matrix<A> a, simdgroup_matrix<B> b,
                                   SIM_SITE("simdgroup_multiply")) {
    simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f), site);
}

} // namespace metal
