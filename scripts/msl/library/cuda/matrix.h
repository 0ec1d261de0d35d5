// Metal's 8 × 8 matrices over tensor cores in tf32.
//
// A lane holds row lane / 4, columns 2 × (lane % 4) and the next. What is loaded to be a right factor is also kept by
// columns; what isn't used of both is never loaded. Each factor is split in two tf32, so that four products give about
// the accuracy of fp32. Tensor cores round what they add up towards zero: so each product is added in fp32 by itself.
#pragma once

namespace metal {

template <class T, int Columns = 8, int Rows = Columns> struct simdgroup_matrix {
    vec<T, 2> rows, columns;
};
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;

template <class T, int Columns, int Rows = Columns>
SIM_INLINE simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
    return {vec<T, 2>(value), vec<T, 2>(value)};
}

template <class T, class P>
SIM_INLINE void simdgroup_load(simdgroup_matrix<T> &matrix, const P *at, ulong row_elements = 8,
                               ulong2 origin = ulong2(0), bool transpose = false) {
    const uint row = sim::lane() / 4, column = sim::lane() % 4 * 2;
    at += origin.y * row_elements + origin.x;
    const vec<T, 2> across = {at[row * row_elements + column], at[row * row_elements + column + 1]};
    const vec<T, 2> down = {at[column * row_elements + row], at[(column + 1) * row_elements + row]};
    matrix.rows = transpose ? down : across;
    matrix.columns = transpose ? across : down;
}

template <class T, class P>
SIM_INLINE void simdgroup_store(simdgroup_matrix<T> matrix, P *at, ulong row_elements = 8, ulong2 origin = ulong2(0),
                                bool transpose = false) {
    const uint row = sim::lane() / 4, column = sim::lane() % 4 * 2;
    at += origin.y * row_elements + origin.x;
    at[transpose ? column * row_elements + row : row * row_elements + column] = matrix.rows.x;
    at[transpose ? (column + 1) * row_elements + row : row * row_elements + column + 1] = matrix.rows.y;
}

SIM_INLINE uint sim_tf32(float x) {
    uint bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// The upper half of a 16 × 8 product.
SIM_INLINE void sim_multiply(vec<float, 2> &sum, vec<uint, 2> a, vec<uint, 2> b) {
    float x = sum.x, y = sum.y, unused = 0.0f, unused_too = 0.0f;
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(x), "+f"(y), "+f"(unused), "+f"(unused_too)
        : "r"(a.x), "r"(0u), "r"(a.y), "r"(0u), "r"(b.x), "r"(b.y));
    sum = vec<float, 2>{x, y};
}

template <class D, class A, class B, class C>
SIM_INLINE void simdgroup_multiply_accumulate(simdgroup_matrix<D> &d, simdgroup_matrix<A> a, simdgroup_matrix<B> b,
                                              simdgroup_matrix<C> c) {
    const float a0 = a.rows.x, a1 = a.rows.y, b0 = b.columns.x, b1 = b.columns.y;
    const vec<uint, 2> a_high = {sim_tf32(a0), sim_tf32(a1)}, b_high = {sim_tf32(b0), sim_tf32(b1)};
    const vec<uint, 2> a_low = {sim_tf32(a0 - as_type<float>(a_high.x)), sim_tf32(a1 - as_type<float>(a_high.y))};
    const vec<uint, 2> b_low = {sim_tf32(b0 - as_type<float>(b_high.x)), sim_tf32(b1 - as_type<float>(b_high.y))};
    vec<float, 2> product = {0.0f, 0.0f};
    sim_multiply(product, a_low, b_low);
    sim_multiply(product, a_low, b_high);
    sim_multiply(product, a_high, b_low);
    sim_multiply(product, a_high, b_high);
    d.rows = vec<D, 2>{(D)(product.x + (float)c.rows.x), (D)(product.y + (float)c.rows.y)};
}

} // namespace metal
