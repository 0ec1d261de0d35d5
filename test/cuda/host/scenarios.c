/* What the CUDA driver must do, one scenario a run. BNB_CUDA_LIBRARY puts the fake libcuda under it, BNB_FAKE_CUDA
 * injects faults. */
#define _GNU_SOURCE
#define TESTED cuda_driver
#include "../../drivers/scenario.h"

/* Not for the formatter, which would put a space into the name. */
/* clang-format off */
static const char pack[] = {
#embed <kernels.ptx>
};
/* clang-format on */

static void open_gpu(void) {
    CHECK(driver->take(pack, sizeof pack) == BNB_OK);
    CHECK((gpu = driver->open(0)));
}

#include "copies.h"

static void takes_kernels_once(void) {
    CHECK(driver->lacks());
    CHECK(!driver->open(0));
    CHECK_ERROR(BNB_UNSUPPORTED, "no kernels for it came with this library");
    CHECK(driver->lacks());
    open_gpu();
    CHECK(!driver->lacks());
    CHECK(driver->take("nonsense", 8) == BNB_OK); /* what is there already is pointed at */
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 1, 0) == BNB_OK && holds(y, 2));
}

/* Cut anywhere, and with a size that says too much. */
static void refuses_damaged_kernels(void) {
    static char text[sizeof pack];
    for (size_t bytes = 1; bytes < sizeof pack; bytes += 97) {
        CHECK(driver->take(pack, bytes) == BNB_INVALID);
        CHECK_ERROR(BNB_INVALID, "are damaged");
        CHECK(!driver->lacks() && !driver->open(0));
        CHECK_ERROR(BNB_UNSUPPORTED, "CUDA is absent: the kernels that came with this library are damaged");
    }
    memcpy(text, pack, sizeof pack);
    *strchr(text, '\n') = '9';
    CHECK(driver->take(text, sizeof text) == BNB_INVALID);
    open_gpu();
}

static void lacks_nothing_without_a_driver(void) {
    CHECK(!driver->lacks());
    CHECK(!driver->open(0));
    puts(last_error);
}

static void opens_the_second(void) {
    char line[512];
    open_gpu();
    void *second = driver->open(1);
    CHECK(second && second != gpu);
    driver->describe(second, line, sizeof line);
    CHECK(strstr(line, "Simulated NVIDIA GPU 1"));
    CHECK(!driver->open(2));
    puts(last_error);
}

static void computes(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 2, 0) == BNB_OK && add(y, z, 4, 0) == BNB_OK);
    CHECK(!driver->idle(gpu) && count("runs") == 0); /* nothing ran yet */
    CHECK(holds(z, 7) && holds(y, 3) && driver->idle(gpu));
    CHECK(count("compiles") == 1 && count("launches") == 2 && !driver->host(gpu, z));

    CHECK(add_at_an_offset(y, WRITES) == BNB_OK);
    float found[17];
    CHECK(driver->read(gpu, y, 0, found, sizeof found) == BNB_OK && found[15] == 3 && found[16] == 4);
    CHECK(driver->read(gpu, y, 64, found, 4) == BNB_OK && found[0] == 4);
    CHECK(driver->write(gpu, y, 4, &(float){9}, 4) == BNB_OK && driver->read(gpu, y, 0, found, 8) == BNB_OK &&
          found[0] == 3 && found[1] == 9);
}

static void polls_until_idle(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    long  waits = count("waits");
    CHECK(add(x, y, 1, 0) == BNB_OK);
    int polls = 0;
    while (!driver->idle(gpu)) CHECK(++polls < 100);
    CHECK(polls > 0 && count("waits") == waits && holds(y, 2));
}

/* Another size of threadgroup, or another constant, is another compilation; the same is none. */
static void compiles_once_for_each_use(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES + 64 * 4);
    for (int i = 0; i < 3; i++) CHECK(add(x, y, 1, 0) == BNB_OK && add(x, y, 1, 64) == BNB_OK);
    CHECK(driver->wait(gpu) == BNB_OK && count("compiles") == 2);
    struct small_args args = {COUNT, 1};
    CHECK(driver->launch(gpu, &(struct launch){.family = "small",
                                               .kernel = "add",
                                               .constants = {0},
                                               .constant_count = 1,
                                               .args = &args,
                                               .args_bytes = sizeof args,
                                               .bindings = {{x, 0, READS, NULL}, {y, 0, WRITES, NULL}},
                                               .binding_count = 2,
                                               .groups = {8, 1, 1},
                                               .threads = 128}) == BNB_OK);
    CHECK(driver->wait(gpu) == BNB_OK && count("compiles") == 3);
}

static void frees_after_the_work(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 1, 0) == BNB_OK && add(y, z, 1, 0) == BNB_OK);
    driver->free(gpu, y); /* the work above still uses it */
    driver->free(gpu, x);
    driver->free(gpu, NULL);
    CHECK(count("live") == 3 && holds(z, 3) && count("live") == 1 && driver->cached(gpu) >= 2 * BYTES);
}

static void refuses_too_much_memory(void) {
    open_gpu();
    void *kept = driver->alloc(gpu, 900000);
    CHECK(kept && !driver->alloc(gpu, 2000000));
    CHECK_ERROR(
        BNB_OUT_OF_MEMORY,
        "2000000 bytes can't be had on Simulated NVIDIA GPU 0: this process has 900000 in use, and of 2000000 in all "
        "1100000 are free");
    driver->free(gpu, kept); /* not done yet, so what comes now waits for it */
    CHECK(driver->alloc(gpu, 1900000));
}

static void survives_a_failed_allocation(void) {
    open_gpu();
    set("fail_alloc", 1); /* it asks again, after it gave back what was kept */
    CHECK(driver->alloc(gpu, BYTES) && count("allocations") == 1);
}

static void passes_on_an_injected_compile_error(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    for (int i = 0; i < 2; i++) {
        CHECK(add(x, y, 1, 0) == BNB_UNSUPPORTED);
        CHECK_ERROR(BNB_UNSUPPORTED, "Simulated NVIDIA GPU 0 can't run add of small: its driver could not compile the "
                                     "kernel: a PTX JIT compilation "
                                     "failed: ptxas injected, line 7");
    }
    CHECK(count("compiles") == 1 && driver->wait(gpu) == BNB_OK);
}

static void passes_on_a_refused_launch(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    set("fail_launch", 1);
    CHECK(add(x, y, 1, 0) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "lacks the registers or the shared memory for 64 threads");
    CHECK(add(x, y, 1, 0) == BNB_OK && holds(y, 2));
}

static void names_ranges(void) {
    passes_on_a_refused_launch();
    CHECK(count("ranges") == 2 && count("open_ranges") == 0);
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
                              .bindings = {{x, 0, READS, NULL}, {x, 0, WRITES, NULL}},
                              .binding_count = 2,
                              .groups = {1, 1, 1},
                              .threads = 32},
                      bad;
    CHECK(driver->launch(gpu, &good) == BNB_OK && driver->wait(gpu) == BNB_OK);
    bad = good, bad.kernel = "subtract";
    CHECK(driver->launch(gpu, &bad) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "no kernel subtract of small");
    bad = good, bad.threads = 2048;
    CHECK(driver->launch(gpu, &bad) == BNB_INVALID);
    bad = good, bad.threads = 33;
    CHECK(driver->launch(gpu, &bad) == BNB_INVALID);
    bad = good, bad.groups[1] = 0;
    CHECK(driver->launch(gpu, &bad) == BNB_INVALID);
    bad = good, bad.groups[1] = 65536;
    CHECK(driver->launch(gpu, &bad) == BNB_UNSUPPORTED);
    bad = good, bad.args_bytes = 5000;
    CHECK(driver->launch(gpu, &bad) == BNB_INVALID);
    bad = good, bad.shared_bytes = 1 << 20;
    CHECK(driver->launch(gpu, &bad) == BNB_UNSUPPORTED);
    CHECK_ERROR(BNB_UNSUPPORTED, "1048576 bytes of shared memory are more than the");
    CHECK(driver->launch(gpu, &good) == BNB_OK && driver->wait(gpu) == BNB_OK &&
          driver->read(gpu, x, 0, &(float){0}, 4) == BNB_OK);
}

/* An illegal address ends the context: all that is asked of it says so, nothing hangs, and the process lives. */
static void says_that_the_context_is_lost(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES);
    set("lose", 2);
    CHECK(add(x, y, 1, 0) == BNB_OK && add(x, z, 1, 0) == BNB_OK && add(x, y, 1, 0) == BNB_OK);
    float found[COUNT];
    CHECK(driver->read(gpu, y, 0, found, BYTES) == BNB_DEVICE_LOST);
    CHECK_ERROR(BNB_DEVICE_LOST, "an illegal memory access was encountered");
    CHECK_ERROR(BNB_DEVICE_LOST, "start the process again");
    for (int i = 0; i < 2; i++) {
        CHECK(driver->read(gpu, x, 0, found, BYTES) == BNB_DEVICE_LOST &&
              driver->write(gpu, x, 0, found, BYTES) == BNB_DEVICE_LOST);
        CHECK(driver->wait(gpu) == BNB_DEVICE_LOST && driver->idle(gpu) && add(x, y, 1, 0) == BNB_DEVICE_LOST);
        last_status = BNB_OK;
        CHECK(!driver->alloc(gpu, 8) && last_status == BNB_DEVICE_LOST && driver->cached(gpu) == 0);
    }
    driver->free(gpu, x);
    driver->free(gpu, y);
    CHECK_ERROR(BNB_DEVICE_LOST, "CUDA ended this process's context on it, and with it all memory there");
}

/* What a kernel does wrong on the simulated device comes back as the device's failure. */
static void tells_what_a_kernel_did(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 1, 100000) == BNB_OK && driver->wait(gpu) == BNB_DEVICE_LOST);
    puts(last_error);
}

static void serves_two_threads(void) {
    work_on_two_threads();
    CHECK(count("live") == 0);
}

/* ── Graphs ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static void fill(void *memory, float value) {
    float values[COUNT];
    for (size_t i = 0; i < COUNT; i++) values[i] = value;
    CHECK(driver->write(gpu, memory, 0, values, BYTES) == BNB_OK);
}

/* z = x + 2 + 4 by way of y, which `launches` and `args` are filled with. */
static void two_steps(void *x, void *y, void *z, struct launch launches[2], struct small_args args[2]) {
    const struct small_args two = {COUNT, 2}, four = {COUNT, 4};
    args[0] = two, args[1] = four;
    launches[0] = adding(x, y, &args[0], 0, 2 * BYTES), launches[1] = adding(y, z, &args[1], 0, 2 * BYTES);
}

/* Nothing runs while it is captured; then all of it by one call, on what memory holds at that time. */
static void runs_a_graph_again(void) {
    open_gpu();
    void             *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES), *graph = NULL;
    struct launch     launches[2];
    struct small_args args[2];
    two_steps(x, y, z, launches, args);
    CHECK(driver->record(gpu, launches, 2, &graph) == BNB_OK && graph);
    CHECK(driver->wait(gpu) == BNB_OK && count("runs") == 0);
    for (int i = 0; i < 3; i++) {
        fill(x, (float)i);
        CHECK(driver->replay(gpu, graph) == BNB_OK && !driver->idle(gpu));
        CHECK(holds(z, (float)i + 6) && count("graphs") == i + 1 && count("runs") == 2 * i + 2);
    }
    CHECK(driver->replay(gpu, graph) == BNB_OK && add(z, x, 1, 0) == BNB_OK && holds(x, 9));
    driver->forget(gpu, graph);
    CHECK(count("live_graphs") == 0 && count("streams") == 1);
}

static void forgets_a_graph_under_way(void) {
    open_gpu();
    void             *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES), *graph = NULL;
    struct launch     launches[2];
    struct small_args args[2];
    two_steps(x, y, z, launches, args);
    CHECK(driver->record(gpu, launches, 2, &graph) == BNB_OK && driver->replay(gpu, graph) == BNB_OK);
    driver->forget(gpu, graph);
    driver->free(gpu, x), driver->free(gpu, y);
    CHECK(holds(z, 7) && count("live_graphs") == 0);
}

static void passes_on_failures_of_graphs(void) {
    open_gpu();
    void             *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES), *graph = NULL;
    struct launch     launches[2];
    struct small_args args[2];
    two_steps(x, y, z, launches, args);
    set("fail_capture", 1);
    CHECK(driver->record(gpu, launches, 2, &graph) == BNB_DEVICE_LOST);
    CHECK_ERROR(BNB_DEVICE_LOST, "the capture of a graph failed on Simulated NVIDIA GPU 0");
    set("fail_instantiate", 1);
    CHECK(driver->record(gpu, launches, 2, &graph) == BNB_OUT_OF_MEMORY);
    CHECK_ERROR(BNB_OUT_OF_MEMORY, "the making of a graph failed on Simulated NVIDIA GPU 0: out of memory");
    set("fail_launch", 2);
    CHECK(driver->record(gpu, launches, 2, &graph) == BNB_UNSUPPORTED);
    launches[1].kernel = "subtract";
    CHECK(driver->record(gpu, launches, 2, &graph) == BNB_UNSUPPORTED && !graph);
    CHECK(count("live_graphs") == 0 && count("streams") == 1 && add(x, y, 1, 0) == BNB_OK && holds(y, 2));
    two_steps(x, y, z, launches, args);
    CHECK(driver->record(gpu, launches, 2, &graph) == BNB_OK);
    set("lose", 1);
    CHECK(driver->replay(gpu, graph) == BNB_OK && driver->wait(gpu) == BNB_DEVICE_LOST);
    CHECK(driver->replay(gpu, graph) == BNB_DEVICE_LOST);
    CHECK(driver->record(gpu, launches, 2, &graph) == BNB_DEVICE_LOST);
    driver->forget(gpu, graph);
}

static void makes_no_graph_while_it_profiles(void) {
    open_gpu();
    void             *x = alloc_ones(), *graph = NULL;
    struct small_args args = {COUNT, 1};
    struct launch     launch = adding(x, x, &args, 0, 2 * BYTES);
    CHECK(driver->record(gpu, &launch, 1, &graph) == BNB_UNSUPPORTED && !graph);
}

/* Work of other threads does not go into a graph. */
static void captures_beside_another_thread(void) {
    open_gpu();
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, work_on_a_thread, NULL));
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES);
    for (int i = 0; i < 100; i++) {
        void             *graph = NULL;
        struct launch     launches[2];
        struct small_args args[2];
        two_steps(x, y, z, launches, args);
        CHECK(driver->record(gpu, launches, 2, &graph) == BNB_OK);
        fill(x, (float)i);
        CHECK(driver->replay(gpu, graph) == BNB_OK && holds(z, (float)i + 6));
        driver->forget(gpu, graph);
    }
    CHECK(!pthread_join(thread, NULL) && driver->wait(gpu) == BNB_OK);
    CHECK(count("runs") == 600 && count("graphs") == 100 && count("live_graphs") == 0);
}

static void absent(void) {
    CHECK(driver->take(pack, sizeof pack) == BNB_OK);
    for (int i = 0; i < 2; i++) {
        last_status = BNB_OK;
        CHECK(!driver->open(0) && last_status == BNB_UNSUPPORTED);
    }
    puts(last_error);
}

static const struct scenario scenarios[] = {
    SCENARIO(describes),
    SCENARIO(takes_kernels_once),
    SCENARIO(refuses_damaged_kernels),
    SCENARIO(lacks_nothing_without_a_driver),
    SCENARIO(opens_the_second),
    SCENARIO(computes),
    SCENARIO(polls_until_idle),
    SCENARIO(compiles_once_for_each_use),
    SCENARIO(frees_after_the_work),
    SCENARIO(refuses_too_much_memory),
    SCENARIO(survives_a_failed_allocation),
    SCENARIO(copies_large_memory),
    SCENARIO(writes_without_a_wait),
    SCENARIO(writes_more_than_is_pinned),
    SCENARIO(copies_within_the_gpu),
    SCENARIO(passes_on_an_injected_compile_error),
    SCENARIO(passes_on_a_refused_launch),
    SCENARIO(names_ranges),
    SCENARIO(refuses_bad_launches),
    SCENARIO(says_that_the_context_is_lost),
    SCENARIO(tells_what_a_kernel_did),
    SCENARIO(serves_two_threads),
    SCENARIO(runs_a_graph_again),
    SCENARIO(forgets_a_graph_under_way),
    SCENARIO(passes_on_failures_of_graphs),
    SCENARIO(makes_no_graph_while_it_profiles),
    SCENARIO(captures_beside_another_thread),
    SCENARIO(absent),
};

int main(int argc, char **argv) {
    return run_named(argc, argv, scenarios, sizeof scenarios / sizeof *scenarios, "BNB_CUDA_LIBRARY", "fake_cuda");
}
