// Owns the interface of the simulator's runtime for hosts: the fake Metal (C) and test/metal/simulator.ts (bun:ffi).
//
// A library of translated kernels is opened, a kernel looked up, a launch filled in as a Metal encoder would, and run.
// One launch runs at a time, on the calling thread. Nothing here aborts: what a kernel does wrong is collected as text,
// "file:line: kind: what happened [kernel, thread]", one a line, and sim_run returns how many there were.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct sim_library sim_library;
typedef struct sim_kernel  sim_kernel;
typedef struct sim_launch  sim_launch;

enum {
    SIM_MAX_THREADS = 1024,
    SIM_UNDECLARED_THREADS = 384,
    SIM_MAX_THREADGROUP_BYTES = 32768,   // Metal's limit
    SIM_MOST_THREADGROUP_BYTES = 232448, // of a launch with SIM_RUN_LARGE
    SIM_MAX_BUFFERS = 31,
    SIM_THREADGROUP_ALIGNMENT = 16,
    SIM_TILE_ALIGNMENT = 1024 // of a threadgroup argument in a launch with SIM_RUN_LARGE
};

// The text of the last failure (or of the last launch's errors) on this process; valid until the next call.
const char *sim_errors(void);

// Opens a library that compile() made. NULL on failure, see sim_errors(). It is never unloaded.
sim_library      *sim_library_open(const char *path);
uint32_t          sim_library_kernel_count(const sim_library *library);
const sim_kernel *sim_library_kernel_at(const sim_library *library, uint32_t position);
// NULL if no kernel has this host name.
const sim_kernel *sim_library_kernel(const sim_library *library, const char *host_name);

const char *sim_kernel_name(const sim_kernel *kernel);
// As maxTotalThreadsPerThreadgroup: what the kernel declares. Of one that declares nothing a GPU decides by its
// registers, and may leave it as few as SIM_UNDECLARED_THREADS.
uint32_t sim_kernel_max_threads(const sim_kernel *kernel);
// Bytes of threadgroup memory that the kernel declares itself, as staticThreadgroupMemoryLength.
size_t sim_kernel_threadgroup_bytes(const sim_kernel *kernel);
// A bit for each [[buffer(n)]] and each [[threadgroup(n)]] that the kernel has.
uint32_t sim_kernel_buffers(const sim_kernel *kernel);
uint32_t sim_kernel_threadgroup_arguments(const sim_kernel *kernel);
// Whether [[buffer(index)]] is `constant` or `device const`.
int sim_kernel_read_only(const sim_kernel *kernel, uint32_t index);
// How many bytes the library expects for [[function_constant(index)]]; 0 if it has none of this index.
uint32_t sim_library_constant_bytes(const sim_library *library, uint32_t index);

// Memory between guard pages, its end as close to the upper one as a 16-byte aligned start allows, filled with 0xFF.
// NULL if there is none. Buffers of a launch need not come from here, but overruns only fault if they do.
void *sim_allocate(size_t bytes);
void  sim_release(void *memory);
// Copies, for hosts that cannot write through a pointer.
void sim_write(void *memory, const void *from, size_t bytes);
void sim_read(void *to, const void *memory, size_t bytes);

enum { SIM_BUFFER_FRESH = 1 }; // the kernel must not read what it (or an earlier thread) did not write

sim_launch *sim_launch_new(const sim_kernel *kernel);
void        sim_launch_free(sim_launch *launch);
// A status: 0, or -1 with sim_errors().
int sim_launch_buffer(sim_launch *launch, uint32_t index, void *memory, size_t bytes, uint32_t flags);
// Copies the bytes, as setBytes:length:atIndex: does.
int sim_launch_bytes(sim_launch *launch, uint32_t index, const void *bytes, size_t count);
int sim_launch_threadgroup(sim_launch *launch, uint32_t index, size_t bytes);
int sim_launch_constant(sim_launch *launch, uint32_t index, const void *value, size_t bytes);

// SIM_RUN_LAX lets simdgroup operations run with the lanes that are left, as third-party kernels expect. SIM_RUN_FLUSH
// takes subnormal numbers of fp32 for zeros, as Apple's GPUs do. SIM_RUN_LARGE allows more threadgroup memory than
// those have, as NVIDIA's do.
enum { SIM_RUN_LAX = 1, SIM_RUN_FLUSH = 2, SIM_RUN_LARGE = 4 };

// Runs grid threadgroups of group threads. Seed 0 runs threads, threadgroups and the sums of lanes in order; others
// shuffle all three.
// Returns the number of errors (0: the launch is good); their text is sim_errors().
int sim_run(sim_launch *launch, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z, uint32_t group_x, uint32_t group_y,
            uint32_t group_z, uint32_t seed, uint32_t flags);
