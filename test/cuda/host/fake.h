/* What the files of the fake libcuda share: the stream's commands, memory, and the faults that a test can inject.
 *
 * The driver of csrc/gpu/cuda/ runs unchanged on top of this library, and kernels run in the simulator. It is stricter
 * than
 * NVIDIA's: what would only go wrong later, or sometimes, ends the process with the rule that was broken. */
#ifndef FAKE_LIBCUDA_H
#define FAKE_LIBCUDA_H

#include <pthread.h>
#include <stdatomic.h>

#include "../../../csrc/gpu/cuda/libcuda.h"

#define EXPORT __attribute__((visibility("default")))

#define PROTOTYPE(name, parameters) EXPORT CUresult name parameters;
CUDA_FUNCTIONS(PROTOTYPE)
CUDA_FURTHER_FUNCTIONS(PROTOTYPE)
#undef PROTOTYPE

/* Prints the rule that was broken, and aborts. */
[[noreturn]] void violation(const char *sentence, ...) __attribute__((format(printf, 1, 2)));

/* ── Faults and counters ────────────────────────────────────────────────────────────────────────────────────────── */

/* FAULT(name, usual value): set by BNB_FAKE_CUDA="name=value,…" or fake_cuda_set(). */
#define FAULTS(FAULT)                                                                                                  \
    FAULT(devices, 1)                                                                                                  \
    FAULT(version, 13000)                                                                                              \
    FAULT(init, 0)    /* what cuInit gives */                                                                          \
    FAULT(context, 0) /* what cuDevicePrimaryCtxRetain gives */                                                        \
    FAULT(capability, 90)                                                                                              \
    FAULT(pools, 1)                                                                                                    \
    FAULT(tensors, 1) /* matrices can be described */                                                                  \
    FAULT(memory, (long)8 << 30)                                                                                       \
    FAULT(fail_alloc, 0)  /* the nth allocation from now on finds no memory */                                         \
    FAULT(fail_pinned, 0) /* the nth allocation of pinned memory */                                                    \
    FAULT(fail_compile, 0)                                                                                             \
    FAULT(fail_launch, 0)      /* the nth launch is refused for lack of registers */                                   \
    FAULT(fail_capture, 0)     /* the nth end of a capture */                                                          \
    FAULT(fail_instantiate, 0) /* the nth making of a graph finds no memory */                                         \
    FAULT(lose, 0)             /* the nth launch that runs ends the context */                                         \
    FAULT(polls, 3)            /* so often must the stream be asked until it runs without a wait */

extern struct faults {
#define FIELD(name, usual) _Atomic long name;
    FAULTS(FIELD)
#undef FIELD
} faults;

/* True where the countdown reaches its end now. */
bool strikes(_Atomic long *countdown);

extern struct counters {
    _Atomic long compiles, allocations, launches, overlapped, runs, copies, waits, live, ranges, open_ranges, graphs,
        live_graphs, streams;
} counters;

/* For tests. */
EXPORT long fake_cuda_count(const char *name);
EXPORT void fake_cuda_set(const char *fault, long value);

/* Of NVIDIA's tools, for whoever names this library in BNB_NVTX. */
EXPORT int nvtxRangePushA(const char *name);
EXPORT int nvtxRangePop(void);

/* ── The context ────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Opens every call that works in a context: takes the lock, and gives the failure that ended the context, or
 * success. */
CUresult enter(const char *function);
CUresult leave(CUresult result);
void     lose(CUresult result, const char *text);
CUresult is_lost(void);

/* ── Memory ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

struct allocation {
    char              *memory;
    size_t             bytes;
    bool               freed;   /* in the order of calls; its memory lives until the stream has come that far */
    long               written; /* by which launch last */
    struct CUgraph_st *graph;   /* whose it is: it lives as long */
    struct allocation *next;
};

/* The allocation that holds all `bytes` at an address, which must be alive for the caller. */
struct allocation *find_allocation(CUdeviceptr at, size_t bytes, const char *function);
bool               is_of_graph(CUdeviceptr at);
bool               is_pinned(const void *memory);
void               release_allocation(struct allocation *allocation);
void               release_graph(const struct CUgraph_st *graph); /* its memory */

/* ── The stream ─────────────────────────────────────────────────────────────────────────────────────────────────── */

struct command {
    enum { COPY, SET, FREE, RECORD, LAUNCH } kind;
    char              *to;
    const char        *from;
    size_t             bytes;
    char              *taken; /* the command's own copy of `from`, or NULL */
    unsigned char      value;
    struct allocation *allocation;
    CUevent            event;
    struct launched   *launch;
    struct command    *next;
};

void     enqueue(CUstream stream, struct command command); /* or into the graph that the stream captures */
CUresult drain(void);                                      /* runs all that was enqueued */

/* The graph that a stream captures, or NULL. */
struct CUgraph_st *captured_by(CUstream stream);

struct launched *launch_new(CUfunction function, const struct launch_config *config, void **parameters);
void             launch_begins(struct launched *launch); /* is enqueued, by itself or in a graph: checks the order */
struct launched *launch_again(const struct launched *launch); /* of a graph: the same, if its memory is there still */
CUresult         launch_run(struct launched *launch);         /* and frees it */
void             all_is_done(void);                           /* of what was enqueued */
void             order_graph(void); /* a graph is enqueued: it comes after all before it, and before all behind it */
void             order_copy(void);  /* a copy is, that nobody waits for: the same */

#endif
