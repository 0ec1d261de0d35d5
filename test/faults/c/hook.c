/* The allocator of the library under test: counts what is alive, refuses what is huge, fails once where it is told, and
 * puts all against pages that can't be touched where it is told that. */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include <malloc.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HOOK __attribute__((visibility("default")))

HOOK void   *hook_malloc(size_t bytes);
HOOK void   *hook_malloc_kept(size_t bytes);
HOOK void   *hook_calloc(size_t count, size_t size);
HOOK void   *hook_aligned_alloc(size_t alignment, size_t bytes);
HOOK void    hook_free(void *memory);
HOOK char   *hook_strdup(const char *text);
HOOK int64_t hook_live(void);
HOOK void    hook_fail_at(int64_t nth);
HOOK int64_t hook_to_come(void);
HOOK void    hook_guard(_Bool guards);

/* No test needs more, at once or in all; a machine that overcommits would give terabytes, and die of their use. */
static const size_t bytes_max = (size_t)8 << 20, held_max = (size_t)1 << 30;

static _Atomic int64_t live, to_come = -1;
static _Atomic size_t  held; /* bytes that are not freed yet */

/* Allocations that are not freed yet, without the memory of handles. */
int64_t hook_live(void) { return live; }

/* Fails the nth allocation from now on, counted from 0, once; none where nth is negative. */
void hook_fail_at(int64_t nth) { to_come = nth; }

/* How many are still to come before the one that fails; negative once it has failed. */
int64_t hook_to_come(void) { return to_come; }

static int refuses(size_t bytes) {
    int64_t before = to_come;
    while (before >= 0 && !atomic_compare_exchange_weak(&to_come, &before, before - 1)) {}
    return bytes > bytes_max || held > held_max || before == 0;
}

/* ── Pages that can't be touched ────────────────────────────────────────────────────────────────────────────────── */

enum { PAGE = 4096 };

/* From its first call on, which comes before any other use of the library, memory ends where a page without rights
 * begins, and a page without rights lies before it. */
static _Bool guards;
void         hook_guard(_Bool on) { guards = on; }

/* A page with the length, one without rights, the memory, which begins in its first page, and one without rights. */
static void *guarded(size_t alignment, size_t bytes) {
    size_t   inside = bytes ? (bytes + PAGE - 1) / PAGE * PAGE : PAGE, whole = inside + 3 * PAGE;
    uint8_t *pages = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return NULL;
    held += whole;
    memcpy(pages, &whole, sizeof whole);
    mprotect(pages + PAGE, PAGE, PROT_NONE);
    mprotect(pages + 2 * PAGE + inside, PAGE, PROT_NONE);
    if (alignment > PAGE) alignment = PAGE; /* huge pages are about speed */
    size_t after = bytes ? (bytes + alignment - 1) / alignment * alignment : alignment;
    return pages + 2 * PAGE + inside - after;
}

static void guarded_free(void *memory) {
    uint8_t *pages = (uint8_t *)((uintptr_t)memory / PAGE * PAGE) - 2 * PAGE;
    size_t   whole;
    memcpy(&whole, pages, sizeof whole);
    held -= whole;
    munmap(pages, whole);
}

static void *take(size_t alignment, size_t bytes) {
    if (guards) return guarded(alignment, bytes);
    void *memory = alignment > 16 ? aligned_alloc(alignment, bytes) : malloc(bytes);
    if (memory) held += malloc_usable_size(memory);
    return memory;
}

static void give_back(void *memory) {
    if (guards && memory) return guarded_free(memory);
    if (memory) held -= malloc_usable_size(memory);
    free(memory);
}

/* ── Counting ───────────────────────────────────────────────────────────────────────────────────────────────────── */

/* New memory is full of NaN, so that what is read before it is written shows. */
static void *counted(void *memory, size_t bytes) {
    if (!memory) return NULL;
    live++;
    return memset(memory, 0xff, bytes);
}

void *hook_malloc(size_t bytes) { return refuses(bytes) ? NULL : counted(take(16, bytes), bytes); }

void *hook_malloc_kept(size_t bytes) { return refuses(bytes) ? NULL : take(16, bytes); }

void *hook_calloc(size_t count, size_t size) {
    if (size && count > SIZE_MAX / size) return NULL;
    if (refuses(count * size)) return NULL;
    void *memory = take(16, count * size);
    if (!memory) return NULL;
    live++;
    return memset(memory, 0, count * size);
}

void *hook_aligned_alloc(size_t alignment, size_t bytes) {
    return refuses(bytes) ? NULL : counted(take(alignment, bytes), bytes);
}

char *hook_strdup(const char *text) {
    size_t bytes = strlen(text) + 1;
    char  *copy = hook_malloc(bytes);
    return copy ? memcpy(copy, text, bytes) : NULL;
}

void hook_free(void *memory) {
    if (memory) live--;
    give_back(memory);
}

/* By these names the linker finds them where objects were compiled without hook.h: ld --wrap=malloc. */
void *__wrap_malloc(size_t bytes) { return hook_malloc(bytes); }
void *__wrap_aligned_alloc(size_t alignment, size_t bytes) { return hook_aligned_alloc(alignment, bytes); }
void  __wrap_free(void *memory) { hook_free(memory); }
