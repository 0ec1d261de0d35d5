// Owns the way from the runtime's untyped slots into a kernel's typed parameters, and the kernels' threadgroup
// variables.
#pragma once

namespace sim {

inline sim_variable *variables = nullptr;

// One threadgroup variable of one instance of a kernel. Its registration runs when the library is loaded.
template <auto Kernel, class Name, class T>
struct threadgroup_variable {
    struct registered : sim_variable {
        registered() : sim_variable{variables, (const void *)Kernel, Name::text(), sizeof(T), alignof(T), 0} {
            variables = this;
        }
    };
    static inline registered entry;
    static SIM_INLINE T     &get() { return *(T *)sim_threadgroup_variable(&entry); }
};

template <class P>
inline constexpr bool is_reference = false;
template <class T>
inline constexpr bool is_reference<T &> = true;

template <class P>
inline constexpr sim_size pointed_bytes = 0;
template <class T>
inline constexpr sim_size pointed_bytes<T *> = sizeof(T);
template <>
inline constexpr sim_size pointed_bytes<void *> = 0; // as third parties have them
template <>
inline constexpr sim_size pointed_bytes<const void *> = 0;

// Metal's validation compares the bound length with the size of what is pointed to, also where nobody looks at it.
template <class P>
constexpr sim_size referred_bytes() {
    if constexpr (is_reference<P>)
        return sizeof(metal::remove_reference_t<P>);
    else
        return pointed_bytes<P>;
}

// A parameter from its slot (buffers, threadgroup memory) or from the thread's values (Value >= 0).
template <class P, int Value>
SIM_INLINE P parameter(void *slot, const sim_u32 *values) {
    if constexpr (Value < 0) {
        if constexpr (is_reference<P>)
            return *(metal::remove_reference_t<P> *)slot;
        else
            return (P)slot;
    } else {
        using T = metal::remove_cv_t<P>;
        if constexpr (size<T> == 1)
            return (T)values[Value];
        else {
            T result;
            for (int i = 0; i < size<T>; i++) result[i] = (element<T>)values[Value + i];
            return result;
        }
    }
}

template <int... Is>
struct indices {};
template <class T, T... Is>
using indices_of = indices<(int)Is...>;

template <auto Kernel, int... Values>
struct entry;
template <class... P, void (*Kernel)(P...), int... Values>
struct entry<Kernel, Values...> {
    template <int... Is>
    static SIM_INLINE void call(void *const *slots, const sim_u32 *values, indices<Is...>) {
        Kernel(parameter<P, Values>(slots[Is], values)...);
    }
    static void run(void *const *slots, const sim_u32 *values) {
        call(slots, values, __make_integer_seq<indices_of, int, sizeof...(P)>());
    }
    static constexpr sim_size bytes[sizeof...(P) + 1] = {referred_bytes<P>()..., 0};
};

} // namespace sim
