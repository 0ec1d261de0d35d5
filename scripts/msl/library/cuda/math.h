// Transcendental functions, for which NVIDIA's own library would be needed: in fp32 to about two units in the last
// place. They take the place of clang's builtins in metal/math.h, which have no code on this target; of others there
// are none.
#pragma once

namespace sim {

SIM_INLINE float power_of_two(int exponent) { return __builtin_bit_cast(float, (uint)(exponent + 127) << 23); }

SIM_INLINE float exp2_of(float x) {
    float result;
    asm("ex2.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// exp(x) = 2^n · exp(r) with |r| ≤ ln 2 / 2; the power in two factors, so that small results lose
// no more than they must.
SIM_INLINE float exp_of(float x) {
    if (!(x < 89.0f)) return x * __builtin_huge_valf(); // and a NaN stays one
    if (x < -104.0f) return 0.0f;
    const float n = __builtin_elementwise_roundeven(x * 1.44269504f);
    const float r = __builtin_elementwise_fma(n, -1.42860677e-6f, __builtin_elementwise_fma(n, -0.693145752f, x));
    const int whole = (int)n, first = whole / 2;
    return exp2_of(r * 1.44269504f) * power_of_two(first) * power_of_two(whole - first);
}

// log(2^e · m) = e · ln 2 + 2 · artanh((m − 1) / (m + 1)) with m in [√½, √2).
SIM_INLINE float log_of(float x) {
    if (!(x > 0.0f)) return x == 0.0f ? -__builtin_huge_valf() : __builtin_nanf("");
    if (x == __builtin_huge_valf()) return x;
    const bool small = x < 0x1p-126f;
    const uint bits = __builtin_bit_cast(uint, small ? x * 0x1p32f : x);
    const int e = (int)((bits - 0x3f3504f3u) & 0xff800000u) >> 23;
    const float m = __builtin_bit_cast(float, bits - ((uint)e << 23));
    const float s = (m - 1.0f) / (m + 1.0f), q = s * s;
    float p = __builtin_elementwise_fma(q, 0.2222222f, 0.2857143f);
    p = __builtin_elementwise_fma(p, q, 0.4f);
    p = __builtin_elementwise_fma(p, q, 0.6666667f);
    return __builtin_elementwise_fma((float)(small ? e - 32 : e), 0.693147181f,
                                     __builtin_elementwise_fma(s * q, p, 2.0f * s));
}

SIM_INLINE float tanh_of(float x) {
    const float a = __builtin_elementwise_abs(x);
    if (a < 0.55f) {
        const float q = x * x;
        float p = __builtin_elementwise_fma(q, -0.00886323553f, 0.0218694885f);
        p = __builtin_elementwise_fma(p, q, -0.0539682540f);
        p = __builtin_elementwise_fma(p, q, 0.133333333f);
        p = __builtin_elementwise_fma(p, q, -0.333333333f);
        return __builtin_elementwise_fma(p * q, x, x);
    }
    return __builtin_elementwise_copysign(1.0f - 2.0f / (exp_of(2.0f * a) + 1.0f), x);
}

// Sine of x + quarter · π / 2, for |x| up to 100,000.
SIM_INLINE float sine_of(float x, int quarter) {
    const float n = __builtin_elementwise_roundeven(x * 0.636619772f);
    float r = __builtin_elementwise_fma(n, -1.57079601f, x);
    r = __builtin_elementwise_fma(n, -3.13916473e-7f, r);
    r = __builtin_elementwise_fma(n, -5.39030253e-15f, r);
    const float q = r * r;
    const int turn = (int)n + quarter;
    float sine = __builtin_elementwise_fma(q, 2.60831598e-6f, -1.98106907e-4f);
    sine = __builtin_elementwise_fma(sine, q, 8.33307858e-3f);
    sine = __builtin_elementwise_fma(sine, q, -0.166666597f);
    sine = __builtin_elementwise_fma(sine * q, r, r);
    float cosine = __builtin_elementwise_fma(q, 2.44331571e-5f, -1.38873162e-3f);
    cosine = __builtin_elementwise_fma(cosine, q, 4.16666456e-2f);
    cosine = __builtin_elementwise_fma(cosine, q, -0.5f);
    cosine = __builtin_elementwise_fma(cosine, q, 1.0f);
    const float value = turn & 1 ? cosine : sine;
    return turn & 2 ? -value : value;
}

template <class T, class F> SIM_INLINE T each(T x, F f) {
    if constexpr (vector<T>) {
        for (int i = 0; i < size<T>; i++) x[i] = (element<T>)f((float)x[i]);
        return x;
    } else return (T)f((float)x);
}

#define SIM_FUNCTION(name, value)                                                                                      \
    template <class T>                                                                                                 \
    SIM_INLINE T name##_each(T x) {                                                                                    \
        return each(x, [](float x) __attribute__((always_inline)) { return value; });                                  \
    }
SIM_FUNCTION(exp, exp_of(x))
SIM_FUNCTION(exp2, exp2_of(x))
SIM_FUNCTION(log, log_of(x))
SIM_FUNCTION(tanh, tanh_of(x))
SIM_FUNCTION(sin, sine_of(x, 0))
SIM_FUNCTION(cos, sine_of(x, 1))
#undef SIM_FUNCTION

} // namespace sim

#define __builtin_elementwise_exp sim::exp_each
#define __builtin_elementwise_exp2 sim::exp2_each
#define __builtin_elementwise_log sim::log_each
#define __builtin_elementwise_tanh sim::tanh_each
#define __builtin_elementwise_sin sim::sin_each
#define __builtin_elementwise_cos sim::cos_each
