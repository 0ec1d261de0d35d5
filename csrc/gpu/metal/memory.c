/* Buffers in memory that the CPU and the GPU share, kept for reuse when they are freed. */
#include "metal.h"

#include <stdlib.h>
#include <string.h>

enum { PAGE = 16384, SMALLEST = 256, BINS = 64 };

static struct {
    struct memory *bins[BINS]; /* freed memory by the logarithm of its size, the last freed first */
    struct memory *newest;     /* of all memory */
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
            residency_remove(memory->buffer);
            NSObject_release(memory->buffer);
            forget(memory);
        }
}

/* Where there is no room, first the cache is given up, then all work waited for and the cache given up again. */
static id make_room_for(size_t capacity) {
    for (int attempt = 0; attempt < 3; attempt++) {
        if (attempt == 2) queue_drain();
        if (attempt) drop_cached();
        if (capacity > metal.working_set || pool.active + pool.cached > metal.working_set - capacity) continue;
        id buffer = MTLDevice_newBufferWithLength_options(metal.device, capacity, MTL_RESOURCE_STORAGE_SHARED);
        if (buffer) return buffer;
    }
    return refuse(BNB_OUT_OF_MEMORY,
                  "%zu bytes can't be had on %s: %zu are in use, and it recommends at most %zu for one process; "
                  "free tensors that are no longer used",
                  capacity, metal.name, pool.active, metal.working_set);
}

static struct memory *create(size_t capacity) {
    struct memory *memory = calloc(1, sizeof *memory);
    if (!memory) return refuse(BNB_OUT_OF_MEMORY, "the host has no memory left");
    memory->bytes = capacity;
    memory->buffer = make_room_for(capacity);
    if (!memory->buffer) {
        free(memory);
        return NULL;
    }
    memory->address = MTLBuffer_contents(memory->buffer);
    residency_add(memory->buffer);
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
    if (!memory) memory = create(capacity);
    if (memory) pool.active += memory->bytes;
    metal_leave(autorelease);
    return memory;
}

void metal_free(void *, void *freed) {
    struct memory *memory = freed;
    if (!memory) return;
    void           *autorelease = metal_enter();
    struct memory **bin = &pool.bins[bin_of(memory->bytes)];
    memory->next = *bin;
    *bin = memory;
    pool.active -= memory->bytes;
    pool.cached += memory->bytes;
    if (pool.cached > metal.working_set / 4) {
        queue_retire();
        drop_cached();
    }
    metal_leave(autorelease);
}

size_t metal_cached(void *) {
    void  *autorelease = metal_enter();
    size_t bytes = pool.cached;
    metal_leave(autorelease);
    return bytes;
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
    if (access == WRITES) memory->written = 0, memory->lost = false;
    bnb_status status = memory->lost ? queue_tell_lost() : BNB_OK;
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
