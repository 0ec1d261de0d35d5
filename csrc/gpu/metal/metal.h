/* What the files of the Metal driver share: its state, and the functions of one file that another calls.
 *
 *   metal.c          opening, describing, launching: the driver's table
 *   queue.c          command buffers: batching, waiting, failures, profiles
 *   labels.c         names and captures for Xcode and Instruments
 *   residency.c      what macOS keeps in memory for the GPU
 *   memory.c         buffers and their reuse
 *   pipelines.c      libraries and pipelines, compiled when first used
 *   objc.c           the Objective-C runtime
 *
 * Every function of the driver's table opens with metal_enter and closes with metal_leave: one lock, and an autorelease
 * pool. The others are called in between. */
#ifndef BNB_METAL_H
#define BNB_METAL_H

#include "../../internal.h"
#include "../driver.h"
#include "objc.h"

/* Metal's buffer and where the CPU sees it. Freed memory is kept for reuse, and not touched while work may use it. */
struct memory {
    id             buffer;
    void          *address;
    size_t         bytes;
    uint64_t       used, written;       /* the last batch that binds it, and that writes it */
    uint64_t       read_in, written_in; /* the last phase in which a launch reads it, and writes it */
    bool           lost;                /* a batch that was to write it has failed */
    struct memory *next;                /* in its bin, once freed */
    struct memory *older, *newer;       /* of all there are */
    void (*done)(void *owner);          /* of adopted pages: what their owner waits for; NULL once there is a copy */
    void *owner;
};

/* A kernel made ready for one set of function constants, or the reason why that failed. */
struct pipeline {
    uint32_t         constants[MAX_CONSTANTS], constant_count;
    id               state;
    NSUInteger       threads_max;
    char            *failure;
    struct pipeline *next;
};

/* A function of the embedded text, by its host name. */
struct kernel {
    struct family   *family;
    char            *name;
    struct pipeline *pipelines;
    struct kernel   *next;
    struct profile {
        uint64_t runs;
        double   seconds, bytes;
    } profile;
};

/* Set once, when the device is opened. */
extern struct metal {
    id     device;
    char   name[128];
    int    family;                  /* Apple's number of the GPU's generation: 7 for M1 */
    size_t working_set, buffer_max; /* bytes */
    id     nothing;                 /* a buffer for the places that a kernel has and won't look at */
    bool   serial;    /* BNB_METAL_SERIAL=1: a barrier before every launch, to tell whether one is missing */
    bool   exact;     /* BNB_METAL_EXACT=1: every allocation is a buffer of its own and of its exact size,
                                       so that a validating Metal sees each access past its end */
    bool   labels;    /* BNB_LABELS=1, or BNB_CAPTURE: what Xcode and Instruments show has names */
    bool   profiling; /* BNB_PROFILE=1: a batch holds one operation, whose time is then known */
} metal;

void *metal_enter(void);
void  metal_leave(void *pool);
/* Let other threads in while this one waits for the GPU. */
void metal_lock(void);
void metal_unlock(void);

/* ── Work ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

bool       queue_open(void);
id         queue_encoder(uint64_t *batch); /* of the open batch; NULL and an error */
void       queue_barrier(void); /* what is encoded from now on waits for what was encoded before: a new phase */
uint64_t   queue_phase(void);
void       queue_encoded(struct kernel *kernel, size_t bytes_moved);
void       queue_retire(void);         /* takes note of what is done; never waits */
uint64_t   queue_completed(void);      /* batches up to this one are done */
void       queue_drain(void);          /* waits for everything, and leaves failures to be told */
void       queue_wait(uint64_t batch); /* for it and all before it */
bnb_status queue_wait_all(void);       /* tells of a failed one, once */
bnb_status queue_tell_lost(void);      /* that what is wanted was to be computed by a batch that has failed */
bool       queue_idle(void);

/* ── Memory ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

void      *metal_alloc(void *gpu, size_t bytes);
void      *metal_adopt(void *gpu, void *pages, size_t bytes, void (*done)(void *owner), void *owner);
void       metal_free(void *gpu, void *memory);
void      *metal_host(void *gpu, void *memory);
bnb_status metal_ready(void *gpu, void *memory, enum access access);
bnb_status metal_write(void *gpu, void *memory, size_t offset, const void *from, size_t bytes);
bnb_status metal_read(void *gpu, void *memory, size_t offset, void *to, size_t bytes);
size_t     metal_cached(void *gpu);
size_t     metal_room(void *gpu);
bnb_status memory_own(struct memory *memory); /* before it is written: a copy in the place of adopted pages */
void       memory_lose(uint64_t batch);       /* what this batch or a later one was to write is lost: it has failed */

/* ── Residency ──────────────────────────────────────────────────────────────────────────────────────────────────── */

void residency_open(void);
void residency_add(id buffer);
void residency_remove(id buffer);
void residency_settle(void); /* before a batch is committed */
void residency_attach(id queue);

/* ── Names ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

bool labels_open(void); /* starts the capture too; false and an error where it can't be had */
void label_queue(id queue);
void label_batch(id buffer, id encoder, uint64_t number);
void label_memory(id buffer, size_t bytes, bool adopted);
void label_function(id function, const char *name, const struct pipeline *pipeline);
void label_launch(id encoder, const struct launch *launch);
void label_launch_end(id encoder);

/* ── Kernels ────────────────────────────────────────────────────────────────────────────────────────────────────── */

bool                   kernels_open(void);
struct kernel         *kernels_find(const char *family, const char *kernel); /* NULL where there is none */
const struct pipeline *kernels_pipeline(struct kernel *kernel, const struct launch *launch); /* NULL and an error */
const char            *kernels_origin(void);  /* for people: where the kernels come from */
void                   kernels_profile(void); /* prints the table of profiles to stderr */

#endif
