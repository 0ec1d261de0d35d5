/* Memory that only the driver's own functions reach, marks of what was lost, and the knobs that tests turn. */
#include "drivers.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../metal/runtime/simulator.h"

bnb_status (*fail)(bnb_status status, const char *sentence, ...);
struct knobs knobs;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void violation(const char *sentence, ...) {
    va_list values;
    va_start(values, sentence);
    fputs("test driver: ", stderr);
    vfprintf(stderr, sentence, values);
    fputc('\n', stderr);
    va_end(values);
    abort();
}

bool strikes(long *countdown) { return *countdown > 0 && !--*countdown; }

/* The drivers, as csrc/device.c asks for them. */
EXPORT const struct driver *const *bnb_drivers(bnb_status (*given)(bnb_status, const char *, ...)) {
    static const struct driver *const drivers[] = {&null_driver, &discrete_driver, NULL};
    fail = given;
    return drivers;
}

static long *knob(const char *name) {
    struct {
        const char *name;
        long       *at;
    } named[] = {{"fail_launch", &knobs.fail_launch}, {"fail_alloc", &knobs.fail_alloc}, {"launches", &knobs.launches},
                 {"serves", &knobs.serves},           {"reads", &knobs.reads},           {"writes", &knobs.writes},
                 {"read_bytes", &knobs.read_bytes},   {"since_read", &knobs.since_read}, {"room", &knobs.room}};
    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        if (!strcmp(name, named[i].name)) return named[i].at;
    violation("there is no knob %s", name);
}

EXPORT void fake_drivers_set(const char *name, int value) { *knob(name) = value; }
EXPORT int  fake_drivers_get(const char *name) { return (int)*knob(name); }

/* ── Devices ────────────────────────────────────────────────────────────────────────────────────────────────────── */

void *fake_open(struct gpu gpus[2], uint32_t index, const char *kind) {
    if (index > 1)
        return fail(BNB_UNSUPPORTED, "%s:%u is absent: there are two; use \"%s\" or \"%s:1\"", kind, index, kind, kind),
               NULL;
    if (gpus[index].open) violation("%s was opened twice", gpus[index].name);
    gpus[index].open = true;
    return &gpus[index];
}

bool fake_idle(void *) { return true; }

bnb_status tell_lost(struct gpu *gpu) {
    gpu->untold = false;
    return fail(BNB_DEVICE_LOST,
                "%s failed at work that was enqueued before: this fault was asked for. What it was to compute is lost",
                gpu->name);
}

bnb_status fake_wait(void *gpu) { return ((struct gpu *)gpu)->untold ? tell_lost(gpu) : BNB_OK; }

/* ── Memory ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static struct memory *own(struct gpu *gpu, void *given) {
    struct memory *memory = given;
    if (!memory || memory->freed) violation("memory was used after it was freed");
    if (memory->gpu != gpu) violation("memory of %s was given to %s", memory->gpu->name, gpu->name);
    return memory;
}

struct memory *bound(struct gpu *gpu, const struct binding *binding) {
    struct memory *memory = own(gpu, binding->memory);
    if (binding->offset >= memory->bytes) violation("a binding at byte %zu of %zu", binding->offset, memory->bytes);
    return memory;
}

/* Filled with 0xFF, between guard pages. */
void *fake_alloc(void *gpu, size_t bytes) {
    struct gpu    *of = gpu;
    bool           fits = !knobs.room || of->used + bytes <= (size_t)knobs.room;
    struct memory *memory = strikes(&knobs.fail_alloc) || !fits ? NULL : calloc(1, sizeof *memory);
    if (memory) *memory = (struct memory){.gpu = gpu, .data = sim_allocate(bytes), .bytes = bytes};
    if (memory && memory->data) return of->used += bytes, memory;
    free(memory);
    return fail(BNB_OUT_OF_MEMORY, "%zu bytes can't be had on %s: free tensors that are no longer used", bytes,
                of->name),
           NULL;
}

/* The header stays, so that a use after this is noticed. */
void fake_free(void *gpu, void *given) {
    struct memory *memory = own(gpu, given);
    sim_release(memory->data);
    memory->freed = true;
    memory->gpu->used -= memory->bytes;
}

void  *fake_host(void *gpu, void *memory) { return own(gpu, memory), NULL; }
size_t fake_cached(void *) { return 0; }

size_t fake_room(void *gpu) {
    const struct gpu *of = gpu;
    return knobs.room ? (size_t)knobs.room - of->used : (size_t)1 << 40;
}

bnb_status fake_ready(void *gpu, void *given, enum access access) {
    struct memory *memory = own(gpu, given);
    if (access == WRITES) memory->lost = false;
    return memory->lost ? tell_lost(gpu) : BNB_OK;
}

static bool lies_within(const struct memory *memory, size_t offset, size_t bytes) {
    return offset <= memory->bytes && bytes <= memory->bytes - offset;
}

bnb_status fake_write(void *gpu, void *given, size_t offset, const void *from, size_t bytes) {
    struct memory *memory = own(gpu, given);
    if (!lies_within(memory, offset, bytes))
        violation("a write of %zu bytes at %zu of %zu", bytes, offset, memory->bytes);
    pthread_mutex_lock(&lock);
    knobs.writes++;
    memcpy((char *)memory->data + offset, from, bytes);
    pthread_mutex_unlock(&lock);
    if (!offset) memory->lost = false;
    return memory->lost ? tell_lost(gpu) : BNB_OK;
}

bnb_status fake_read(void *gpu, void *given, size_t offset, void *to, size_t bytes) {
    struct memory *memory = own(gpu, given);
    if (!lies_within(memory, offset, bytes))
        violation("a read of %zu bytes at %zu of %zu", bytes, offset, memory->bytes);
    if (memory->lost) return tell_lost(gpu);
    pthread_mutex_lock(&lock);
    knobs.reads++;
    knobs.read_bytes += (long)bytes;
    knobs.since_read = 0;
    memcpy(to, (char *)memory->data + offset, bytes);
    pthread_mutex_unlock(&lock);
    return BNB_OK;
}
