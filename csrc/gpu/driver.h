/* What a GPU must do for us: a handful of functions. Operations know only this header, never Metal or CUDA.
 *
 * A driver serves one GPU. Its functions may be called from any thread. Work runs in the order in which it was
 * enqueued. */
#ifndef BNB_DRIVER_H
#define BNB_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../bnb.h"

enum { MAX_BINDINGS = 12, MAX_CONSTANTS = 8 };

/* A piece of memory that alloc gave, from `offset` bytes on. */
struct binding {
    void  *memory;
    size_t offset;
};

/* A kernel's run. `family` is the stem of a file in metal/, `kernel` the host name of a function in it. */
struct launch {
    const char    *family, *kernel;
    uint32_t       constants[MAX_CONSTANTS]; /* the kernel's function constants, each a uint, from index 0 */
    uint32_t       constant_count;
    const void    *args; /* a struct of metal/args.h of at most 4096 bytes, bound at buffer 0 */
    size_t         args_bytes;
    struct binding bindings[MAX_BINDINGS]; /* bound from buffer 1 on; NULL memory leaves an index unbound */
    uint32_t       binding_count;
    uint32_t       groups[3];  /* threadgroups in the grid */
    uint32_t       threads;    /* threads in a threadgroup: a multiple of 32 */
    size_t         bytes_moved; /* read and written, for profiles and for deciding when to commit */
};

struct driver {
    /* False where the GPU is absent; bnb_last_error() then says why. Called once, before anything else. */
    bool (*open)(void);
    void (*describe)(char *text, size_t size); /* one line for people */

    void *(*alloc)(size_t bytes);     /* NULL: out of memory, and bnb_last_error() says how much there is */
    void (*free)(void *memory);       /* returns at once; the memory goes after the work that uses it */
    void *(*host)(void *memory);      /* its address where the CPU shares it and may read READ_SLACK past it; or NULL */
    size_t (*cached)(void);           /* bytes that were freed and are kept for reuse */
    bnb_status (*write)(void *memory, size_t offset, const void *from, size_t bytes); /* waits for the memory's work */
    bnb_status (*read)(void *memory, size_t offset, void *to, size_t bytes);          /* waits for the memory's work */

    bnb_status (*launch)(const struct launch *launch); /* enqueues; UNSUPPORTED where the kernel can't be had */
    bool (*idle)(void);       /* never waits, but sends off what launch holds back, so that asking again makes sense */
    bnb_status (*wait)(void); /* DEVICE_LOST, here or in read or write: told once, then the device can be used again */
};

extern const struct driver metal_driver;

#endif
