/* The memory of handles: kept for handles of the same kind for as long as the process lives, so that a handle that was
 * freed can still be asked for its tag, and is refused. Its address is not given to another at once, for the same reason. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { RESTING = 64 };

/* What is left of a freed handle; its tag is that of no kind. */
struct freed {
    enum tag      tag;
    struct freed *next;
};

static struct kind {
    enum lock     lock;
    struct freed *oldest, *newest;
    size_t        count;
} tensors = {.lock = LOCK_TENSORS}, codebooks = {.lock = LOCK_CODEBOOKS}, quantized = {.lock = LOCK_QUANTIZED}, caches = {.lock = LOCK_CACHES};

static struct kind *kind_of(enum tag tag) {
    switch (tag) {
    case TAG_TENSOR: return &tensors;
    case TAG_CODEBOOK: return &codebooks;
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

void *handle_new(enum tag tag, size_t size) {
    void *handle = oldest_of(kind_of(tag));
    if (!handle) handle = malloc(size);
    if (handle) *(enum tag *)memset(handle, 0, size) = tag;
    return handle;
}

void handle_free(void *handle) {
    struct freed *freed = handle;
    struct kind  *kind = kind_of(freed->tag);
    *freed = (struct freed){};
    lock(kind->lock);
    if (kind->count++) kind->newest->next = freed;
    else kind->oldest = freed;
    kind->newest = freed;
    unlock(kind->lock);
}
