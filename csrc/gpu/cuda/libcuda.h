/* The driver API of CUDA as this library calls it: every NVIDIA driver brings libcuda.so.1, so that neither a header
 * nor a library of the toolkit is needed. libcuda.c finds it; test/cuda/host/ has a fake that is held to the same
 * list. */
#ifndef BNB_LIBCUDA_H
#define BNB_LIBCUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef int                 CUresult, CUdevice;
typedef unsigned long long  CUdeviceptr;
typedef struct CUctx_st    *CUcontext;
typedef struct CUmod_st    *CUmodule;
typedef struct CUfunc_st   *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st  *CUevent;
typedef struct CUpool_st   *CUmemoryPool;
typedef struct CUgraph_st  *CUgraph;
typedef struct CUexec_st   *CUgraphExec;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_DEVICE_UNAVAILABLE = 46,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_OPERATING_SYSTEM = 304,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_OUT_OF_RESOURCES = 701, /* a launch's: too many threads or registers, too much shared memory */
    CUDA_ERROR_LAUNCH_TIMEOUT = 702,
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709,
    CUDA_ERROR_ASSERT = 710,
    CUDA_ERROR_HARDWARE_STACK = 714, /* from here to LAUNCH_FAILED: what a kernel did */
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_SYSTEM_NOT_READY = 802,
    CUDA_ERROR_DRIVER_MISMATCH = 803,
    CUDA_ERROR_UNKNOWN = 999,
};

enum {
    ATTRIBUTE_MULTIPROCESSORS = 16,
    ATTRIBUTE_MAJOR = 75,
    ATTRIBUTE_MINOR = 76,
    ATTRIBUTE_SHARED_MOST = 97, /* a threadgroup's, once a kernel has asked for it */
    ATTRIBUTE_POOLS = 115,      /* cuMemAllocAsync works */
    POOL_RELEASE_THRESHOLD = 4,
    POOL_RESERVED = 5,
    POOL_USED = 7,
    FUNCTION_THREADS_MOST = 0,
    FUNCTION_SHARED_MOST = 8,
    STREAM_NON_BLOCKING = 1,
    CAPTURE_RELAXED = 2, /* other threads, and other streams, do as they like meanwhile */
    EVENT_NO_TIMING = 2,
    JIT_ERROR_LOG = 5,
    JIT_ERROR_LOG_BYTES = 6,
    LAUNCH_PROGRAMMATIC = 6, /* an attribute: may begin while the launch before it ends */
};

struct launch_attribute {
    int  id;
    char padding[4];
    union {
        char room[64];
        int  allowed;
    } value;
};

struct launch_config {
    unsigned                 groups[3], threads[3], shared_bytes;
    CUstream                 stream;
    struct launch_attribute *attributes;
    unsigned                 attribute_count;
};

/* How a matrix lies in memory, for kernels that have its tiles brought (cuda/hopper.h). */
struct tensor_map {
    _Alignas(64) unsigned char bytes[128];
};
enum { TENSOR_U8 = 0, TENSOR_U16 = 1, TENSOR_SWIZZLE_32 = 1, TENSOR_SWIZZLE_128 = 3, TENSOR_L2_128 = 2 };

/* CUDA(name, parameters). The names are the versioned ones that cuda.h's macros stand for. */
#define CUDA_FUNCTIONS(CUDA)                                                                                           \
    CUDA(cuInit, (unsigned flags))                                                                                     \
    CUDA(cuDriverGetVersion, (int *version))                                                                           \
    CUDA(cuGetErrorString, (CUresult result, const char **text))                                                       \
    CUDA(cuDeviceGetCount, (int *count))                                                                               \
    CUDA(cuDeviceGet, (CUdevice * device, int index))                                                                  \
    CUDA(cuDeviceGetName, (char *name, int size, CUdevice device))                                                     \
    CUDA(cuDeviceGetAttribute, (int *value, int attribute, CUdevice device))                                           \
    CUDA(cuDeviceTotalMem_v2, (size_t *bytes, CUdevice device))                                                        \
    CUDA(cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                                             \
    CUDA(cuCtxSetCurrent, (CUcontext context))                                                                         \
    CUDA(cuMemGetInfo_v2, (size_t *free, size_t *total))                                                               \
    CUDA(cuStreamCreate, (CUstream * stream, unsigned flags))                                                          \
    CUDA(cuStreamDestroy_v2, (CUstream stream))                                                                        \
    CUDA(cuStreamSynchronize, (CUstream stream))                                                                       \
    CUDA(cuStreamQuery, (CUstream stream))                                                                             \
    CUDA(cuStreamBeginCapture_v2, (CUstream stream, int mode))                                                         \
    CUDA(cuStreamEndCapture, (CUstream stream, CUgraph * graph))                                                       \
    CUDA(cuGraphInstantiateWithFlags, (CUgraphExec * executable, CUgraph graph, unsigned long long flags))             \
    CUDA(cuGraphLaunch, (CUgraphExec executable, CUstream stream))                                                     \
    CUDA(cuGraphExecDestroy, (CUgraphExec executable))                                                                 \
    CUDA(cuGraphDestroy, (CUgraph graph))                                                                              \
    CUDA(cuEventCreate, (CUevent * event, unsigned flags))                                                             \
    CUDA(cuEventRecord, (CUevent event, CUstream stream))                                                              \
    CUDA(cuEventQuery, (CUevent event))                                                                                \
    CUDA(cuEventSynchronize, (CUevent event))                                                                          \
    CUDA(cuEventElapsedTime, (float *milliseconds, CUevent from, CUevent to))                                          \
    CUDA(cuDeviceGetDefaultMemPool, (CUmemoryPool * pool, CUdevice device))                                            \
    CUDA(cuMemPoolSetAttribute, (CUmemoryPool pool, int attribute, void *value))                                       \
    CUDA(cuMemPoolGetAttribute, (CUmemoryPool pool, int attribute, void *value))                                       \
    CUDA(cuMemPoolTrimTo, (CUmemoryPool pool, size_t bytes))                                                           \
    CUDA(cuMemAllocAsync, (CUdeviceptr * at, size_t bytes, CUstream stream))                                           \
    CUDA(cuMemFreeAsync, (CUdeviceptr at, CUstream stream))                                                            \
    CUDA(cuMemAllocHost_v2, (void **memory, size_t bytes))                                                             \
    CUDA(cuMemcpyHtoDAsync_v2, (CUdeviceptr to, const void *from, size_t bytes, CUstream stream))                      \
    CUDA(cuMemcpyDtoHAsync_v2, (void *to, CUdeviceptr from, size_t bytes, CUstream stream))                            \
    CUDA(cuMemcpyDtoDAsync_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))                      \
    CUDA(cuMemsetD8Async, (CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream))                        \
    CUDA(cuModuleLoadDataEx, (CUmodule * module, const void *image, unsigned count, int *options, void **values))      \
    CUDA(cuModuleGetFunction, (CUfunction * function, CUmodule module, const char *name))                              \
    CUDA(cuFuncGetAttribute, (int *value, int attribute, CUfunction function))                                         \
    CUDA(cuFuncSetAttribute, (CUfunction function, int attribute, int value))                                          \
    CUDA(cuLaunchKernel, (CUfunction function, unsigned groups_x, unsigned groups_y, unsigned groups_z,                \
                          unsigned threads_x, unsigned threads_y, unsigned threads_z, unsigned shared_bytes,           \
                          CUstream stream, void **parameters, void **extra))

/* What a driver may lack: NULL then. CUDA 12.0 brought them. */
#define CUDA_FURTHER_FUNCTIONS(CUDA)                                                                                   \
    CUDA(cuLaunchKernelEx, (const struct launch_config *config, CUfunction function, void **parameters, void **extra)) \
    CUDA(cuTensorMapEncodeTiled,                                                                                       \
         (struct tensor_map * map, int type, unsigned rank, void *at, const uint64_t *sides, const uint64_t *pitches,  \
          const unsigned *box, const unsigned *steps, int interleave, int swizzle, int promotion, int outside))

/* The functions, found once by libcuda_load. */
extern struct libcuda {
#define CUDA_POINTER(name, parameters) CUresult(*name) parameters;
    CUDA_FUNCTIONS(CUDA_POINTER)
    CUDA_FURTHER_FUNCTIONS(CUDA_POINTER)
#undef CUDA_POINTER
} libcuda;

/* Finds libcuda and starts it. False, and bnb_last_error() says why CUDA is absent. */
bool libcuda_load(void);

/* For people. */
const char *libcuda_error(CUresult result);

#endif
