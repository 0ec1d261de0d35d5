/* What the two test drivers share: memory that the CPU can't address, of two GPUs of a kind, and marks of what was
 * lost. */
#ifndef TEST_DRIVERS_H
#define TEST_DRIVERS_H

#include "../../csrc/gpu/driver.h"

#define EXPORT __attribute__((visibility("default")))

/* Prints the rule that was broken, and aborts. */
[[noreturn]] void violation(const char *sentence, ...) __attribute__((format(printf, 1, 2)));

/* The library's own, which it hands over when it loads the drivers. */
extern bnb_status (*fail)(bnb_status status, const char *sentence, ...) __attribute__((format(printf, 2, 3)));

struct gpu {
    const char *name;
    size_t      used;         /* bytes */
    bool        open, untold; /* a launch has failed, and nobody has been told yet */
};

struct memory {
    struct gpu *gpu;
    void       *data;
    size_t      bytes;
    bool        lost, freed;
};

/* What tests set and read by name: see fake_drivers_set. */
extern struct knobs {
    long fail_launch;                     /* the nth launch from now on fails, as a GPU's do: after it was enqueued */
    long fail_alloc;                      /* the nth allocation from now on is refused */
    long launches, serves, reads, writes; /* so far */
    long read_bytes;                      /* so far */
    long since_read;                      /* launches since the last read */
    long room;                            /* bytes that each GPU has; 0: no end of them */
} knobs;

/* The functions of a driver but for describe and launch. */
void      *fake_open(struct gpu gpus[2], uint32_t index, const char *kind);
void      *fake_alloc(void *gpu, size_t bytes);
void       fake_free(void *gpu, void *memory);
void      *fake_host(void *gpu, void *memory);
size_t     fake_cached(void *gpu);
size_t     fake_room(void *gpu);
bnb_status fake_ready(void *gpu, void *memory, enum access access);
bnb_status fake_write(void *gpu, void *memory, size_t offset, const void *from, size_t bytes);
bnb_status fake_read(void *gpu, void *memory, size_t offset, void *to, size_t bytes);
bool       fake_idle(void *gpu);
bnb_status fake_wait(void *gpu);

/* The memory of a binding, which must be alive and this GPU's. */
struct memory *bound(struct gpu *gpu, const struct binding *binding);
bnb_status     tell_lost(struct gpu *gpu);
bool           strikes(long *countdown);

extern const struct driver null_driver, discrete_driver;

#endif
