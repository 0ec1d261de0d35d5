// Owns the declarations against which lint() type-checks a kernel as C++14 with real address spaces. Nothing is run.
#pragma once

#define device      __attribute__((address_space(1)))
#define constant    __attribute__((address_space(2))) const
#define threadgroup __attribute__((address_space(3)))
#define thread

// Metal copies a struct out of any address space. Clang does not, so every struct gets these, and one for its braces.
#define LINT_COPIES(name)                                                                                              \
    name() = default;                                                                                                  \
    name(const name &) = default;                                                                                      \
    name(device const name &);                                                                                         \
    name(constant name &);                                                                                             \
    name(threadgroup const name &);                                                                                    \
    template <class... Members>                                                                                        \
    name(Members...);

#include "metal/scalars.h"

#include "metal/limits.h"

#define LINT_VECTORS(element)                                                                                          \
    typedef element element##2 __attribute__((ext_vector_type(2)));                                                    \
    typedef element element##3 __attribute__((ext_vector_type(3)));                                                    \
    typedef element element##4 __attribute__((ext_vector_type(4)));
LINT_VECTORS(float)
LINT_VECTORS(half)
LINT_VECTORS(char)
LINT_VECTORS(uchar)
LINT_VECTORS(short)
LINT_VECTORS(ushort)
LINT_VECTORS(int)
LINT_VECTORS(uint)
LINT_VECTORS(long)
LINT_VECTORS(ulong)
LINT_VECTORS(bool)

namespace metal {

template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));

template <class A, class B>
constexpr bool is_same_v = __is_same(A, B);
template <class A, class B>
struct is_same {
    static constexpr bool value = __is_same(A, B);
};
template <bool Condition, class A, class B>
struct conditional {
    typedef A type;
};
template <class A, class B>
struct conditional<false, A, B> {
    typedef B type;
};
template <bool Condition, class A, class B>
using conditional_t = typename conditional<Condition, A, B>::type;
template <bool Condition, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
    typedef T type;
};
template <bool Condition, class T = void>
using enable_if_t = typename enable_if<Condition, T>::type;

template <class T, class... Parts>
constexpr T make(Parts... parts);
template <class To, class From>
To as_type(From);

// A cast of a pointer keeps its address space, whatever else it changes.
template <class T>
struct address_space {
    static constexpr int number = 0;
};
template <class T>
struct address_space<device T> {
    static constexpr int number = 1;
};
template <class T>
struct address_space<constant T> {
    static constexpr int number = 2;
};
template <class T>
struct address_space<threadgroup T> {
    static constexpr int number = 3;
};
template <class To, class From>
To pointer_cast(From *from) {
    using target = __remove_pointer(To);
    static_assert(address_space<target>::number == address_space<From>::number, "a cast to another address space");
    return (To)from;
}

template <class T>
struct numeric_limits {
    static constexpr T min() { return T(); }
    static constexpr T max() { return T(); }
    static constexpr T lowest() { return T(); }
    static constexpr T infinity() { return T(); }
    static constexpr T quiet_NaN() { return T(); }
    static constexpr T epsilon() { return T(); }
};

enum class mem_flags { mem_device = 1, mem_threadgroup = 2 };
template <class T>
threadgroup T *own_slice(threadgroup T *at, uint elements);
mem_flags      operator|(mem_flags, mem_flags);
void           threadgroup_barrier(mem_flags);
void           simdgroup_barrier(mem_flags);

// Conditions are vectors of integers here, as a comparison of vectors makes them in C++.
template <class T, class C>
T select(T, T, C);
template <class C>
bool any(C);
template <class C>
bool all(C);
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();

template <class T, int Columns = 8, int Rows = Columns>
struct simdgroup_matrix {
    simdgroup_matrix();
    explicit simdgroup_matrix(T);
};
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half>  simdgroup_half8x8;
template <class T, int Columns, int Rows = Columns>
simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T);
typedef ulong                      origin __attribute__((ext_vector_type(2)));
#define LINT_SPACES(declaration) declaration(device) declaration(threadgroup)
#define LINT_TILE(space)                                                                                               \
    template <class T>                                                                                                 \
    void simdgroup_load(simdgroup_matrix<T> &, space const T *, ulong = 8, origin = 0, bool = false);                  \
    template <class T>                                                                                                 \
    void simdgroup_store(simdgroup_matrix<T>, space T *, ulong = 8, origin = 0, bool = false);
LINT_SPACES(LINT_TILE)
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D> &, simdgroup_matrix<A>, simdgroup_matrix<B>,
                                   simdgroup_matrix<C>);
template <class D, class A, class B>
void simdgroup_multiply(simdgroup_matrix<D> &, simdgroup_matrix<A>, simdgroup_matrix<B>);

enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
    T value;
};
typedef atomic<int>  atomic_int;
typedef atomic<uint> atomic_uint;
#define LINT_ATOMIC(space)                                                                                             \
    template <class T>                                                                                                 \
    T atomic_load_explicit(space const atomic<T> *, memory_order);                                                     \
    template <class T>                                                                                                 \
    void atomic_store_explicit(space atomic<T> *, T, memory_order);                                                    \
    template <class T>                                                                                                 \
    T atomic_exchange_explicit(space atomic<T> *, T, memory_order);                                                    \
    template <class T>                                                                                                 \
    bool atomic_compare_exchange_weak_explicit(space atomic<T> *, T *, T, memory_order, memory_order);                 \
    template <class T>                                                                                                 \
    T atomic_fetch_add_explicit(space atomic<T> *, T, memory_order);                                                   \
    template <class T>                                                                                                 \
    T atomic_fetch_sub_explicit(space atomic<T> *, T, memory_order);                                                   \
    template <class T>                                                                                                 \
    T atomic_fetch_and_explicit(space atomic<T> *, T, memory_order);                                                   \
    template <class T>                                                                                                 \
    T atomic_fetch_or_explicit(space atomic<T> *, T, memory_order);                                                    \
    template <class T>                                                                                                 \
    T atomic_fetch_xor_explicit(space atomic<T> *, T, memory_order);                                                   \
    template <class T>                                                                                                 \
    T atomic_fetch_min_explicit(space atomic<T> *, T, memory_order);                                                   \
    template <class T>                                                                                                 \
    T atomic_fetch_max_explicit(space atomic<T> *, T, memory_order);
LINT_SPACES(LINT_ATOMIC)

} // namespace metal

#include "apple.h" // made from scripts/msl/apple.ts

using metal::as_type;
