/* The memory of handles: kept for handles of the same kind for as long as the process lives, so that a handle that was
 * freed can still be asked for its tag, and is refused. Its address is not given to another at once, for the same
 * reason. A thread that ends frees the last handle that it made, if nobody has: a JavaScript Worker that is terminated
 * between a call and the line that takes its result over would lose that. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { RESTING = 64 };

/* What is left of a freed handle; its tag is that of no kind. */
struct freed {
    enum tag      tag;
    struct freed *next;
};

/* Before each handle: the number that it was given, or 0 once it is being freed. Only one can make it 0. */
struct prefix {
    _Alignas(max_align_t) _Atomic uint64_t serial;
};

static struct prefix *prefix_of(const void *handle) { return (struct prefix *)handle - 1; }

static struct kind {
    enum lock     lock;
    struct freed *oldest, *newest;
    size_t        count;
} tensors = {.lock = LOCK_TENSORS}, codebooks = {.lock = LOCK_CODEBOOKS}, quantized = {.lock = LOCK_QUANTIZED},
  caches = {.lock = LOCK_CACHES}, recordings = {.lock = LOCK_RECORDINGS};

static struct kind *kind_of(enum tag tag) {
    switch (tag) {
    case TAG_TENSOR: return &tensors;
    case TAG_CODEBOOK: return &codebooks;
    case TAG_RECORDING: return &recordings;
    case TAG_CACHE: return &caches;
    default: return &quantized;
    }
}

static void *oldest_of(struct kind *kind) {
    lock(kind->lock);
    struct freed *oldest = kind->count > RESTING ? kind->oldest : NULL;
    if (oldest) kind->oldest = oldest->next, kind->count--;
    unlock(kind->lock);
    return oldest;
}

/* The last handle that this thread has made. All before it belong to somebody: the thread has come back for another. */
static _Thread_local struct pending {
    void    *handle;
    uint64_t serial;
    bool     watched;
} pending;

static pthread_key_t  ending;
static pthread_once_t ending_once = PTHREAD_ONCE_INIT;

static void thread_ends(void *) {
    if (!pending.handle || atomic_load(&prefix_of(pending.handle)->serial) != pending.serial) return;
    if (*(enum tag *)pending.handle == TAG_TENSOR)
        bnb_tensor_free(pending.handle);
    else
        bnb_quantized_free(pending.handle);
}

static void make_key(void) { pthread_key_create(&ending, thread_ends); }

static void watch(void *handle, uint64_t serial) {
    pending.handle = handle, pending.serial = serial;
    if (pending.watched) return;
    pthread_once(&ending_once, make_key);
    pending.watched = pthread_setspecific(ending, &pending) == 0;
}

void *handle_new(enum tag tag, size_t size) {
    static _Atomic uint64_t made;
    void                   *handle = oldest_of(kind_of(tag));
    if (!handle) {
        struct prefix *block = malloc(sizeof *block + size);
        if (!block) return NULL;
        handle = block + 1;
    }
    *(enum tag *)memset(handle, 0, size) = tag;
    uint64_t serial = atomic_fetch_add(&made, 1) + 1;
    atomic_store(&prefix_of(handle)->serial, serial);
    if (tag != TAG_CODEBOOK)
        watch(handle, serial); /* codebooks are shared: one that is made once is nobody's to free */
    return handle;
}

bool handle_claim(const void *handle) { return atomic_exchange(&prefix_of(handle)->serial, 0); }

void handle_free(void *handle) {
    struct freed *freed = handle;
    struct kind  *kind = kind_of(freed->tag);
    *freed = (struct freed){};
    lock(kind->lock);
    if (kind->count++)
        kind->newest->next = freed;
    else
        kind->oldest = freed;
    kind->newest = freed;
    unlock(kind->lock);
}
