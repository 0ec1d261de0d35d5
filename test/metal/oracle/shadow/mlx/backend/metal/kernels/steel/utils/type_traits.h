// Stands in for MLX's type traits, whose specialisations differ by address space only, which is one on the CPU.
#pragma once
namespace metal {
template <typename T> struct pointer_element {};
template <typename T> struct pointer_element<T *> {
    using type = remove_cv_t<T>;
};
template <typename T> using pointer_element_t = typename pointer_element<remove_cv_t<T>>::type;
} // namespace metal
