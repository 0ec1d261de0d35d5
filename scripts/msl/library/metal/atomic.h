// Owns Metal's relaxed atomics on 32-bit integers.
#pragma once

namespace metal {

enum memory_order { memory_order_relaxed };

template <class T> struct atomic {
    static_assert(is_same_v<T, int> || is_same_v<T, uint>, "atomics hold int or uint");
    T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;

template <class T> SIM_INLINE T atomic_load_explicit(const volatile atomic<T> *object, memory_order) {
    return __atomic_load_n(&object->value, __ATOMIC_RELAXED);
}
template <class T> SIM_INLINE void atomic_store_explicit(volatile atomic<T> *object, T value, memory_order) {
    __atomic_store_n(&object->value, value, __ATOMIC_RELAXED);
}
template <class T> SIM_INLINE T atomic_exchange_explicit(volatile atomic<T> *object, T value, memory_order) {
    return __atomic_exchange_n(&object->value, value, __ATOMIC_RELAXED);
}
template <class T>
SIM_INLINE bool atomic_compare_exchange_weak_explicit(volatile atomic<T> *object, T *expected, T desired, memory_order,
                                                      memory_order) {
    return __atomic_compare_exchange_n(&object->value, expected, desired, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

#define SIM_ATOMIC(name)                                                                             \
    template <class T>                                                                               \
    SIM_INLINE T atomic_fetch_##name##_explicit(volatile atomic<T> *object, T value, memory_order) { \
        return __atomic_fetch_##name(&object->value, value, __ATOMIC_RELAXED);                       \
    }
SIM_ATOMIC(add)
SIM_ATOMIC(sub)
SIM_ATOMIC(and)
SIM_ATOMIC(or)
SIM_ATOMIC(xor)
#undef SIM_ATOMIC

#define SIM_ATOMIC(name, keeps)                                                                            \
    template <class T>                                                                                     \
    SIM_INLINE T atomic_fetch_##name##_explicit(volatile atomic<T> *object, T value, memory_order order) { \
        T before = atomic_load_explicit(object, order);                                                    \
        while (!(before keeps value) &&                                                                    \
               !atomic_compare_exchange_weak_explicit(object, &before, value, order, order)) {}            \
        return before;                                                                                     \
    }
SIM_ATOMIC(min, <=)
SIM_ATOMIC(max, >=)
#undef SIM_ATOMIC

} // namespace metal
