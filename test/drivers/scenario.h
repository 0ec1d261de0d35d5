/* The frame of both drivers' scenarios, one a run: `scenarios <name>` exits 0 where all that it expects came true.
 *
 * Who includes it defines TESTED, the driver that ships, and open_gpu, and ends in run_named. A program is one unit, so
 * there are functions here. */
#ifndef TEST_SCENARIO_H
#define TEST_SCENARIO_H

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/gpu/driver.h"
#include "../../csrc/internal.h"

/* ── In place of csrc/error.c, csrc/lock.c and csrc/cpu/pool.c ──────────────────────────────────────────────────── */

static _Thread_local bnb_status last_status;
static _Thread_local char       last_error[2048];

bnb_status fail(bnb_status status, const char *sentence, ...) {
    va_list values;
    va_start(values, sentence);
    vsnprintf(last_error, sizeof last_error, sentence, values);
    va_end(values);
    return last_status = status;
}

bnb_status  bnb_last_status(void) { return last_status; }
const char *bnb_last_error(void) { return last_error; }

static pthread_mutex_t locks[LOCKS];

void lock(enum lock which) { pthread_mutex_lock(&locks[which]); }
void unlock(enum lock which) { pthread_mutex_unlock(&locks[which]); }

void parallel_for(size_t count, size_t, void (*body)(const void *job, size_t first, size_t last), const void *job) {
    body(job, 0, count);
}

/* ── The fake, and what is expected ─────────────────────────────────────────────────────────────────────────────── */

static long (*count)(const char *name);
static void (*set)(const char *fault, long value);
static const char *(*report)(void); /* NULL where the fake has none */

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: expected %s; the last error is: %s\n", __FILE__, __LINE__, #condition,             \
                    last_error);                                                                                       \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define CHECK_ERROR(expected_status, part) CHECK(last_status == (expected_status) && strstr(last_error, part))

/* ── Work ───────────────────────────────────────────────────────────────────────────────────────────────────────── */

static const struct driver *driver = &TESTED;
static void                *gpu;

static void open_gpu(void); /* the file's own */

struct small_args {
    uint32_t count;
    float    value;
};

enum { COUNT = 1000, BYTES = COUNT * sizeof(float) };

/* y = x + value of COUNT elements and `beyond`. */
static struct launch adding(void *x, void *y, const struct small_args *args, uint32_t beyond, size_t bytes_moved) {
    return (struct launch){.family = "small",
                           .kernel = "add",
                           .constants = {beyond},
                           .constant_count = 1,
                           .args = args,
                           .args_bytes = sizeof *args,
                           .bindings = {{x, 0, READS, NULL}, {y, 0, WRITES, NULL}},
                           .binding_count = 2,
                           .groups = {(COUNT + beyond + 63) / 64, 1, 1},
                           .threads = 64,
                           .bytes_moved = bytes_moved};
}

/* The same, enqueued. */
static bnb_status add_moving(void *x, void *y, float value, uint32_t beyond, size_t bytes_moved) {
    struct small_args args = {COUNT, value};
    struct launch     launch = adding(x, y, &args, beyond, bytes_moved);
    return driver->launch(gpu, &launch);
}

static bnb_status add(void *x, void *y, float value, uint32_t beyond) {
    return add_moving(x, y, value, beyond, 2 * BYTES);
}

/* y + 1 in its place, from byte 64 on. */
static bnb_status add_at_an_offset(void *y, enum access access) {
    struct small_args args = {COUNT - 16, 1};
    struct launch     launch = adding(y, y, &args, 0, 0);
    launch.bindings[0].offset = launch.bindings[1].offset = 64;
    launch.bindings[1].access = access;
    return driver->launch(gpu, &launch);
}

static void *alloc_ones(void) {
    float ones[COUNT];
    for (size_t i = 0; i < COUNT; i++) ones[i] = 1;
    void *memory = driver->alloc(gpu, BYTES);
    CHECK(memory && driver->write(gpu, memory, 0, ones, BYTES) == BNB_OK);
    return memory;
}

static bool holds(void *memory, float value) {
    float found[COUNT];
    CHECK(driver->read(gpu, memory, 0, found, BYTES) == BNB_OK);
    for (size_t i = 0; i < COUNT; i++)
        if (found[i] != value) return false;
    return true;
}

/* ── Scenarios of every driver ──────────────────────────────────────────────────────────────────────────────────── */

static void describes(void) {
    char line[512];
    open_gpu();
    driver->describe(gpu, line, sizeof line);
    puts(line);
}

static void *work_on_a_thread(void *unused) {
    void *x = alloc_ones();
    for (int i = 0; i < 200; i++) {
        void *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES);
        CHECK(y && z && add_moving(x, y, (float)i, 0, 3000000) == BNB_OK);
        CHECK(add_moving(y, z, 1, 0, 3000000) == BNB_OK);
        driver->free(gpu, y);
        if (i % 7 == 0) CHECK(holds(z, (float)i + 2));
        if (i % 31 == 0) CHECK(driver->wait(gpu) == BNB_OK && holds(z, (float)i + 2));
        driver->idle(gpu);
        driver->free(gpu, z);
    }
    driver->free(gpu, x);
    return unused;
}

static void work_on_two_threads(void) {
    open_gpu();
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) CHECK(!pthread_create(&threads[i], NULL, work_on_a_thread, NULL));
    for (int i = 0; i < 2; i++) CHECK(!pthread_join(threads[i], NULL));
    CHECK(driver->wait(gpu) == BNB_OK && count("runs") == 800 && count("compiles") == 1);
}

/* ── The program ────────────────────────────────────────────────────────────────────────────────────────────────── */

struct scenario {
    const char *name;
    void (*run)(void);
};

#define SCENARIO(name) {#name, name}

static void *exported(void *fake, const char *prefix, const char *name) {
    char symbol[64];
    snprintf(symbol, sizeof symbol, "%s_%s", prefix, name);
    return dlsym(fake, symbol);
}

/* Runs the one that is named, on the fake that the variable says where to find, whose exports begin with `prefix`. */
static int run_named(int argc, char **argv, const struct scenario *scenarios, size_t scenario_count,
                     const char *variable, const char *prefix) {
    const char *path = getenv(variable);
    void       *fake = path ? dlopen(path, RTLD_NOW) : NULL;
    if (fake) {
        *(void **)&count = exported(fake, prefix, "count");
        *(void **)&set = exported(fake, prefix, "set");
        *(void **)&report = exported(fake, prefix, "report");
    }
    for (size_t i = 0; argc == 2 && i < scenario_count; i++) {
        if (strcmp(argv[1], scenarios[i].name)) continue;
        scenarios[i].run();
        if (getenv("QUICK_EXIT")) fflush(stdout), quick_exit(0);
        return 0;
    }
    fprintf(stderr, "usage: scenarios <name>\n");
    return 2;
}

#endif
