// Owns the Metal standard library on the CPU: what a translated kernel includes in place of <metal_stdlib>.
//
// Vectors are clang's ext_vector_type, which is what Apple's compiler (also a clang) builds on: the same swizzles,
// element-wise operators and implicit conversions. Two things differ and are mended: a cast between vectors of one size
// would reinterpret bits (the translator turns every constructor and cast into metal::make, which converts), and a
// comparison gives a vector of integers instead of bool (any, all and select take either).
//
// Every function is nodebug and inlined, so that the checker names the kernel's line and not this file's.
#pragma once
#include "module.h"

#define SIM_INLINE inline __attribute__((always_inline, nodebug))
// For functions that run between threads, on the runtime's own memory.
#define SIM_UNCHECKED __attribute__((disable_sanitizer_instrumentation, nodebug))
// Where the caller stands; a default argument of every operation that waits for other threads.
#define SIM_SITE(name) sim_site site = {__builtin_FILE(), __builtin_LINE(), name}

#include "metal/scalars.h"

#include "metal/types.h"

#include "metal/limits.h"

#include "metal/math.h"

#include "metal/simd.h"

#include "metal/matrix.h"

#include "metal/atomic.h"

#include "metal/entry.h"

#include "nvidia.h"

#include "hopper.h"

// The address spaces are one on the CPU; lint() compiles the same source with real ones.
#define device
#define threadgroup
#define thread
#define constant const
