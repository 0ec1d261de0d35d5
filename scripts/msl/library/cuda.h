// The Metal standard library on NVIDIA's GPUs, for `zig clang -x cuda` without any header of NVIDIA's: what a kernel
// that was translated for the target "cuda" includes.
#pragma once
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __grid_constant__ __attribute__((grid_constant))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#pragma clang force_cuda_host_device begin

#define SIM_INLINE inline __attribute__((always_inline))
// In the PTX this is a word, which the driver replaces by the launch's threads (scripts/ptx.ts).
#define SIM_MAX_THREADS 1024

#include "metal/scalars.h"

#include "metal/types.h"

#include "metal/limits.h"

#include "cuda/math.h"

#include "metal/math.h"

#include "cuda/entry.h"

#include "cuda/simd.h"

#include "cuda/matrix.h"

#include "metal/atomic.h"

#include "cuda/nvidia.h"

#ifdef SIM_HOPPER
#include "cuda/hopper.h"
#endif

// Threadgroup memory whose size the launch gives. Aligned as the swizzled tiles of tensor cores want it.
extern __shared__ __attribute__((aligned(1024))) uchar sim_shared[];

#define inline inline __attribute__((always_inline))
#define device
#define threadgroup
#define thread
#define constant const
