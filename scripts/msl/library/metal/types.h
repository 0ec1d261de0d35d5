// Owns Metal's type traits, vector types, conversions and numeric limits.
#pragma once

// Elements of a vector are a matter of registers: a kernel's own loops alone tell whether it keeps its arrays there.
#define SIM_EACH _Pragma("clang loop unroll(full)")

namespace metal {

template <class T, T Value> struct integral_constant {
    static constexpr T value = Value;
    using type = integral_constant;
    constexpr operator T() const { return Value; }
};
template <bool Value> using bool_constant = integral_constant<bool, Value>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <class A, class B> struct is_same : bool_constant<__is_same(A, B)> {};
template <class A, class B> inline constexpr bool is_same_v = __is_same(A, B);
template <bool Condition, class A, class B> struct conditional {
    using type = A;
};
template <class A, class B> struct conditional<false, A, B> {
    using type = B;
};
template <bool Condition, class A, class B> using conditional_t = typename conditional<Condition, A, B>::type;
template <bool Condition, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> {
    using type = T;
};
template <bool Condition, class T = void> using enable_if_t = typename enable_if<Condition, T>::type;
template <class T> using remove_cv_t = __remove_cv(T);
template <class T> using remove_reference_t = __remove_reference_t(T);
template <class T>
inline constexpr bool is_floating_point_v = is_same_v<remove_cv_t<T>, float> || is_same_v<remove_cv_t<T>, half>;
template <class T> inline constexpr bool is_integral_v = __is_integral(T);
template <class T> struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <class T> struct is_integral : bool_constant<__is_integral(T)> {};
template <class T> inline constexpr bool is_signed_v = __is_signed(T) || is_floating_point_v<T>;
template <class T> inline constexpr bool is_unsigned_v = __is_unsigned(T);

template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));

} // namespace metal

#define SIM_VECTORS(element, name)          \
    typedef metal::vec<element, 2> name##2; \
    typedef metal::vec<element, 3> name##3; \
    typedef metal::vec<element, 4> name##4;
SIM_VECTORS(float, float)
SIM_VECTORS(half, half)
SIM_VECTORS(char, char)
SIM_VECTORS(uchar, uchar)
SIM_VECTORS(short, short)
SIM_VECTORS(ushort, ushort)
SIM_VECTORS(int, int)
SIM_VECTORS(uint, uint)
SIM_VECTORS(long, long)
SIM_VECTORS(ulong, ulong)
SIM_VECTORS(bool, bool)
#undef SIM_VECTORS

namespace sim {

// A vector's element and size; a scalar is its own element, of size 1.
template <class T> struct shape {
    using element = T;
    static constexpr int size = 1;
};
template <class T, int N> struct shape<metal::vec<T, N>> {
    using element = T;
    static constexpr int size = N;
};
template <class T> using element = typename shape<T>::element;
template <class T> inline constexpr int size = shape<T>::size;
template <class T>
concept vector = (shape<T>::size > 1);
template <class T>
concept scalar = (shape<T>::size == 1) && (__is_arithmetic(T) || metal::is_same_v<T, half> || __is_enum(T));

template <class T> struct unsigned_type {
    using type = __make_unsigned(T);
};
template <class T> using unsigned_of = typename unsigned_type<T>::type;

template <class To, class From> SIM_INLINE void append(To &to, int &at, From from) {
    if constexpr (vector<From>) {
        SIM_EACH for (int i = 0; i < size<From>; i++) to[at++] = (element<To>)from[i];
    } else {
        to[at++] = (element<To>)from;
    }
}

} // namespace sim

namespace metal {

template <class T, class From> SIM_INLINE constexpr T sim_convert(From from) {
    if constexpr (!sim::vector<From>) {
        return T((sim::element<T>)from);
    } else {
        static_assert(sim::size<From> == sim::size<T>, "vectors of different sizes do not convert");
        return __builtin_convertvector(from, T);
    }
}

// What T(...) means in Metal: a conversion of each element, one value for all elements, or a list of parts.
template <class T, class... Parts> SIM_INLINE constexpr T make(Parts... parts) {
    if constexpr (!sim::vector<T>) {
        static_assert(!sim::scalar<T> || (!sim::vector<Parts> && ...), "a vector does not convert to a scalar");
        return T(parts...);
    } else if constexpr (sizeof...(Parts) == 0) {
        return T{};
    } else if constexpr (sizeof...(Parts) == 1) {
        return sim_convert<T>(parts...);
    } else {
        static_assert((sim::size<Parts> + ...) == sim::size<T>, "the parts do not fill the vector");
        T result;
        int at = 0;
        (sim::append(result, at, parts), ...);
        return result;
    }
}

template <class To, class From> SIM_INLINE constexpr To as_type(From from) { return __builtin_bit_cast(To, from); }

template <class T> struct numeric_limits;
#define SIM_LIMITS(T, least, greatest)                \
    template <> struct numeric_limits<T> {            \
        static constexpr T min() { return least; }    \
        static constexpr T lowest() { return least; } \
        static constexpr T max() { return greatest; } \
    };
SIM_LIMITS(bool, false, true)
SIM_LIMITS(char, -128, 127)
SIM_LIMITS(int8_t, -128, 127)
SIM_LIMITS(uchar, 0, 255)
SIM_LIMITS(short, -32768, 32767)
SIM_LIMITS(ushort, 0, 65535)
SIM_LIMITS(int, -2147483647 - 1, 2147483647)
SIM_LIMITS(uint, 0, 4294967295u)
SIM_LIMITS(long, -9223372036854775807L - 1, 9223372036854775807L)
SIM_LIMITS(ulong, 0, 18446744073709551615UL)
#undef SIM_LIMITS
#define SIM_LIMITS(T, smallest, greatest, step)                            \
    template <> struct numeric_limits<T> {                                 \
        static constexpr T min() { return (T)smallest; }                   \
        static constexpr T lowest() { return (T) - greatest; }             \
        static constexpr T max() { return (T)greatest; }                   \
        static constexpr T epsilon() { return (T)step; }                   \
        static constexpr T infinity() { return (T)__builtin_huge_valf(); } \
        static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); }   \
    };
SIM_LIMITS(float, 0x1p-126f, 0x1.fffffep127f, 0x1p-23f)
SIM_LIMITS(half, 0x1p-14f, 65504.0f, 0x1p-10f)
#undef SIM_LIMITS

} // namespace metal

using metal::as_type;
