/* What the Metal driver must do, one scenario a run. BNB_METAL_LIBRARY puts the fake Metal under it, BNB_FAKE_METAL
 * injects faults. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <sys/mman.h>

#define TESTED metal_driver
#include "../../drivers/scenario.h"

static void open_gpu(void) { CHECK((gpu = driver->open(0))); }

/* But the one that is bound where a kernel looks at nothing. */
static long buffers_made(void) { return count("buffers") - 1; }
static long buffers_alive(void) { return count("MTLBuffer") - 1; }

#include "memory-inl.h"

static void computes(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 2, 0) == BNB_OK && add(y, z, 4, 0) == BNB_OK);
    CHECK(((float *)driver->host(gpu, z))[0] != 7); /* nothing ran yet */
    CHECK(!driver->idle(gpu));
    CHECK(holds(z, 7) && holds(y, 3) && driver->idle(gpu));
    CHECK(count("compiles") == 1 && count("commits") == 1 && count("dispatches") == 2);

    CHECK(add_at_an_offset(y, UPDATES) == BNB_OK);
    float found[17];
    CHECK(driver->read(gpu, y, 0, found, sizeof found) == BNB_OK && found[15] == 3 && found[16] == 4);
}

/* Launches run at once until one reads what another writes, or writes what another touches. The fake runs them last
 * things first, so a barrier that was forgotten shows in the numbers. */
static void barriers_follow_from_what_launches_touch(void) {
    open_gpu();
    void *a = alloc_ones(), *b = alloc_ones(), *c = driver->alloc(gpu, BYTES), *d = driver->alloc(gpu, BYTES);
    CHECK(add(a, c, 1, 0) == BNB_OK && add(b, d, 2, 0) == BNB_OK && count("barriers") == 0);
    CHECK(add(c, b, 4, 0) == BNB_OK && count("barriers") == 1);  /* reads c; and writes b, which was read */
    CHECK(add(d, a, 8, 0) == BNB_OK && count("barriers") == 1);  /* has nothing in common with that one */
    CHECK(add(a, a, 16, 0) == BNB_OK && count("barriers") == 2); /* in place, after it was written */
    CHECK(add(b, d, 32, 0) == BNB_OK && count("barriers") == 2); /* d was read before the barrier */
    CHECK(add(a, d, 64, 0) == BNB_OK && count("barriers") == 3); /* written twice */
    CHECK(holds(c, 2) && holds(b, 6) && holds(a, 27) && holds(d, 91));
}

/* What macOS is asked to keep: all buffers, told of before the work that uses them is sent. */
static void keeps_buffers_resident(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    CHECK(count("residency_requests") == 0);
    CHECK(add(x, y, 1, 0) == BNB_OK && holds(y, 2) && count("residency_requests") == 1);
    CHECK(add(x, y, 2, 0) == BNB_OK && holds(y, 3) && count("residency_requests") == 1); /* nothing is new */
    void *z = driver->alloc(gpu, BYTES);
    CHECK(add(y, z, 1, 0) == BNB_OK && holds(z, 4) && count("residency_requests") == 2);
}

static void polls_until_idle(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 1, 0) == BNB_OK);
    int polls = 0;
    while (!driver->idle(gpu)) CHECK(++polls < 100);
    CHECK(polls > 0 && count("blocking_waits") == 0 && ((float *)driver->host(gpu, y))[COUNT - 1] == 2);
}

static void blocks_when_slow(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 1, 0) == BNB_OK && holds(y, 2));
    CHECK(count("blocking_waits") == 1);
}

static void batches_by_count(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    for (int i = 0; i < 130; i++) CHECK(add_moving(x, y, 1, 0, 1000) == BNB_OK);
    printf("%ld commits\n", count("commits"));
    CHECK(driver->wait(gpu) == BNB_OK && count("runs") == 130);
    printf("%ld commits\n", count("commits"));
}

static void batches_by_bytes(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    for (int i = 0; i < 6; i++) CHECK(add_moving(x, y, 1, 0, 20000000) == BNB_OK);
    CHECK(count("commits") == 3);
    CHECK(driver->wait(gpu) == BNB_OK && count("commits") == 3); /* there is nothing left to send */
}

static void waits_for_no_later_work(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES);
    CHECK(add_moving(x, y, 1, 0, 100000000) == BNB_OK && add_moving(x, z, 1, 0, 100000000) == BNB_OK);
    CHECK(holds(y, 2) && count("runs") == 1 && holds(z, 2) && count("runs") == 2);
}

/* More batches than the ring holds: the host waits for the oldest instead of running ahead for ever. */
static void bounds_what_is_pending(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    for (int i = 0; i < 100; i++) CHECK(add_moving(i ? y : x, y, 1, 0, 100000000) == BNB_OK);
    CHECK(count("commits") == 100 && count("runs") >= 68);
    CHECK(holds(y, 101) && count("MTLCommandBuffer") == 0);
}

static void passes_on_compile_errors(void) {
    open_gpu();
    void         *y = driver->alloc(gpu, BYTES);
    struct launch broken = {.family = "broken",
                            .kernel = "broken",
                            .bindings = {{y, 0, WRITES, NULL}},
                            .binding_count = 1,
                            .groups = {1, 1, 1},
                            .threads = 32};
    for (int i = 0; i < 3; i++) {
        if (i == 2) broken.kernel = "whole"; /* of the same library */
        CHECK(driver->launch(gpu, &broken) == BNB_UNSUPPORTED);
        CHECK_ERROR(BNB_UNSUPPORTED, "metal/broken.metal:3: use of undeclared identifier 'undeclared_name'");
    }
    CHECK(count("compiles") == 1); /* not tried again */
    void *x = alloc_ones();
    CHECK(add(x, y, 1, 0) == BNB_OK && holds(y, 2));
}

static void passes_on_an_injected_compile_error(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 1, 0) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "could not compile the kernel add of metal/small.metal: metal/injected.metal:7:1");
    CHECK(driver->wait(gpu) == BNB_OK);
}

static void refuses_greedy_kernels(void) {
    open_gpu();
    void             *y = driver->alloc(gpu, BYTES);
    struct small_args args = {1, 1};
    struct launch     launch = {.family = "small",
                                .kernel = "greedy",
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bindings = {{y, 0, WRITES, NULL}},
                                .binding_count = 1,
                                .groups = {1, 1, 1},
                                .threads = 32};
    CHECK(driver->launch(gpu, &launch) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "36000) exceeds the maximum threadgroup memory allowed (32768)");
}

/* A kernel gets the threads that it declares; of one that declares none a GPU may leave it few. */
static void refuses_more_threads_than_a_kernel_can_have(void) {
    open_gpu();
    void             *y = driver->alloc(gpu, BYTES);
    struct small_args args = {1, 1};
    struct launch     launch = {.family = "small",
                                .kernel = "undeclared",
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bindings = {{y, 0, WRITES, NULL}},
                                .binding_count = 1,
                                .groups = {1, 1, 1},
                                .threads = 512};
    CHECK(driver->launch(gpu, &launch) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "512 threads in a group are more than the 384");
    launch.threads = 384;
    CHECK(driver->launch(gpu, &launch) == BNB_OK && driver->wait(gpu) == BNB_OK);
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
    CHECK(driver->launch(gpu, &good) == BNB_OK && driver->wait(gpu) == BNB_OK);
    bad = good, bad.kernel = "subtract";
    CHECK(driver->launch(gpu, &bad) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "metal/small.metal has no kernel subtract");
    bad = good, bad.threads = 2048;
    CHECK(driver->launch(gpu, &bad) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "2048 threads in a group are more than the 1024");
    bad = good, bad.threads = 33;
    CHECK(driver->launch(gpu, &bad) == BNB_INVALID);
    bad = good, bad.groups[1] = 0;
    CHECK(driver->launch(gpu, &bad) == BNB_INVALID);
    bad = good, bad.args_bytes = 5000;
    CHECK(driver->launch(gpu, &bad) == BNB_INVALID);
    CHECK(driver->launch(gpu, &good) == BNB_OK && driver->wait(gpu) == BNB_OK &&
          driver->read(gpu, x, 0, &(float){0}, 4) == BNB_OK);
}

/* The second of three batches fails. */
static void tells_once_that_work_was_lost(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    set("fail_commit", 2);
    for (int i = 0; i < 3; i++) CHECK(add_moving(x, y, 1, 0, 100000000) == BNB_OK);
    float found[COUNT];
    CHECK(driver->read(gpu, y, 0, found, BYTES) == BNB_DEVICE_LOST);
    CHECK_ERROR(BNB_DEVICE_LOST, "Caused GPU Timeout Error");
    CHECK(!strstr(last_error, "Ignored"));
    CHECK(driver->wait(gpu) == BNB_OK);
    CHECK(add(x, y, 5, 0) == BNB_OK && holds(y, 6) &&
          count("MTLCommandQueue") == 1); /* a new one, and the old is gone */

    set("fail_commit", 1);
    CHECK(add_moving(x, y, 1, 0, 100000000) == BNB_OK);
    CHECK(add(x, y, 1, 0) == BNB_OK);                                    /* on the queue that has failed */
    CHECK(driver->read(gpu, x, 0, found, 4) == BNB_OK && found[0] == 1); /* which it only reads */
    CHECK(driver->wait(gpu) == BNB_DEVICE_LOST && driver->wait(gpu) == BNB_OK);
    set("fail_queue", 1); /* even a new queue is refused: the next work says so, and the one after that may get one */
    CHECK(add(x, y, 1, 0) == BNB_OK && driver->wait(gpu) == BNB_DEVICE_LOST);
    CHECK_ERROR(BNB_DEVICE_LOST, "Ignored");
    CHECK(add(x, y, 7, 0) == BNB_OK && holds(y, 8));
}

/* The results of a batch that fails are marked, until they are written anew. */
static void marks_what_was_lost(void) {
    open_gpu();
    void *x = alloc_ones(), *before = driver->alloc(gpu, BYTES), *y = driver->alloc(gpu, BYTES),
         *z = driver->alloc(gpu, BYTES);
    CHECK(add_moving(x, before, 1, 0, 100000000) == BNB_OK);
    set("fail_commit", 1);
    CHECK(add_moving(x, y, 1, 0, 100000000) == BNB_OK && driver->wait(gpu) == BNB_DEVICE_LOST &&
          driver->wait(gpu) == BNB_OK);
    float found[COUNT];
    for (int i = 0; i < 2; i++) { /* now and for ever */
        CHECK(driver->read(gpu, y, 0, found, BYTES) == BNB_DEVICE_LOST);
        CHECK_ERROR(BNB_DEVICE_LOST, "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout). "
                                     "What it was to compute is lost");
    }
    CHECK(driver->ready(gpu, y, READS) == BNB_DEVICE_LOST && driver->ready(gpu, y, UPDATES) == BNB_DEVICE_LOST);
    CHECK(add(y, z, 1, 0) == BNB_DEVICE_LOST); /* nothing is computed of it */
    CHECK(holds(before, 2) && holds(x, 1) && driver->wait(gpu) == BNB_OK);
    CHECK(add(x, y, 2, 0) == BNB_OK && holds(y, 3)); /* anew by a kernel */

    set("fail_commit", 1);
    CHECK(add_moving(x, y, 1, 0, 100000000) == BNB_OK && driver->wait(gpu) == BNB_DEVICE_LOST);
    CHECK(driver->write(gpu, y, 0, (float[COUNT]){4}, BYTES) == BNB_OK && driver->read(gpu, y, 0, found, 4) == BNB_OK &&
          found[0] == 4);
    set("fail_commit", 1);
    CHECK(add_moving(x, y, 1, 0, 100000000) == BNB_OK && driver->wait(gpu) == BNB_DEVICE_LOST);
    driver->free(gpu, y); /* what gets its memory has nothing to do with it */
    void *fresh = driver->alloc(gpu, BYTES);
    CHECK(fresh == y && driver->read(gpu, fresh, 0, found, BYTES) == BNB_OK);
}

/* Threadgroup memory whose size the host decides. */
static void gives_threadgroup_memory(void) {
    open_gpu();
    void             *y = driver->alloc(gpu, BYTES);
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
    CHECK(driver->launch(gpu, &launch) == BNB_OK && driver->read(gpu, y, 0, found, sizeof found) == BNB_OK &&
          found[0] == 66 && found[63] == 3);
    launch.shared_bytes = 40;
    CHECK(driver->launch(gpu, &launch) == BNB_INVALID);
}

/* What a kernel does wrong on the simulated device comes back as the device's failure. */
static void tells_what_a_kernel_did(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 1, 100000) == BNB_OK && driver->wait(gpu) == BNB_DEVICE_LOST);
    CHECK_ERROR(BNB_DEVICE_LOST, "add");
    puts(last_error);
    CHECK(add(x, y, 1, 0) == BNB_OK && holds(y, 2));
}

static void serves_two_threads(void) {
    work_on_two_threads();
    CHECK(buffers_made() < 200);
}

/* Open devices are not closed; all else comes to an end. */
static void leaks_nothing(void) {
    open_gpu();
    work_on_a_thread(NULL);
    CHECK(driver->wait(gpu) == BNB_OK && count("MTLCommandBuffer") == 0 && count("MTLComputeCommandEncoder") == 0);
    CHECK(count("MTLLibrary") == 1 && count("MTLComputePipelineState") == 1 && count("MTLCommandQueue") == 1);
    CHECK(!report());
}

static void absent(void) {
    CHECK(!driver->open(0) && last_status == BNB_UNSUPPORTED);
    puts(last_error);
}

static const struct scenario scenarios[] = {
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
    return run_named(argc, argv, scenarios, sizeof scenarios / sizeof *scenarios, "BNB_METAL_LIBRARY", "fake_metal");
}
