/* Buffers in memory that the CPU and the GPU share, kept for reuse when they are freed; and pages of files in their
 * place. */
#include "metal.h"

#include <stdlib.h>
#include <string.h>

enum { PAGE = 16384, SMALLEST = 256, BINS = 64 };

static struct {
    struct memory *bins[BINS]; /* freed memory by the logarithm of its size, the last freed first */
    struct memory *newest;     /* of all memory */
    struct memory *leaving;    /* adopted pages that were freed, and that work may still use */
    size_t         active, cached;
} pool;

/* The CPU's forms may read a little past the end, where the last page must go on. */
static size_t capacity_for(size_t bytes) {
    if (metal.exact) return PAGE - 1 - (bytes - 1) % PAGE < READ_SLACK ? bytes + READ_SLACK : bytes;
    bytes += READ_SLACK;
    if (bytes > PAGE / 2) return ceil_div(bytes, PAGE) * PAGE;
    size_t capacity = SMALLEST;
    while (capacity < bytes) capacity *= 2;
    return capacity;
}

static uint32_t bin_of(size_t bytes) { return 63 - (uint32_t)__builtin_clzll(bytes); }

/* The first that is large enough, not wastefully so, and done with. */
static struct memory *reuse(size_t capacity) {
    size_t most = capacity + capacity / 4;
    for (uint32_t bin = bin_of(capacity); bin <= bin_of(most); bin++)
        for (struct memory **at = &pool.bins[bin]; *at; at = &(*at)->next) {
            struct memory *memory = *at;
            if (memory->bytes < capacity || memory->bytes > most || memory->used > queue_completed()) continue;
            *at = memory->next;
            pool.cached -= memory->bytes;
            memory->written = 0;
            memory->lost = false;
            return memory;
        }
    return NULL;
}

static void forget(struct memory *memory) {
    *(memory->newer ? &memory->newer->older : &pool.newest) = memory->older;
    if (memory->older) memory->older->newer = memory->newer;
    free(memory);
}

static void give_back(id buffer) {
    residency_remove(buffer);
    NSObject_release(buffer);
}

/* Lets go of the adopted pages that were freed, where their work is done. */
static void let_go(void) {
    queue_retire();
    for (struct memory **at = &pool.leaving; *at;) {
        struct memory *memory = *at;
        if (memory->used > queue_completed()) {
            at = &memory->next;
            continue;
        }
        *at = memory->next;
        give_back(memory->buffer);
        memory->done(memory->owner);
        forget(memory);
    }
}

/* Gives Metal back all that is kept for reuse, but for what work still uses. */
static void drop_cached(void) {
    for (uint32_t bin = 0; bin < BINS; bin++)
        for (struct memory **at = &pool.bins[bin]; *at;) {
            struct memory *memory = *at;
            if (memory->used > queue_completed()) {
                at = &memory->next;
                continue;
            }
            *at = memory->next;
            pool.cached -= memory->bytes;
            give_back(memory->buffer);
            forget(memory);
        }
}

/* Where there is no room, first the cache is given up, then all work waited for and the cache given up again. */
static id make_room_for(size_t capacity) {
    for (int attempt = 0; attempt < 3; attempt++) {
        if (attempt == 2) queue_drain();
        if (attempt) drop_cached(), let_go();
        if (capacity > metal.working_set || pool.active + pool.cached > metal.working_set - capacity) continue;
        id buffer = MTLDevice_newBufferWithLength_options(metal.device, capacity, MTL_RESOURCE_STORAGE_SHARED);
        if (buffer) return buffer;
    }
    return refuse(BNB_OUT_OF_MEMORY,
                  "%zu bytes can't be had on %s: %zu are in use, and it recommends at most %zu for one process; "
                  "free tensors that are no longer used",
                  capacity, metal.name, pool.active, metal.working_set);
}

/* Takes the buffer over, also where it fails. */
static struct memory *memory_of(id buffer, size_t bytes) {
    struct memory *memory = buffer ? calloc(1, sizeof *memory) : NULL;
    if (!memory) {
        NSObject_release(buffer);
        return buffer ? refuse(BNB_OUT_OF_MEMORY, "the host has no memory left") : NULL;
    }
    memory->bytes = bytes;
    memory->buffer = buffer;
    memory->address = MTLBuffer_contents(buffer);
    residency_add(buffer);
    label_memory(buffer, bytes, false);
    memory->older = pool.newest;
    if (pool.newest) pool.newest->newer = memory;
    return pool.newest = memory;
}

void *metal_alloc(void *, size_t bytes) {
    size_t capacity = capacity_for(bytes ? bytes : 1);
    if (bytes > metal.buffer_max || capacity > metal.buffer_max)
        return refuse(BNB_OUT_OF_MEMORY,
                      "%zu bytes are more than the %zu that one buffer of %s can hold; use smaller tensors", bytes,
                      metal.buffer_max, metal.name);
    void *autorelease = metal_enter();
    queue_retire();
    if (metal.exact) drop_cached();
    struct memory *memory = reuse(capacity);
    if (!memory) memory = memory_of(make_room_for(capacity), capacity);
    if (memory) pool.active += memory->bytes;
    metal_leave(autorelease);
    return memory;
}

static void keep(struct memory *memory) {
    struct memory **bin = &pool.bins[bin_of(memory->bytes)];
    memory->next = *bin;
    *bin = memory;
    pool.cached += memory->bytes;
    if (pool.cached > metal.working_set / 4) {
        queue_retire();
        drop_cached();
    }
}

/* Pages count like memory: the GPU has them mapped, and while they are resident the system can't take them away. */
void *metal_adopt(void *, void *pages, size_t bytes, void (*done)(void *owner), void *owner) {
    void *autorelease = metal_enter();
    let_go();
    bool fits = bytes && bytes <= metal.buffer_max && bytes <= metal.working_set &&
                pool.active + pool.cached <= metal.working_set - bytes;
    id buffer = fits ? MTLDevice_newBufferWithBytesNoCopy_length_options_deallocator(metal.device, pages, bytes,
                                                                                     MTL_RESOURCE_STORAGE_SHARED, NULL)
                     : NULL;
    struct memory *memory = memory_of(buffer, bytes);
    if (memory) {
        memory->done = done, memory->owner = owner;
        label_memory(buffer, bytes, true);
        pool.active += bytes;
    }
    metal_leave(autorelease);
    return memory;
}

/* Whoever holds the memory sees the copy. */
bnb_status memory_own(struct memory *memory) {
    if (!memory->done) return BNB_OK;
    queue_wait(memory->used);
    size_t capacity = capacity_for(memory->bytes);
    id     buffer = make_room_for(capacity);
    if (!buffer) return BNB_OUT_OF_MEMORY;
    memcpy(MTLBuffer_contents(buffer), memory->address, memory->bytes);
    residency_add(buffer);
    label_memory(buffer, capacity, false);
    give_back(memory->buffer);
    memory->done(memory->owner);
    pool.active += capacity - memory->bytes;
    memory->buffer = buffer, memory->address = MTLBuffer_contents(buffer);
    memory->bytes = capacity, memory->done = NULL;
    return BNB_OK;
}

void metal_free(void *, void *freed) {
    struct memory *memory = freed;
    if (!memory) return;
    void *autorelease = metal_enter();
    pool.active -= memory->bytes;
    if (memory->done) {
        memory->next = pool.leaving;
        pool.leaving = memory;
        let_go();
    } else {
        keep(memory);
    }
    metal_leave(autorelease);
}

size_t metal_cached(void *) {
    void  *autorelease = metal_enter();
    size_t bytes = pool.cached;
    metal_leave(autorelease);
    return bytes;
}

/* Of what the system recommends for this process. */
size_t metal_room(void *) {
    void  *autorelease = metal_enter();
    size_t room = pool.active < metal.working_set ? metal.working_set - pool.active : 0;
    metal_leave(autorelease);
    return room;
}

void *metal_host(void *, void *memory) { return ((struct memory *)memory)->address; }

void memory_lose(uint64_t batch) {
    for (struct memory *memory = pool.newest; memory; memory = memory->older)
        if (memory->written >= batch) memory->lost = true;
}

bnb_status metal_ready(void *, void *given, enum access access) {
    struct memory *memory = given;
    void          *autorelease = metal_enter();
    queue_wait(memory->used);
    bnb_status status = access & WRITES ? memory_own(memory) : BNB_OK;
    if (status == BNB_OK && access == WRITES) memory->written = 0, memory->lost = false;
    if (status == BNB_OK && memory->lost) status = queue_tell_lost();
    metal_leave(autorelease);
    return status;
}

bnb_status metal_write(void *gpu, void *memory, size_t offset, const void *from, size_t bytes) {
    bnb_status status = metal_ready(gpu, memory, offset ? UPDATES : WRITES);
    if (status == BNB_OK) memcpy((char *)metal_host(gpu, memory) + offset, from, bytes);
    return status;
}

bnb_status metal_read(void *gpu, void *memory, size_t offset, void *to, size_t bytes) {
    bnb_status status = metal_ready(gpu, memory, READS);
    if (status == BNB_OK) memcpy(to, (const char *)metal_host(gpu, memory) + offset, bytes);
    return status;
}
