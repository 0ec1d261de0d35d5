/* Times of kernels, for BNB_PROFILE=1: an event before each and one after, looked at when their ring comes round. */
#define _GNU_SOURCE /* at_quick_exit */
#include "cuda.h"

#include <stdlib.h>

enum { PENDING = 256 };

static struct timed {
    struct gpu    *gpu;
    struct kernel *kernel; /* NULL while nothing is under way */
    CUevent        from, to;
    size_t         bytes;
} ring[PENDING];
static uint32_t next;

/* Waits for a kernel, and adds its time to its profile. */
static void settle(struct timed *timed) {
    float milliseconds = 0;
    if (!timed->kernel || *timed->gpu->lost) return;
    libcuda.cuCtxSetCurrent(timed->gpu->context);
    if (libcuda.cuEventSynchronize(timed->to) == CUDA_SUCCESS &&
        libcuda.cuEventElapsedTime(&milliseconds, timed->from, timed->to) == CUDA_SUCCESS) {
        timed->kernel->profile.runs++;
        timed->kernel->profile.seconds += milliseconds * 1e-3;
        timed->kernel->profile.bytes += (double)timed->bytes;
    }
    timed->kernel = NULL;
}

static void print_profile(void) {
    for (uint32_t i = 0; i < PENDING; i++) settle(&ring[i]);
    ptx_profile();
}

void profile_open(void) {
    if (!cuda_profiling) return;
    atexit(print_profile);
#ifdef __linux__
    at_quick_exit(print_profile); /* so Bun ends a process there */
#endif
}

/* Events are of a context: a place in the ring that another GPU used gets new ones. */
static bool has_events(struct timed *timed, struct gpu *gpu) {
    if (timed->gpu == gpu) return true;
    timed->gpu = gpu;
    if (libcuda.cuEventCreate(&timed->from, 0) == CUDA_SUCCESS && libcuda.cuEventCreate(&timed->to, 0) == CUDA_SUCCESS)
        return true;
    timed->gpu = NULL;
    return false;
}

void profile_begin(struct gpu *gpu) {
    struct timed *timed = &ring[next];
    settle(timed);
    libcuda.cuCtxSetCurrent(gpu->context);
    if (has_events(timed, gpu)) libcuda.cuEventRecord(timed->from, gpu->stream);
}

void profile_end(struct gpu *gpu, struct kernel *kernel, size_t bytes_moved) {
    struct timed *timed = &ring[next];
    if (timed->gpu != gpu) return;
    libcuda.cuEventRecord(timed->to, gpu->stream);
    timed->kernel = kernel;
    timed->bytes = bytes_moved;
    next = (next + 1) % PENDING;
}
