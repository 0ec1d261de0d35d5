// Owns Metal's scalar and vector functions. Arguments must agree in type, as Metal's overloads demand; beside a vector
// a scalar of its element type stands for all elements.
#pragma once

namespace metal {

// Names of one argument that are one clang builtin for scalars and vectors alike.
#define SIM_UNARY(name, builtin)                                                           \
    template <class T> SIM_INLINE T name(T x) {                                            \
        static_assert(is_floating_point_v<sim::element<T>>, #name " takes float or half"); \
        return builtin(x);                                                                 \
    }
#define SIM_UNARY_FUNCTIONS                          \
    SIM_UNARY(fabs, __builtin_elementwise_abs)       \
    SIM_UNARY(ceil, __builtin_elementwise_ceil)      \
    SIM_UNARY(floor, __builtin_elementwise_floor)    \
    SIM_UNARY(trunc, __builtin_elementwise_trunc)    \
    SIM_UNARY(round, __builtin_elementwise_round)    \
    SIM_UNARY(rint, __builtin_elementwise_roundeven) \
    SIM_UNARY(sqrt, __builtin_elementwise_sqrt)      \
    SIM_UNARY(exp, __builtin_elementwise_exp)        \
    SIM_UNARY(exp2, __builtin_elementwise_exp2)      \
    SIM_UNARY(exp10, __builtin_elementwise_exp10)    \
    SIM_UNARY(log, __builtin_elementwise_log)        \
    SIM_UNARY(log2, __builtin_elementwise_log2)      \
    SIM_UNARY(log10, __builtin_elementwise_log10)    \
    SIM_UNARY(sin, __builtin_elementwise_sin)        \
    SIM_UNARY(cos, __builtin_elementwise_cos)        \
    SIM_UNARY(tan, __builtin_elementwise_tan)        \
    SIM_UNARY(asin, __builtin_elementwise_asin)      \
    SIM_UNARY(acos, __builtin_elementwise_acos)      \
    SIM_UNARY(atan, __builtin_elementwise_atan)      \
    SIM_UNARY(sinh, __builtin_elementwise_sinh)      \
    SIM_UNARY(cosh, __builtin_elementwise_cosh)      \
    SIM_UNARY(tanh, __builtin_elementwise_tanh)
SIM_UNARY_FUNCTIONS

// Names of two arguments, with the forms where one of them is a scalar.
#define SIM_BINARY(name, builtin)                                                                   \
    template <class T> SIM_INLINE T name(T x, T y) { return builtin(x, y); }                        \
    template <sim::vector T> SIM_INLINE T name(T x, sim::element<T> y) { return builtin(x, T(y)); } \
    template <sim::vector T> SIM_INLINE T name(sim::element<T> x, T y) { return builtin(T(x), y); }
#define SIM_BINARY_FUNCTIONS                       \
    SIM_BINARY(pow, __builtin_elementwise_pow)     \
    SIM_BINARY(powr, __builtin_elementwise_pow)    \
    SIM_BINARY(atan2, __builtin_elementwise_atan2) \
    SIM_BINARY(fmod, __builtin_elementwise_fmod)   \
    SIM_BINARY(fmin, __builtin_elementwise_minnum) \
    SIM_BINARY(fmax, __builtin_elementwise_maxnum) \
    SIM_BINARY(copysign, __builtin_elementwise_copysign)
SIM_BINARY_FUNCTIONS

// min and max of floating-point numbers ignore a NaN, as fmin and fmax do.
template <class T> SIM_INLINE T sim_least(T x, T y) {
    if constexpr (is_floating_point_v<sim::element<T>>) return __builtin_elementwise_minnum(x, y);
    else return __builtin_elementwise_min(x, y);
}
template <class T> SIM_INLINE T sim_greatest(T x, T y) {
    if constexpr (is_floating_point_v<sim::element<T>>) return __builtin_elementwise_maxnum(x, y);
    else return __builtin_elementwise_max(x, y);
}
SIM_BINARY(min, sim_least)
SIM_BINARY(max, sim_greatest)

template <class T> SIM_INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <sim::vector T> SIM_INLINE T clamp(T x, sim::element<T> low, sim::element<T> high) {
    return clamp(x, T(low), T(high));
}
template <class T> SIM_INLINE T saturate(T x) { return clamp(x, T(0), T(1)); }
template <class T> SIM_INLINE T fma(T a, T b, T c) { return __builtin_elementwise_fma(a, b, c); }
template <class T> SIM_INLINE T rsqrt(T x) { return T(1) / sqrt(x); }
template <class T> SIM_INLINE T fract(T x) { return min(x - floor(x), T(as_type<float>(0x3F7FFFFFu))); }
template <class T> SIM_INLINE T divide(T x, T y) { return x / y; }
template <class T> SIM_INLINE T mix(T x, T y, T a) { return x + (y - x) * a; }
template <sim::vector T> SIM_INLINE T mix(T x, T y, sim::element<T> a) { return mix(x, y, T(a)); }
template <class T> SIM_INLINE T abs(T x) {
    if constexpr (is_unsigned_v<sim::element<T>>) return x;
    else return __builtin_elementwise_abs(x);
}
template <sim::scalar T> SIM_INLINE T sign(T x) { return x > T(0) ? T(1) : x < T(0) ? T(-1) : x == x ? x : T(0); }
template <sim::vector T> SIM_INLINE T sign(T x) {
    for (int i = 0; i < sim::size<T>; i++) x[i] = sign(x[i]);
    return x;
}
template <sim::scalar T> SIM_INLINE T ldexp(T x, int e) { return (T)__builtin_ldexpf((float)x, e); }
template <sim::vector T> SIM_INLINE sim::element<T> dot(T x, T y) {
    sim::element<T> sum = x[0] * y[0];
    for (int i = 1; i < sim::size<T>; i++) sum += x[i] * y[i];
    return sum;
}

template <sim::scalar T> SIM_INLINE bool isnan(T x) { return x != x; }
template <sim::scalar T> SIM_INLINE bool isinf(T x) { return fabs(x) == numeric_limits<T>::infinity(); }
template <sim::scalar T> SIM_INLINE bool isfinite(T x) { return fabs(x) < numeric_limits<T>::infinity(); }
template <sim::scalar T> SIM_INLINE bool signbit(T x) { return __builtin_signbit((float)x); }

// A condition's element: a bool, or an integer that a vector comparison made, all ones for true.
template <sim::scalar T> SIM_INLINE T select(T no, T yes, bool condition) { return condition ? yes : no; }
template <sim::vector T, sim::vector C> SIM_INLINE T select(T no, T yes, C condition) {
    static_assert(sim::size<T> == sim::size<C>, "select takes a condition for each element");
    T result;
    for (int i = 0; i < sim::size<T>; i++) result[i] = condition[i] ? yes[i] : no[i];
    return result;
}
template <sim::vector T> SIM_INLINE T select(T no, T yes, bool condition) { return condition ? yes : no; }
template <sim::vector C> SIM_INLINE bool any(C condition) {
    bool found = false;
    for (int i = 0; i < sim::size<C>; i++) found |= condition[i] != 0;
    return found;
}
template <sim::vector C> SIM_INLINE bool all(C condition) {
    bool holds = true;
    for (int i = 0; i < sim::size<C>; i++) holds &= condition[i] != 0;
    return holds;
}

template <class T> SIM_INLINE T popcount(T x) { return __builtin_elementwise_popcount(x); }
template <class T> SIM_INLINE T reverse_bits(T x) { return __builtin_elementwise_bitreverse(x); }
template <sim::scalar T> SIM_INLINE T clz(T x) { return (T)__builtin_clzg((sim::unsigned_of<T>)x, (int)sizeof(T) * 8); }
template <sim::scalar T> SIM_INLINE T ctz(T x) { return (T)__builtin_ctzg((sim::unsigned_of<T>)x, (int)sizeof(T) * 8); }
template <sim::scalar T> SIM_INLINE T rotate(T x, T by) {
    constexpr int bits = sizeof(T) * 8;
    using U = sim::unsigned_of<T>;
    int left = (int)(U)by % bits;
    return left ? (T)((U)x << left | (U)x >> (bits - left)) : x;
}
template <sim::scalar T> SIM_INLINE T extract_bits(T x, uint offset, uint bits) {
    constexpr uint width = sizeof(T) * 8;
    if (bits == 0) return 0;
    return (T)((T)((sim::unsigned_of<T>)x << (width - offset - bits)) >> (width - bits));
}
SIM_INLINE uint mulhi(uint x, uint y) { return (uint)((ulong)x * y >> 32); }
SIM_INLINE int mulhi(int x, int y) { return (int)((long)x * y >> 32); }

namespace precise {
SIM_UNARY_FUNCTIONS
SIM_BINARY_FUNCTIONS
using metal::clamp;
using metal::divide;
using metal::fma;
using metal::max;
using metal::min;
using metal::rsqrt;
} // namespace precise
namespace fast = precise; // the fast forms may be less exact; what holds for exact results must not depend on that

} // namespace metal
