/* What a GPU must do for us: a handful of functions. Operations know only this header, never Metal or CUDA.
 *
 * A driver serves one kind of GPU, of which a machine may hold several: `gpu` is the one that open gave. Its functions
 * may be called from any thread. Work of one GPU runs as if in the order in which it was enqueued: launches may overlap
 * where neither writes what the other reads or writes. */
#ifndef BNB_DRIVER_H
#define BNB_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../bnb.h"

enum { MAX_BINDINGS = 16, MAX_CONSTANTS = 10 };

/* What a launch does with a piece of memory. What it WRITES and does not read, it writes whole; a place that a kernel
 * has but won't look at is UNUSED, and may hold anything. */
enum access { UNUSED = 0, READS = 1, WRITES = 2, UPDATES = READS | WRITES };

/* A piece of memory that alloc gave, from `offset` bytes on. */
struct binding {
    void       *memory;
    size_t      offset;
    enum access access;
    const void *owner; /* the buffer that it is of, for whoever records the launch; nothing to a driver */
};

/* A kernel's run. `family` is the stem of a file in metal/, `kernel` the host name of a function in it. */
struct launch {
    const char    *family, *kernel;
    uint32_t       constants[MAX_CONSTANTS]; /* the kernel's function constants, each a uint, from index 0 */
    uint32_t       constant_count;
    const void    *args; /* a struct of metal/args.h of at most 4096 bytes, bound at buffer 0 */
    size_t         args_bytes;
    struct binding bindings[MAX_BINDINGS]; /* bound from buffer 1 on; NULL memory is UNUSED */
    uint32_t       binding_count;
    uint32_t       groups[3]; /* threadgroups in the grid */
    uint32_t       threads;   /* threads in a threadgroup: a multiple of 32 */
    uint32_t shared_bytes;    /* of threadgroup memory that the kernel takes as [[threadgroup(0)]]; a multiple of 16 */
    bnb_precision precision;  /* of a whole product: what it may be off by; portable kernels are as exact as any asks */
    size_t        bytes_moved; /* read and written, for profiles and for deciding when to commit */
};

/* Where the portable products of metal/ change from one kernel to the next on a GPU: enum bnb_size names them in this
 * order. */
struct sizes {
    uint32_t vectors_most; /* rows of x up to which kernels that read w once for up to 8 are ahead of tiles */
    uint32_t skinny_most;  /* and up to which tiles of 16 rows are ahead of larger ones */
    uint32_t
        wide_vectors; /* one row of x meets 8 rows of w a simdgroup, and not 4: 0 never, 1 where x is f32, 2 always */
    uint32_t byte_table;   /* whether 4-bit codes are looked up by two */
    uint32_t tiles_wanted; /* tiles that fill the GPU: with fewer, tiles are small and the sum is split, */
    uint32_t split_least;  /* though not below this many products */
};

struct driver {
    const char  *kind; /* as BNB_DEVICE names it */
    struct sizes sizes;

    /* The GPU of that place, counted from 0; NULL where it is absent, and bnb_last_error() says why. Once for each. */
    void *(*open)(uint32_t index);

    /* Kernels that are no part of the library, which has a build for each processor: whether this kind is here and
     * waits for them, and taking them, of which it keeps a copy. INVALID where they are damaged. Both may be NULL. */
    bool (*lacks)(void);
    bnb_status (*take)(const void *kernels, size_t bytes);

    void (*describe)(void *gpu, char *text, size_t size); /* one line for people */
    void (*choose)(void *gpu, struct sizes *sizes);       /* what is otherwise for this very GPU; may be NULL */

    void *(*alloc)(void *gpu, size_t bytes); /* NULL: out of memory, and bnb_last_error() says how much there is */
    void (*free)(void *gpu, void *memory);   /* returns at once; the memory goes after the work that uses it */
    /* Whole pages of one mapping of the host's, to be read only, as memory: what is to write it gets a copy in their
     * place, so `host` is asked for after `ready`. Calls done(owner) once nothing uses the pages any more: at the
     * latest when the memory is freed and its work is done. NULL, and no failure, where the GPU can't. May be NULL. */
    void *(*adopt)(void *gpu, void *pages, size_t bytes, void (*done)(void *owner), void *owner);
    void *(*host)(void *gpu,
                  void *memory); /* its address where the CPU shares it and may read READ_SLACK past it; or NULL */
    size_t (*cached)(void *gpu); /* bytes that were freed and are kept for reuse */
    size_t (*room)(void *gpu);   /* bytes that alloc can still give, about */

    /* Waits for the memory's work, so that the CPU may access it so. DEVICE_LOST where it is to be read and work that
     * was to write it has failed: the sentence says so. Whoever WRITES makes it good again. */
    bnb_status (*ready)(void *gpu, void *memory, enum access access);
    /* The same, and copies; or copies later, in the order of the work: `from` is the caller's again in either case. */
    bnb_status (*write)(void *gpu, void *memory, size_t offset, const void *from, size_t bytes);
    bnb_status (*read)(void *gpu, void *memory, size_t offset, void *to, size_t bytes); /* the same, and copies */
    /* Enqueues a copy from other memory of the GPU's, or of zeros where `from` is NULL. May be NULL: then the host does
     * it. */
    bnb_status (*copy)(void *gpu, void *to, size_t to_offset, void *from, size_t from_offset, size_t bytes);

    /* Enqueues; UNSUPPORTED where the kernel can't be had, DEVICE_LOST where what it reads was lost. */
    bnb_status (*launch)(void *gpu, const struct launch *launch);
    /* The same for a whole operation, in kernels and grids of the driver's own; UNSUPPORTED where it has none for the
     * case:
     * then the portable kernels are launched. Only the family, its arguments and its bindings are looked at. May be
     * NULL. */
    bnb_status (*serve)(void *gpu, const struct launch *whole);

    /* Launches that will be enqueued again and again in this order, as one thing: a graph, or a list that is prepared.
     * They, their arguments and their memory stay as they are until it is forgotten; kernel NULL stands for what serve
     * served. UNSUPPORTED: it is left to launch and serve. All three may be NULL. */
    bnb_status (*record)(void *gpu, const struct launch *launches, size_t count, void **graph);
    bnb_status (*replay)(void *gpu, void *graph);
    void (*forget)(void *gpu, void *graph);

    bool (*idle)(void *gpu); /* never waits, but sends off what launch holds back, so that asking again makes sense */
    bnb_status (*wait)(void *gpu); /* DEVICE_LOST where work has failed since the last time: told once */
};

extern const struct driver metal_driver, cuda_driver;

#endif
