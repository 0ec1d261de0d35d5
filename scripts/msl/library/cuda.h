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

typedef __INT8_TYPE__ int8_t;
typedef __UINT8_TYPE__ uint8_t;
typedef __INT16_TYPE__ int16_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __INT32_TYPE__ int32_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;

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
