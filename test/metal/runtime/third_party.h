// Owns what third-party kernels use of Metal beyond what the product's kernels may: the dialect "any" includes it.
#pragma once

typedef __bf16 bfloat;

namespace metal {

// Vectors without a vector's alignment.
template <class T, int N>
struct packed_vec {
    T elements[N];
    packed_vec() = default;
    SIM_INLINE packed_vec(vec<T, N> v) {
        for (int i = 0; i < N; i++) elements[i] = v[i];
    }
    SIM_INLINE operator vec<T, N>() const {
        vec<T, N> v;
        for (int i = 0; i < N; i++) v[i] = elements[i];
        return v;
    }
    SIM_INLINE T &operator[](int i) { return elements[i]; }
    SIM_INLINE T  operator[](int i) const { return elements[i]; }
};

template <class T, class U, int N>
SIM_INLINE T sim_convert(packed_vec<U, N> from) {
    return sim_convert<T>((vec<U, N>)from);
}

// Matrices by columns; a diagonal from one number.
template <class T, int Columns, int Rows>
struct matrix {
    vec<T, Rows> columns[Columns];
    matrix() = default;
    template <class U>
    explicit SIM_INLINE matrix(const matrix<U, Columns, Rows> &other) {
        for (int i = 0; i < Columns; i++) columns[i] = make<vec<T, Rows>>(other.columns[i]);
    }
    template <sim::scalar U>
    explicit SIM_INLINE matrix(U diagonal) {
        for (int i = 0; i < Columns; i++) {
            for (int j = 0; j < Rows; j++) columns[i][j] = i == j ? (T)diagonal : (T)0;
        }
    }
    SIM_INLINE vec<T, Rows> &operator[](int i) { return columns[i]; }
    SIM_INLINE vec<T, Rows> operator[](int i) const { return columns[i]; }
};
template <class T, int Columns, int Rows>
SIM_INLINE matrix<T, Columns, Rows> operator*(matrix<T, Columns, Rows> m, T factor) {
    for (int i = 0; i < Columns; i++) m.columns[i] *= factor;
    return m;
}
template <class T, int Columns, int Rows>
SIM_INLINE matrix<T, Columns, Rows> operator*(T factor, matrix<T, Columns, Rows> m) {
    return m * factor;
}

// A vector times a matrix is a row of dot products; a matrix times a vector a sum of its columns.
template <class T, int Columns, int Rows>
SIM_INLINE vec<T, Columns> operator*(vec<T, Rows> v, const matrix<T, Columns, Rows> &m) {
    vec<T, Columns> result;
    for (int i = 0; i < Columns; i++) result[i] = dot(v, m.columns[i]);
    return result;
}
template <class T, int Columns, int Rows>
SIM_INLINE vec<T, Rows> operator*(const matrix<T, Columns, Rows> &m, vec<T, Columns> v) {
    vec<T, Rows> result = m.columns[0] * v[0];
    for (int i = 1; i < Columns; i++) result += m.columns[i] * v[i];
    return result;
}

// Numbers of different types meet as float where one of them is a fraction, else in C's common type.
template <class A, class B>
struct common {
    using type = conditional_t<is_floating_point_v<A> || is_floating_point_v<B>, float, decltype(A() + B())>;
};
template <class A, class B>
using common_t = typename common<A, B>::type;
#define SIM_MIXED(name)                                                                                                \
    template <sim::scalar A, sim::scalar B>                                                                            \
        requires(!is_same_v<A, B>)                                                                                     \
    SIM_INLINE common_t<A, B> name(A a, B b) {                                                                         \
        return name((common_t<A, B>)a, (common_t<A, B>)b);                                                             \
    }
SIM_MIXED(min)
SIM_MIXED(max)
SIM_MIXED(fmin)
SIM_MIXED(fmax)
SIM_MIXED(pow)

template <class T>
using remove_addrspace_t = remove_cv_t<remove_reference_t<T>>;
template <>
inline constexpr bool is_floating_point_v<bfloat> = true;
template <>
struct numeric_limits<bfloat> {
    static constexpr bfloat max() { return as_type<bfloat>((ushort)0x7F7F); }
    static constexpr bfloat infinity() { return as_type<bfloat>((ushort)0x7F80); }
};

template <class T>
SIM_INLINE T simd_shuffle_and_fill_up(T value, T filling, ushort delta, SIM_SITE("simd_shuffle_and_fill_up")) {
    const int from = (int)sim_lane() - delta;
    const T   filled = sim::from_lane(filling, (from + SIM_LANES) % SIM_LANES, site);
    const T   shifted = sim::from_lane(value, sim::neighbour(from), site);
    return from < 0 ? filled : shifted;
}

} // namespace metal

#define SIM_PACKED(element, name)                                                                                      \
    typedef metal::packed_vec<element, 2> packed_##name##2;                                                            \
    typedef metal::packed_vec<element, 3> packed_##name##3;                                                            \
    typedef metal::packed_vec<element, 4> packed_##name##4;
SIM_PACKED(char, char)
SIM_PACKED(uchar, uchar)
SIM_PACKED(short, short)
SIM_PACKED(ushort, ushort)
SIM_PACKED(int, int)
SIM_PACKED(uint, uint)
SIM_PACKED(half, half)
SIM_PACKED(float, float)
#define SIM_MATRICES(element)                                                                                          \
    typedef metal::vec<element, 2>       element##2;                                                                   \
    typedef metal::vec<element, 4>       element##4;                                                                   \
    typedef metal::matrix<element, 2, 4> element##2x4;                                                                 \
    typedef metal::matrix<element, 4, 4> element##4x4;
SIM_MATRICES(half)
SIM_MATRICES(float)
SIM_MATRICES(bfloat)
typedef metal::simdgroup_matrix<bfloat> simdgroup_bfloat8x8;

#define assert(condition) ((void)0)
#define METAL_FUNC        inline __attribute__((always_inline))
