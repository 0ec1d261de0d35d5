// Stands in for MLX's complex numbers, which its quantised kernels do not use: their overloads differ by address space
// only, which is one on the CPU.
#pragma once
template <typename T> struct complex_t {
    T real, imag;
};
typedef complex_t<float> complex64_t;
