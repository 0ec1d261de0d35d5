/* The allocator of the library under test: counts what is alive, refuses what is huge, and fails once where it is told. */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HOOK __attribute__((visibility("default")))

HOOK void *hook_malloc(size_t bytes);
HOOK void *hook_malloc_kept(size_t bytes);
HOOK void *hook_calloc(size_t count, size_t size);
HOOK void *hook_aligned_alloc(size_t alignment, size_t bytes);
HOOK void  hook_free(void *memory);
HOOK int64_t hook_live(void);
HOOK void    hook_fail_at(int64_t nth);
HOOK int64_t hook_to_come(void);

/* No test needs more at once; a machine that overcommits would give terabytes, and die of their use. */
static const size_t bytes_max = (size_t)8 << 20;

static _Atomic int64_t live, to_come = -1;

/* Allocations that are not freed yet, without the memory of handles. */
int64_t hook_live(void) { return live; }

/* Fails the nth allocation from now on, counted from 0, once; none where nth is negative. */
void hook_fail_at(int64_t nth) { to_come = nth; }

/* How many are still to come before the one that fails; negative once it has failed. */
int64_t hook_to_come(void) { return to_come; }

static int refuses(size_t bytes) {
    int64_t before = to_come;
    while (before >= 0 && !atomic_compare_exchange_weak(&to_come, &before, before - 1)) {}
    return bytes > bytes_max || before == 0;
}

/* New memory is full of NaN, so that what is read before it is written shows. */
static void *counted(void *memory, size_t bytes) {
    if (!memory) return NULL;
    live++;
    return memset(memory, 0xff, bytes);
}

void *hook_malloc(size_t bytes) { return refuses(bytes) ? NULL : counted(malloc(bytes), bytes); }

void *hook_malloc_kept(size_t bytes) { return refuses(bytes) ? NULL : malloc(bytes); }

void *hook_calloc(size_t count, size_t size) {
    if (size && count > SIZE_MAX / size) return NULL;
    if (refuses(count * size)) return NULL;
    void *memory = calloc(count, size);
    if (memory) live++;
    return memory;
}

void *hook_aligned_alloc(size_t alignment, size_t bytes) {
    return refuses(bytes) ? NULL : counted(aligned_alloc(alignment, bytes), bytes);
}

void hook_free(void *memory) {
    if (memory) live--;
    free(memory);
}
