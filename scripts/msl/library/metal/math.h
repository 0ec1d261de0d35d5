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
SIM_UNARY(fabs, __builtin_elementwise_abs)
SIM_UNARY(ceil, __builtin_elementwise_ceil)
SIM_UNARY(floor, __builtin_elementwise_floor)
SIM_UNARY(trunc, __builtin_elementwise_trunc)
SIM_UNARY(round, __builtin_elementwise_round)
SIM_UNARY(rint, __builtin_elementwise_roundeven)

// Names of two arguments, with the forms where one of them is a scalar.
#define SIM_BINARY(name, builtin)                                                                   \
    template <class T> SIM_INLINE T name(T x, T y) { return builtin(x, y); }                        \
    template <sim::vector T> SIM_INLINE T name(T x, sim::element<T> y) { return builtin(x, T(y)); } \
    template <sim::vector T> SIM_INLINE T name(sim::element<T> x, T y) { return builtin(T(x), y); }
SIM_BINARY(copysign, __builtin_elementwise_copysign)

// Those of which Metal has a precise and a fast form for float; a name alone means the one that the host chose. They
// differ in the last bit, which sim_rounded is for, and in what they make of a NaN, which sim_least and sim_greatest
// are for.
#define SIM_FORM(name, builtin)                                                            \
    template <class T> SIM_INLINE T name(T x) {                                            \
        static_assert(is_floating_point_v<sim::element<T>>, #name " takes float or half"); \
        return sim_rounded(builtin(x));                                                    \
    }
#define SIM_FORM_OF_TWO(name, builtin)                                                \
    template <class T> SIM_INLINE T sim_##name(T x, T y) { return sim_rounded(builtin(x, y)); } \
    SIM_BINARY(name, sim_##name)
#define SIM_FORMS                                                                       \
    SIM_FORM(sqrt, __builtin_elementwise_sqrt)                                          \
    SIM_FORM(rsqrt, T(1) / __builtin_elementwise_sqrt)                                  \
    SIM_FORM(exp, __builtin_elementwise_exp)                                            \
    SIM_FORM(exp2, __builtin_elementwise_exp2)                                          \
    SIM_FORM(exp10, __builtin_elementwise_exp10)                                        \
    SIM_FORM(log, __builtin_elementwise_log)                                            \
    SIM_FORM(log2, __builtin_elementwise_log2)                                          \
    SIM_FORM(log10, __builtin_elementwise_log10)                                        \
    SIM_FORM(sin, __builtin_elementwise_sin)                                            \
    SIM_FORM(cos, __builtin_elementwise_cos)                                            \
    SIM_FORM(tan, __builtin_elementwise_tan)                                            \
    SIM_FORM(asin, __builtin_elementwise_asin)                                          \
    SIM_FORM(acos, __builtin_elementwise_acos)                                          \
    SIM_FORM(atan, __builtin_elementwise_atan)                                          \
    SIM_FORM(sinh, __builtin_elementwise_sinh)                                          \
    SIM_FORM(cosh, __builtin_elementwise_cosh)                                          \
    SIM_FORM(tanh, __builtin_elementwise_tanh)                                          \
    SIM_FORM_OF_TWO(pow, __builtin_elementwise_pow)                                     \
    SIM_FORM_OF_TWO(powr, __builtin_elementwise_pow)                                    \
    SIM_FORM_OF_TWO(atan2, __builtin_elementwise_atan2)                                 \
    SIM_FORM_OF_TWO(fmod, __builtin_elementwise_fmod)                                   \
    template <class T> SIM_INLINE T divide(T x, T y) { return sim_rounded(x / y); }     \
    SIM_BINARY(fmin, sim_least)                                                         \
    SIM_BINARY(fmax, sim_greatest)                                                      \
    SIM_BINARY(min, sim_least)                                                          \
    SIM_BINARY(max, sim_greatest)                                                       \
    template <class T> SIM_INLINE T clamp(T x, T low, T high) {                         \
        return sim_least(sim_greatest(x, low), high);                                   \
    }                                                                                   \
    template <sim::vector T> SIM_INLINE T clamp(T x, sim::element<T> low, sim::element<T> high) { \
        return clamp(x, T(low), T(high));                                               \
    }                                                                                   \
    template <class T> SIM_INLINE T saturate(T x) { return clamp(x, T(0), T(1)); }      \
    template <class T> SIM_INLINE T fract(T x) {                                        \
        return sim_least(x - metal::floor(x), T(as_type<float>(0x3F7FFFFFu)));          \
    }

#ifdef SIM_FAST_FUNCTIONS
#define SIM_PRECISE namespace precise
#else
#define SIM_PRECISE inline namespace precise
#endif

SIM_PRECISE {
template <class T> SIM_INLINE T sim_rounded(T x) { return x; }
template <class T> SIM_INLINE T sim_least(T x, T y) {
    if constexpr (is_floating_point_v<sim::element<T>>) return __builtin_elementwise_minnum(x, y);
    else return __builtin_elementwise_min(x, y);
}
template <class T> SIM_INLINE T sim_greatest(T x, T y) {
    if constexpr (is_floating_point_v<sim::element<T>>) return __builtin_elementwise_maxnum(x, y);
    else return __builtin_elementwise_max(x, y);
}
SIM_FORMS
}

#ifdef SIM_FAST_FUNCTIONS
// As far off as Apple's may be: one in the last place, and a NaN wherever one goes in.
inline namespace fast {
template <class T> SIM_INLINE T sim_rounded(T x) {
    if constexpr (sim::vector<T>) {
        SIM_EACH for (int i = 0; i < sim::size<T>; i++) x[i] = sim_rounded(x[i]);
    } else if constexpr (is_same_v<T, float>) {
        const uint bits = as_type<uint>(x), magnitude = bits & 0x7fffffffu;
        if (magnitude != 0 && magnitude < 0x7f800000u) x = as_type<float>(bits ^ 1u);
    }
    return x; // half has one form
}
template <class T> SIM_INLINE T sim_least(T x, T y) {
    if constexpr (is_floating_point_v<sim::element<T>>) return __builtin_elementwise_minimum(x, y);
    else return __builtin_elementwise_min(x, y);
}
template <class T> SIM_INLINE T sim_greatest(T x, T y) {
    if constexpr (is_floating_point_v<sim::element<T>>) return __builtin_elementwise_maximum(x, y);
    else return __builtin_elementwise_max(x, y);
}
SIM_FORMS
}
#else
namespace fast = precise;
#endif

template <class T> SIM_INLINE T fma(T a, T b, T c) { return __builtin_elementwise_fma(a, b, c); }
template <class T> SIM_INLINE T mix(T x, T y, T a) { return x + (y - x) * a; }
template <sim::vector T> SIM_INLINE T mix(T x, T y, sim::element<T> a) { return mix(x, y, T(a)); }
template <class T> SIM_INLINE T abs(T x) {
    if constexpr (is_unsigned_v<sim::element<T>>) return x;
    else return __builtin_elementwise_abs(x);
}
template <sim::scalar T> SIM_INLINE T sign(T x) { return x > T(0) ? T(1) : x < T(0) ? T(-1) : x == x ? x : T(0); }
template <sim::vector T> SIM_INLINE T sign(T x) {
    SIM_EACH for (int i = 0; i < sim::size<T>; i++) x[i] = sign(x[i]);
    return x;
}
template <sim::scalar T> SIM_INLINE T ldexp(T x, int e) { return (T)__builtin_ldexpf((float)x, e); }
template <sim::vector T> SIM_INLINE sim::element<T> dot(T x, T y) {
    sim::element<T> sum = x[0] * y[0];
    SIM_EACH for (int i = 1; i < sim::size<T>; i++) sum += x[i] * y[i];
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
    SIM_EACH for (int i = 0; i < sim::size<T>; i++) result[i] = condition[i] ? yes[i] : no[i];
    return result;
}
template <sim::vector T> SIM_INLINE T select(T no, T yes, bool condition) { return condition ? yes : no; }
template <sim::vector C> SIM_INLINE bool any(C condition) {
    bool found = false;
    SIM_EACH for (int i = 0; i < sim::size<C>; i++) found |= condition[i] != 0;
    return found;
}
template <sim::vector C> SIM_INLINE bool all(C condition) {
    bool holds = true;
    SIM_EACH for (int i = 0; i < sim::size<C>; i++) holds &= condition[i] != 0;
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

} // namespace metal
