/* What the files of the CUDA driver share: a GPU's state, and the functions of one file that another calls.
 *
 *   cuda.c           opening, describing, launching, waiting: the driver's table
 *   serve.c          whole products by kernels of its own: which, with what grid
 *   bytes.c          of them, one row with codes of a byte
 *   dense.c          of them, both factors in half precision
 *   hopper.c         of them, those whose tiles the GPU fetches by itself
 *   backward.c       the same of products' gradients
 *   attention.c      and of attention
 *   memory.c         device memory, and copies to and from it
 *   graph.c          launches that are enqueued again and again, as one graph
 *   ptx.c            the kernels' PTX: taking, finding, compiling
 *   text.c           its texts as the driver takes them
 *   profile.c        times of kernels
 *   ranges.c         names for Nsight
 *   libcuda.c        NVIDIA's library
 *
 * Every function of the driver's table opens with cuda_enter and closes with cuda_leave: one lock, and the GPU's
 * context
 * made the thread's. The others are called in between. */
#ifndef BNB_CUDA_H
#define BNB_CUDA_H

#include "../../internal.h"
#include "../driver.h"
#include "libcuda.h"

enum { GPUS_MOST = 16, STAGES = 2, SCRATCH_BYTES = 8 << 20 };

struct memory;

struct gpu {
    CUdevice     device;
    CUcontext    context;
    CUstream     stream;
    CUmemoryPool pool;
    char         name[128];
    int          capability; /* 10 × major + minor */
    int          multiprocessors;
    int          shared_most; /* bytes of shared memory that a threadgroup can have */
    int          driver_version;
    size_t       total;       /* bytes */
    uint64_t     launches;    /* so far */
    uint64_t     last_whole;  /* the last that began when all before it were done */
    bool         after_other; /* since a graph or a copy, which no launch may overlap, none was enqueued */
    uint64_t     captures;    /* of graphs, so far */
    char         lost[512];   /* why its context and all its memory are gone; empty while they are not */
    struct stage {            /* pinned memory on the way between host and device, made for the first copy */
        char   *memory;
        CUevent done; /* the copies out of it that were enqueued last */
        size_t  used; /* of it, by small writes whose copies may be under way */
    } stages[STAGES];
    uint32_t       stage;   /* that small writes go on in */
    struct memory *scratch; /* SCRATCH_BYTES for what kernels of graphs leave for the next, made for the first graph */
};

/* Device memory. */
struct memory {
    CUdeviceptr at;
    size_t      bytes;
    uint64_t    written;  /* by which launch last, */
    uint64_t    captured; /* and by a launch of which capture */
};

extern bool cuda_profiling; /* BNB_PROFILE=1 */

/* False where the GPU's context is lost, and bnb_last_error() says so. To be left in either case. */
bool cuda_enter(struct gpu *gpu);
void cuda_leave(void);

/* What a call's failure means for the caller; `what` opens the sentence. A context that it ended is marked as lost. */
bnb_status cuda_failed(struct gpu *gpu, CUresult result, const char *what);

bnb_status cuda_launch(void *gpu, const struct launch *launch);
bnb_status cuda_serve(void *gpu, const struct launch *whole);
bnb_status cuda_serve_bytes(struct gpu *gpu, const struct launch *whole);
bnb_status cuda_serve_backward(struct gpu *gpu, const struct launch *whole);
bnb_status cuda_serve_attention(struct gpu *gpu, const struct launch *whole);
bnb_status cuda_no_kernel(void); /* UNSUPPORTED, in words */
void       cuda_replace(
    struct launch *launch); /* a portable kernel by one of cuda/ that takes the same, where there is one */

/* Notes that so many launches are done, all since the GPU was opened. */
void cuda_note_done(struct gpu *gpu, uint64_t launches);

/* Notes what the launches of a graph write, which is launched next. */
void cuda_note_graph(struct gpu *gpu, const struct launch *launches, size_t count);

/* ── Graphs ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

bnb_status cuda_record(void *gpu, const struct launch *launches, size_t count, void **graph);
bnb_status cuda_replay(void *gpu, void *graph);
void       cuda_forget(void *gpu, void *graph);

/* Where the calling thread's work on a GPU goes: to its stream, or into a graph that the thread captures; and which
 * capture that is, or 0. */
CUstream cuda_stream(const struct gpu *gpu);
uint64_t cuda_capture(const struct gpu *gpu);

/* ── Memory ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

void      *cuda_alloc(void *gpu, size_t bytes);
void      *cuda_alloc_within(struct gpu *gpu, size_t bytes); /* the same between cuda_enter and cuda_leave */
void       cuda_free(void *gpu, void *memory);
void      *cuda_scratch(struct gpu *gpu, size_t bytes); /* for what one kernel leaves for the next; NULL and an error */
void       cuda_leave_scratch(struct gpu *gpu, void *memory);
size_t     cuda_cached(void *gpu);
size_t     cuda_room(void *gpu);
bnb_status cuda_write(void *gpu, void *memory, size_t offset, const void *from, size_t bytes);
bnb_status cuda_read(void *gpu, void *memory, size_t offset, void *to, size_t bytes);
bnb_status cuda_copy(void *gpu, void *to, size_t to_offset, void *from, size_t from_offset, size_t bytes);

/* ── Kernels ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* A kernel compiled for a GPU, a size of threadgroup and a set of constants, or the reason why that failed. */
struct pipeline {
    struct gpu      *gpu;
    uint32_t         constants[MAX_CONSTANTS], constant_count, threads;
    uint32_t         shared_bytes; /* as much as it has asked for */
    CUfunction       function;
    bool             waits; /* for the launch before to be done, before all else */
    char            *failure;
    struct pipeline *next;
};

/* A text of the pack. */
struct kernel {
    const char      *family, *name, *text; /* the first two end at a blank */
    size_t           bytes;
    int              capability; /* that it is compiled for, */
    bool             exactly;    /* and for no other */
    bool             overlaps;   /* begins by what was there before the last launch, and waits for that then */
    struct pipeline *pipelines;
    struct kernel   *next;
    struct profile {
        uint64_t runs;
        double   seconds, bytes;
    } profile;
};

bool             ptx_open(void); /* false where no kernels were handed over, or damaged ones */
bool             ptx_lacks(void);
bnb_status       ptx_take(const void *kernels, size_t bytes);
struct kernel   *ptx_find(const struct gpu *gpu, const char *family, const char *name); /* NULL where there is none */
struct pipeline *ptx_pipeline(struct gpu *gpu, struct kernel *kernel,
                              const struct launch *launch); /* NULL and an error */
char            *ptx_text(const struct kernel *kernel, const struct launch *launch,
                          bool waits); /* as the driver takes it; to be freed, NULL where there is no memory */
void             ptx_profile(void);    /* prints the table of profiles to stderr */

/* ── Profiles ───────────────────────────────────────────────────────────────────────────────────────────────────── */

bool ranges_open(void); /* false and an error where they are asked for and can't be had */
void range_push(const struct launch *launch);
void range_pop(void);

void profile_open(void);
void profile_begin(struct gpu *gpu);
void profile_end(struct gpu *gpu, struct kernel *kernel, size_t bytes_moved);

#endif
