/* What the Metal driver must do, one scenario a run: `scenarios <name>` exits 0 where all that it expects came true.
 *
 * The driver is the one that ships; BNB_METAL_LIBRARY puts the fake Metal under it, BNB_FAKE_METAL injects faults. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../../../csrc/gpu/driver.h"
#include "../../../csrc/internal.h"

/* ── Stand-ins for csrc/error.c and csrc/lock.c, and for the fake's counters
 * ────────────────────────────────────────────────────── */

static _Thread_local bnb_status last_status;
static _Thread_local char       last_error[2048];

bnb_status fail(bnb_status status, const char *sentence, ...) {
    va_list values;
    va_start(values, sentence);
    vsnprintf(last_error, sizeof last_error, sentence, values);
    va_end(values);
    return last_status = status;
}

static pthread_mutex_t locks[LOCKS];

void lock(enum lock which) { pthread_mutex_lock(&locks[which]); }
void unlock(enum lock which) { pthread_mutex_unlock(&locks[which]); }

bnb_status  bnb_last_status(void) { return last_status; }
const char *bnb_last_error(void) { return last_error; }

static long (*count)(const char *name);
static void (*set)(const char *fault, long value);
static const char *(*report)(void);

/* But the one that is bound where a kernel looks at nothing. */
static long buffers_made(void) { return count("buffers") - 1; }
static long buffers_alive(void) { return count("MTLBuffer") - 1; }

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "scenarios.c:%d: expected %s; the last error is: %s\n", __LINE__, #condition, last_error); \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define CHECK_ERROR(expected_status, part) CHECK(last_status == (expected_status) && strstr(last_error, part))

/* ── Work ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

static const struct driver *gpu = &metal_driver;
static void                *one;

struct small_args {
    uint32_t count;
    float    value;
};

enum { COUNT = 1000, BYTES = COUNT * sizeof(float) };

static void open_gpu(void) { CHECK((one = gpu->open(0))); }

/* y = x + value, enqueued. */
static bnb_status add(void *x, void *y, float value, uint32_t beyond, size_t bytes_moved) {
    struct small_args args = {COUNT, value};
    return gpu->launch(one, &(struct launch){
                                .family = "small",
                                .kernel = "add",
                                .constants = {beyond},
                                .constant_count = 1,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bindings = {{x, 0, READS, NULL}, {y, 0, WRITES, NULL}},
                                .binding_count = 2,
                                .groups = {(COUNT + beyond + 63) / 64, 1, 1},
                                .threads = 64,
                                .bytes_moved = bytes_moved,
                            });
}

static void *alloc_ones(void) {
    float ones[COUNT];
    for (size_t i = 0; i < COUNT; i++) ones[i] = 1;
    void *memory = gpu->alloc(one, BYTES);
    CHECK(memory && gpu->write(one, memory, 0, ones, BYTES) == BNB_OK);
    return memory;
}

static bool holds(void *memory, float value) {
    float found[COUNT];
    CHECK(gpu->read(one, memory, 0, found, BYTES) == BNB_OK);
    for (size_t i = 0; i < COUNT; i++)
        if (found[i] != value) return false;
    return true;
}

/* ── Scenarios ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static void describes(void) {
    char line[512];
    open_gpu();
    gpu->describe(one, line, sizeof line);
    puts(line);
}

static void computes(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES), *z = gpu->alloc(one, BYTES);
    CHECK(add(x, y, 2, 0, 0) == BNB_OK && add(y, z, 4, 0, 0) == BNB_OK);
    CHECK(((float *)gpu->host(one, z))[0] != 7); /* nothing ran yet */
    CHECK(!gpu->idle(one));
    CHECK(holds(z, 7) && holds(y, 3) && gpu->idle(one));
    CHECK(count("compiles") == 1 && count("commits") == 1 && count("dispatches") == 2);

    struct small_args args = {COUNT - 16, 1}; /* at an offset, in place */
    CHECK(gpu->launch(one, &(struct launch){.family = "small",
                                            .kernel = "add",
                                            .constants = {0},
                                            .constant_count = 1,
                                            .args = &args,
                                            .args_bytes = sizeof args,
                                            .bindings = {{y, 64, READS, NULL}, {y, 64, UPDATES, NULL}},
                                            .binding_count = 2,
                                            .groups = {16, 1, 1},
                                            .threads = 64}) == BNB_OK);
    float found[17];
    CHECK(gpu->read(one, y, 0, found, sizeof found) == BNB_OK && found[15] == 3 && found[16] == 4);
}

/* Launches run at once until one reads what another writes, or writes what another touches. The fake runs them last
 * things first, so a barrier that was forgotten shows in the numbers. */
static void barriers_follow_from_what_launches_touch(void) {
    open_gpu();
    void *a = alloc_ones(), *b = alloc_ones(), *c = gpu->alloc(one, BYTES), *d = gpu->alloc(one, BYTES);
    CHECK(add(a, c, 1, 0, 0) == BNB_OK && add(b, d, 2, 0, 0) == BNB_OK && count("barriers") == 0);
    CHECK(add(c, b, 4, 0, 0) == BNB_OK && count("barriers") == 1);  /* reads c; and writes b, which was read */
    CHECK(add(d, a, 8, 0, 0) == BNB_OK && count("barriers") == 1);  /* has nothing in common with that one */
    CHECK(add(a, a, 16, 0, 0) == BNB_OK && count("barriers") == 2); /* in place, after it was written */
    CHECK(add(b, d, 32, 0, 0) == BNB_OK && count("barriers") == 2); /* d was read before the barrier */
    CHECK(add(a, d, 64, 0, 0) == BNB_OK && count("barriers") == 3); /* written twice */
    CHECK(holds(c, 2) && holds(b, 6) && holds(a, 27) && holds(d, 91));
}

/* What macOS is asked to keep: all buffers, told of before the work that uses them is sent. */
static void keeps_buffers_resident(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES);
    CHECK(count("residency_requests") == 0);
    CHECK(add(x, y, 1, 0, 0) == BNB_OK && holds(y, 2) && count("residency_requests") == 1);
    CHECK(add(x, y, 2, 0, 0) == BNB_OK && holds(y, 3) && count("residency_requests") == 1); /* nothing is new */
    void *z = gpu->alloc(one, BYTES);
    CHECK(add(y, z, 1, 0, 0) == BNB_OK && holds(z, 4) && count("residency_requests") == 2);
}

static void polls_until_idle(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES);
    CHECK(add(x, y, 1, 0, 0) == BNB_OK);
    int polls = 0;
    while (!gpu->idle(one)) CHECK(++polls < 100);
    CHECK(polls > 0 && count("blocking_waits") == 0 && ((float *)gpu->host(one, y))[COUNT - 1] == 2);
}

static void blocks_when_slow(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES);
    CHECK(add(x, y, 1, 0, 0) == BNB_OK && holds(y, 2));
    CHECK(count("blocking_waits") == 1);
}

static void batches_by_count(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES);
    for (int i = 0; i < 130; i++) CHECK(add(x, y, 1, 0, 1000) == BNB_OK);
    printf("%ld commits\n", count("commits"));
    CHECK(gpu->wait(one) == BNB_OK && count("runs") == 130);
    printf("%ld commits\n", count("commits"));
}

static void batches_by_bytes(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES);
    for (int i = 0; i < 6; i++) CHECK(add(x, y, 1, 0, 20000000) == BNB_OK);
    CHECK(count("commits") == 3);
    CHECK(gpu->wait(one) == BNB_OK && count("commits") == 3); /* there is nothing left to send */
}

static void waits_for_no_later_work(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES), *z = gpu->alloc(one, BYTES);
    CHECK(add(x, y, 1, 0, 100000000) == BNB_OK && add(x, z, 1, 0, 100000000) == BNB_OK);
    CHECK(holds(y, 2) && count("runs") == 1 && holds(z, 2) && count("runs") == 2);
}

/* More batches than the ring holds: the host waits for the oldest instead of running ahead for ever. */
static void bounds_what_is_pending(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES);
    for (int i = 0; i < 100; i++) CHECK(add(i ? y : x, y, 1, 0, 100000000) == BNB_OK);
    CHECK(count("commits") == 100 && count("runs") >= 68);
    CHECK(holds(y, 101) && count("MTLCommandBuffer") == 0);
}

static void reuses_memory_after_its_work(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES), *z;
    CHECK(add(x, y, 1, 0, 0) == BNB_OK);
    CHECK((z = gpu->alloc(one, BYTES)) && add(y, z, 1, 0, 0) == BNB_OK);
    gpu->free(one, y); /* the work above still uses it */
    gpu->free(one, x);
    CHECK(gpu->cached(one) >= 2 * BYTES);
    void *fresh = gpu->alloc(one, BYTES);
    CHECK(fresh && fresh != x && fresh != y && buffers_made() == 4);
    CHECK(holds(z, 3));
    void *again = gpu->alloc(one, BYTES), *other = gpu->alloc(one, BYTES);
    CHECK((again == x || again == y) && (other == x || other == y) && again != other && buffers_made() == 4);
    CHECK(gpu->cached(one) == 0);
    void *small = gpu->alloc(one, 8); /* of another size, so not out of what is kept */
    gpu->free(one, again);
    CHECK(small && buffers_made() == 5 && gpu->alloc(one, BYTES / 4) && buffers_made() == 6);
}

static int  given_back;
static void give_pages_back(void *pages) {
    CHECK(!munmap(pages, 1 << 16));
    given_back++;
}

/* Ones that nobody may write. */
static void *pages_of_ones(void) {
    float *pages = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED);
    for (size_t i = 0; i < COUNT; i++) pages[i] = 1;
    CHECK(!mprotect(pages, 1 << 16, PROT_READ));
    return pages;
}

static void adopts_pages(void) {
    open_gpu();
    void *pages = pages_of_ones(), *x = gpu->adopt(one, pages, 1 << 16, give_pages_back, pages);
    CHECK(x && gpu->host(one, x) == pages && buffers_made() == 0 && count("adopted") == 1);
    void *y = gpu->alloc(one, BYTES);
    CHECK(add(x, y, 2, 0, 0) == BNB_OK);
    gpu->free(one, x); /* the work has yet to run */
    CHECK(!given_back && holds(y, 3));
    gpu->adopt(one, NULL, 0, give_pages_back, NULL); /* what is done with goes at the next occasion */
    CHECK(given_back == 1);

    /* Written, by the GPU and by the processor, it is memory like any other, and the pages are what they were. */
    for (int by_gpu = 0; by_gpu < 2; by_gpu++) {
        pages = pages_of_ones();
        x = gpu->adopt(one, pages, 1 << 16, give_pages_back, pages);
        if (by_gpu)
            CHECK(add(x, y, 2, 0, 0) == BNB_OK && add(y, x, 4, 0, 0) == BNB_OK);
        else
            CHECK(gpu->ready(one, x, UPDATES) == BNB_OK && (((float *)gpu->host(one, x))[0] = 1));
        CHECK(gpu->host(one, x) != pages && holds(x, by_gpu ? 7 : 1));
        CHECK(given_back == 2 + by_gpu);
        gpu->free(one, x);
    }
    set("fail_adopt", 1);
    pages = pages_of_ones();
    CHECK(!gpu->adopt(one, pages, 1 << 16, give_pages_back, pages));
    give_pages_back(pages);
}

/* What the forms of csrc/cpu/ may do when they stand in for a kernel. */
static void lets_the_cpu_read_past_the_end(void) {
    open_gpu();
    for (size_t bytes = 16384 - 2 * READ_SLACK; bytes <= 16384 + READ_SLACK; bytes += 4) {
        void                *memory = gpu->alloc(one, bytes);
        const volatile char *end = (const char *)gpu->host(one, memory) + bytes;
        for (size_t i = 0; i < READ_SLACK; i++) (void)end[i];
    }
}

static void gives_exact_buffers(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES);
    CHECK(add(x, y, 1, 0, 0) == BNB_OK && holds(y, 2));
    gpu->free(one, x);
    CHECK(gpu->alloc(one, BYTES) && buffers_made() == 3 && buffers_alive() == 2 && gpu->cached(one) == 0);
    CHECK(add(y, y, 1, 1, 0) == BNB_OK && gpu->wait(one) == BNB_DEVICE_LOST); /* a float past the end */
    CHECK(strstr(last_error, "add"));
}

static void refuses_too_much_memory(void) {
    open_gpu();
    CHECK(!gpu->alloc(one, 2000000));
    CHECK_ERROR(BNB_OUT_OF_MEMORY, "2000000 bytes are more than the 1000000 that one buffer of Simulated");
    void *kept[3] = {gpu->alloc(one, 900000), gpu->alloc(one, 900000), gpu->alloc(one, 900000)};
    CHECK(kept[0] && kept[1] && !kept[2]);
    CHECK_ERROR(BNB_OUT_OF_MEMORY, "901120 bytes can't be had on Simulated Apple GPU: 1802240 are in use, and it "
                                   "recommends at most 2000000");
    gpu->free(one, kept[0]);
    CHECK(gpu->alloc(one, 500000)); /* another size: what was kept for reuse is given back for it */
}

/* Memory that work still uses can be had too, by waiting for the work. */
static void waits_for_memory(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, 900000), *z = gpu->alloc(one, 900000);
    CHECK(y && z && add(x, y, 1, 0, 0) == BNB_OK && add(x, z, 1, 0, 0) == BNB_OK);
    gpu->free(one, y);
    gpu->free(one, z);
    CHECK(count("runs") == 0 && gpu->alloc(one, 1000000) && count("runs") == 2);
}

static void survives_a_failed_allocation(void) {
    open_gpu();
    set("fail_alloc", 1); /* it asks again, after it gave back what it kept */
    CHECK(gpu->alloc(one, BYTES) && buffers_made() == 1);
}

static void passes_on_compile_errors(void) {
    open_gpu();
    void         *y = gpu->alloc(one, BYTES);
    struct launch broken = {.family = "broken",
                            .kernel = "broken",
                            .bindings = {{y, 0, WRITES, NULL}},
                            .binding_count = 1,
                            .groups = {1, 1, 1},
                            .threads = 32};
    for (int i = 0; i < 3; i++) {
        if (i == 2) broken.kernel = "whole"; /* of the same library */
        CHECK(gpu->launch(one, &broken) == BNB_UNSUPPORTED);
        CHECK_ERROR(BNB_UNSUPPORTED, "metal/broken.metal:3: use of undeclared identifier 'undeclared_name'");
    }
    CHECK(count("compiles") == 1); /* not tried again */
    void *x = alloc_ones();
    CHECK(add(x, y, 1, 0, 0) == BNB_OK && holds(y, 2));
}

static void passes_on_an_injected_compile_error(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES);
    CHECK(add(x, y, 1, 0, 0) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "could not compile the kernel add of metal/small.metal: metal/injected.metal:7:1");
    CHECK(gpu->wait(one) == BNB_OK);
}

static void refuses_greedy_kernels(void) {
    open_gpu();
    void             *y = gpu->alloc(one, BYTES);
    struct small_args args = {1, 1};
    struct launch     launch = {.family = "small",
                                .kernel = "greedy",
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bindings = {{y, 0, WRITES, NULL}},
                                .binding_count = 1,
                                .groups = {1, 1, 1},
                                .threads = 32};
    CHECK(gpu->launch(one, &launch) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "36000) exceeds the maximum threadgroup memory allowed (32768)");
}

/* A kernel gets the threads that it declares; of one that declares none a GPU may leave it few. */
static void refuses_more_threads_than_a_kernel_can_have(void) {
    open_gpu();
    void             *y = gpu->alloc(one, BYTES);
    struct small_args args = {1, 1};
    struct launch     launch = {.family = "small",
                                .kernel = "undeclared",
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bindings = {{y, 0, WRITES, NULL}},
                                .binding_count = 1,
                                .groups = {1, 1, 1},
                                .threads = 512};
    CHECK(gpu->launch(one, &launch) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "512 threads in a group are more than the 384");
    launch.threads = 384;
    CHECK(gpu->launch(one, &launch) == BNB_OK && gpu->wait(one) == BNB_OK);
}

static void refuses_bad_launches(void) {
    open_gpu();
    void             *x = alloc_ones();
    struct small_args args = {1, 1};
    struct launch     good = {.family = "small",
                              .kernel = "add",
                              .constants = {0},
                              .constant_count = 1,
                              .args = &args,
                              .args_bytes = sizeof args,
                              .bindings = {{x, 0, READS, NULL}, {x, 0, UPDATES, NULL}},
                              .binding_count = 2,
                              .groups = {1, 1, 1},
                              .threads = 32},
                      bad;
    CHECK(gpu->launch(one, &good) == BNB_OK && gpu->wait(one) == BNB_OK);
    bad = good, bad.kernel = "subtract";
    CHECK(gpu->launch(one, &bad) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "metal/small.metal has no kernel subtract");
    bad = good, bad.threads = 2048;
    CHECK(gpu->launch(one, &bad) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "2048 threads in a group are more than the 1024");
    bad = good, bad.threads = 33;
    CHECK(gpu->launch(one, &bad) == BNB_INVALID);
    bad = good, bad.groups[1] = 0;
    CHECK(gpu->launch(one, &bad) == BNB_INVALID);
    bad = good, bad.args_bytes = 5000;
    CHECK(gpu->launch(one, &bad) == BNB_INVALID);
    CHECK(gpu->launch(one, &good) == BNB_OK && gpu->wait(one) == BNB_OK &&
          gpu->read(one, x, 0, &(float){0}, 4) == BNB_OK);
}

/* The second of three batches fails. */
static void tells_once_that_work_was_lost(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES);
    set("fail_commit", 2);
    for (int i = 0; i < 3; i++) CHECK(add(x, y, 1, 0, 100000000) == BNB_OK);
    float found[COUNT];
    CHECK(gpu->read(one, y, 0, found, BYTES) == BNB_DEVICE_LOST);
    CHECK_ERROR(BNB_DEVICE_LOST, "Caused GPU Timeout Error");
    CHECK(!strstr(last_error, "Ignored"));
    CHECK(gpu->wait(one) == BNB_OK);
    CHECK(add(x, y, 5, 0, 0) == BNB_OK && holds(y, 6) &&
          count("MTLCommandQueue") == 1); /* a new one, and the old is gone */

    set("fail_commit", 1);
    CHECK(add(x, y, 1, 0, 100000000) == BNB_OK);
    CHECK(add(x, y, 1, 0, 0) == BNB_OK);                              /* on the queue that has failed */
    CHECK(gpu->read(one, x, 0, found, 4) == BNB_OK && found[0] == 1); /* which it only reads */
    CHECK(gpu->wait(one) == BNB_DEVICE_LOST && gpu->wait(one) == BNB_OK);
    set("fail_queue", 1); /* even a new queue is refused: the next work says so, and the one after that may get one */
    CHECK(add(x, y, 1, 0, 0) == BNB_OK && gpu->wait(one) == BNB_DEVICE_LOST);
    CHECK_ERROR(BNB_DEVICE_LOST, "Ignored");
    CHECK(add(x, y, 7, 0, 0) == BNB_OK && holds(y, 8));
}

/* The results of a batch that fails are marked, until they are written anew. */
static void marks_what_was_lost(void) {
    open_gpu();
    void *x = alloc_ones(), *before = gpu->alloc(one, BYTES), *y = gpu->alloc(one, BYTES), *z = gpu->alloc(one, BYTES);
    CHECK(add(x, before, 1, 0, 100000000) == BNB_OK);
    set("fail_commit", 1);
    CHECK(add(x, y, 1, 0, 100000000) == BNB_OK && gpu->wait(one) == BNB_DEVICE_LOST && gpu->wait(one) == BNB_OK);
    float found[COUNT];
    for (int i = 0; i < 2; i++) { /* now and for ever */
        CHECK(gpu->read(one, y, 0, found, BYTES) == BNB_DEVICE_LOST);
        CHECK_ERROR(BNB_DEVICE_LOST, "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout). "
                                     "What it was to compute is lost");
    }
    CHECK(gpu->ready(one, y, READS) == BNB_DEVICE_LOST && gpu->ready(one, y, UPDATES) == BNB_DEVICE_LOST);
    CHECK(add(y, z, 1, 0, 0) == BNB_DEVICE_LOST); /* nothing is computed of it */
    CHECK(holds(before, 2) && holds(x, 1) && gpu->wait(one) == BNB_OK);
    CHECK(add(x, y, 2, 0, 0) == BNB_OK && holds(y, 3)); /* anew by a kernel */

    set("fail_commit", 1);
    CHECK(add(x, y, 1, 0, 100000000) == BNB_OK && gpu->wait(one) == BNB_DEVICE_LOST);
    CHECK(gpu->write(one, y, 0, (float[COUNT]){4}, BYTES) == BNB_OK && gpu->read(one, y, 0, found, 4) == BNB_OK &&
          found[0] == 4);
    set("fail_commit", 1);
    CHECK(add(x, y, 1, 0, 100000000) == BNB_OK && gpu->wait(one) == BNB_DEVICE_LOST);
    gpu->free(one, y); /* what gets its memory has nothing to do with it */
    void *fresh = gpu->alloc(one, BYTES);
    CHECK(fresh == y && gpu->read(one, fresh, 0, found, BYTES) == BNB_OK);
}

/* Threadgroup memory whose size the host decides. */
static void gives_threadgroup_memory(void) {
    open_gpu();
    void             *y = gpu->alloc(one, BYTES);
    struct small_args args = {64, 3};
    struct launch     launch = {.family = "small",
                                .kernel = "shared",
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bindings = {{y, 0, WRITES, NULL}},
                                .binding_count = 1,
                                .groups = {1, 1, 1},
                                .threads = 64,
                                .shared_bytes = 64 * sizeof(float)};
    float             found[64];
    CHECK(gpu->launch(one, &launch) == BNB_OK && gpu->read(one, y, 0, found, sizeof found) == BNB_OK &&
          found[0] == 66 && found[63] == 3);
    launch.shared_bytes = 40;
    CHECK(gpu->launch(one, &launch) == BNB_INVALID);
}

/* What a kernel does wrong on the simulated device comes back as the device's failure. */
static void tells_what_a_kernel_did(void) {
    open_gpu();
    void *x = alloc_ones(), *y = gpu->alloc(one, BYTES);
    CHECK(add(x, y, 1, 100000, 0) == BNB_OK && gpu->wait(one) == BNB_DEVICE_LOST);
    CHECK_ERROR(BNB_DEVICE_LOST, "add");
    puts(last_error);
    CHECK(add(x, y, 1, 0, 0) == BNB_OK && holds(y, 2));
}

static void *work_on_a_thread(void *unused) {
    void *x = alloc_ones();
    for (int i = 0; i < 200; i++) {
        void *y = gpu->alloc(one, BYTES), *z = gpu->alloc(one, BYTES);
        CHECK(y && z && add(x, y, (float)i, 0, 3000000) == BNB_OK && add(y, z, 1, 0, 3000000) == BNB_OK);
        gpu->free(one, y);
        if (i % 7 == 0) CHECK(holds(z, (float)i + 2));
        if (i % 31 == 0) CHECK(gpu->wait(one) == BNB_OK && holds(z, (float)i + 2));
        gpu->idle(one);
        gpu->free(one, z);
    }
    gpu->free(one, x);
    return unused;
}

static void serves_two_threads(void) {
    open_gpu();
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) CHECK(!pthread_create(&threads[i], NULL, work_on_a_thread, NULL));
    for (int i = 0; i < 2; i++) CHECK(!pthread_join(threads[i], NULL));
    CHECK(gpu->wait(one) == BNB_OK && count("runs") == 800 && buffers_made() < 200 && count("compiles") == 1);
}

/* Open devices are not closed; all else comes to an end. */
static void leaks_nothing(void) {
    open_gpu();
    work_on_a_thread(NULL);
    CHECK(gpu->wait(one) == BNB_OK && count("MTLCommandBuffer") == 0 && count("MTLComputeCommandEncoder") == 0);
    CHECK(count("MTLLibrary") == 1 && count("MTLComputePipelineState") == 1 && count("MTLCommandQueue") == 1);
    CHECK(!report());
}

static void absent(void) {
    CHECK(!gpu->open(0) && last_status == BNB_UNSUPPORTED);
    puts(last_error);
}

static const struct {
    const char *name;
    void (*run)(void);
} scenarios[] = {
#define SCENARIO(name) {#name, name}
    SCENARIO(describes),
    SCENARIO(computes),
    SCENARIO(barriers_follow_from_what_launches_touch),
    SCENARIO(keeps_buffers_resident),
    SCENARIO(polls_until_idle),
    SCENARIO(blocks_when_slow),
    SCENARIO(batches_by_count),
    SCENARIO(batches_by_bytes),
    SCENARIO(waits_for_no_later_work),
    SCENARIO(bounds_what_is_pending),
    SCENARIO(reuses_memory_after_its_work),
    SCENARIO(adopts_pages),
    SCENARIO(lets_the_cpu_read_past_the_end),
    SCENARIO(gives_exact_buffers),
    SCENARIO(refuses_too_much_memory),
    SCENARIO(waits_for_memory),
    SCENARIO(survives_a_failed_allocation),
    SCENARIO(passes_on_compile_errors),
    SCENARIO(passes_on_an_injected_compile_error),
    SCENARIO(refuses_greedy_kernels),
    SCENARIO(refuses_more_threads_than_a_kernel_can_have),
    SCENARIO(refuses_bad_launches),
    SCENARIO(tells_once_that_work_was_lost),
    SCENARIO(marks_what_was_lost),
    SCENARIO(gives_threadgroup_memory),
    SCENARIO(tells_what_a_kernel_did),
    SCENARIO(serves_two_threads),
    SCENARIO(leaks_nothing),
    SCENARIO(absent),
};

int main(int argc, char **argv) {
    const char *path = getenv("BNB_METAL_LIBRARY");
    void       *fake = path ? dlopen(path, RTLD_NOW) : NULL;
    if (fake) {
        *(void **)&count = dlsym(fake, "fake_metal_count");
        *(void **)&set = dlsym(fake, "fake_metal_set");
        *(void **)&report = dlsym(fake, "fake_metal_report");
    }
    for (size_t i = 0; argc == 2 && i < sizeof scenarios / sizeof *scenarios; i++) {
        if (strcmp(argv[1], scenarios[i].name)) continue;
        scenarios[i].run();
        if (getenv("QUICK_EXIT")) fflush(stdout), quick_exit(0);
        return 0;
    }
    fprintf(stderr, "usage: scenarios <name>\n");
    return 2;
}
