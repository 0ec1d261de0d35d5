/* A GPU with memory of its own, whose launches the simulator runs: it holds each launch to what it says of its
 * bindings. */
#include "drivers.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../metal/args.h"
#include "../metal/runtime/simulator.h"

static struct gpu gpus[2] = {{.name = "discrete"}, {.name = "discrete:1"}};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* the simulator runs one launch at a time */

static void *discrete_open(uint32_t index) { return fake_open(gpus, index, "discrete"); }

static void discrete_describe(void *gpu, char *text, size_t size) {
    snprintf(text, size, "%s, a simulated GPU with memory of its own", ((struct gpu *)gpu)->name);
}

/* ── Kernels ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static struct family {
    char           name[64];
    sim_library   *code;
    struct family *next;
} *families;

/* Runs the translator, which prints the path of a library of translated kernels. */
static sim_library *translate(const char *family) {
    static char output[1 << 14];
    const char *mode = getenv("BNB_SIM"), *bun = getenv("BNB_SIM_BUN");
    char        command[4096];
    snprintf(command, sizeof command, "cd '%s' && '%s' test/drivers/family.ts '%s' '%s' 2>&1", SIM_ROOT,
             bun ? bun : "bun", family, mode ? mode : "fast");
    FILE *pipe = popen(command, "r");
    if (!pipe) violation("popen: %s", command);
    size_t length = fread(output, 1, sizeof output - 1, pipe);
    output[length] = 0;
    if (pclose(pipe)) violation("metal/%s.metal: %s", family, output);
    while (length && output[length - 1] == '\n') output[--length] = 0;
    sim_library *code = sim_library_open(output);
    if (!code) violation("%s", sim_errors());
    return code;
}

static sim_library *library_of(const char *name) {
    struct family *family = families;
    while (family && strcmp(family->name, name)) family = family->next;
    if (family) return family->code;
    family = calloc(1, sizeof *family);
    if (!family) violation("the host has no memory left");
    snprintf(family->name, sizeof family->name, "%s", name);
    family->code = translate(name);
    family->next = families;
    families = family;
    return family->code;
}

/* ── Launching ──────────────────────────────────────────────────────────────────────────────────────────────────── */

enum { POISON_LEAST = 8192 }; /* holds whatever a kernel could mean to find, such as a codebook */

/* What a kernel is given for a binding: the memory itself; or something else, which it must leave as it is. */
struct given {
    struct memory *memory;
    void          *copy;
    bool           poison; /* the copy holds 0xFF, for a place that the kernel won't look at */
};

static void give(sim_launch *launch, const sim_kernel *kernel, uint32_t index, struct gpu *gpu,
                 const struct binding *binding, struct given *given) {
    const char *name = sim_kernel_name(kernel);
    if (!(sim_kernel_buffers(kernel) >> index & 1)) {
        if (binding->access & WRITES) violation("%s: buffer %u is said to be written, and there is none", name, index);
        return;
    }
    struct memory *memory = bound(gpu, binding);
    size_t         bytes = memory->bytes - binding->offset;
    bool           constant = sim_kernel_read_only(kernel, index);
    if (binding->access & WRITES && constant)
        violation("%s: buffer %u is said to be written, and the kernel only reads it", name, index);
    *given = (struct given){.memory = memory, .poison = binding->access == UNUSED};
    char *at = (char *)memory->data + binding->offset;
    if (binding->access == WRITES && !binding->offset) memset(at, 0xFF, bytes); /* what was there must not matter */
    if (given->poison || (!constant && binding->access == READS)) {
        if (given->poison && bytes < POISON_LEAST) bytes = POISON_LEAST; /* what is unused may be of any size */
        at = given->copy = sim_allocate(bytes);
        if (!at) violation("the host has no memory left");
        if (!given->poison) memcpy(at, (char *)memory->data + binding->offset, bytes);
    }
    if (sim_launch_buffer(launch, index, at, bytes, binding->access == WRITES ? SIM_BUFFER_FRESH : 0))
        violation("%s", sim_errors());
}

static void take_back(const struct binding *binding, struct given *given, const char *name, uint32_t index) {
    if (!given->copy) return;
    const unsigned char *copy = given->copy, *own = (unsigned char *)given->memory->data + binding->offset;
    for (size_t i = 0; i < given->memory->bytes - binding->offset; i++)
        if (copy[i] != (given->poison ? 0xFF : own[i]))
            violation("%s: byte %zu of buffer %u was written, of which the launch says that it %s", name, i, index,
                      given->poison ? "is unused" : "is only read");
    sim_release(given->copy);
}

static void run_kernel(struct gpu *gpu, const struct launch *launch) {
    sim_library      *code = library_of(launch->family);
    const sim_kernel *kernel = sim_library_kernel(code, launch->kernel);
    if (!kernel) violation("metal/%s.metal has no kernel %s", launch->family, launch->kernel);
    sim_launch  *run = sim_launch_new(kernel);
    struct given given[MAX_BINDINGS] = {};
    if (launch->args_bytes && sim_launch_bytes(run, 0, launch->args, launch->args_bytes)) violation("%s", sim_errors());
    for (uint32_t i = 0; i < launch->binding_count; i++)
        if (launch->bindings[i].memory) give(run, kernel, i + 1, gpu, &launch->bindings[i], &given[i]);
    for (uint32_t i = 0; i < launch->constant_count; i++)
        if (sim_library_constant_bytes(code, i) && sim_launch_constant(run, i, &launch->constants[i], sizeof(uint32_t)))
            violation("%s", sim_errors());
    if (launch->shared_bytes && sim_launch_threadgroup(run, 0, launch->shared_bytes)) violation("%s", sim_errors());
    const char *seed = getenv("BNB_SIM_SEED");
    if (sim_run(run, launch->groups[0], launch->groups[1], launch->groups[2], launch->threads, 1, 1,
                seed ? (uint32_t)atol(seed) : 0, 0))
        violation("%s", sim_errors());
    sim_launch_free(run);
    for (uint32_t i = 0; i < launch->binding_count; i++)
        take_back(&launch->bindings[i], &given[i], launch->kernel, i + 1);
}

static bnb_status discrete_launch(void *gpu, const struct launch *launch) {
    pthread_mutex_lock(&lock);
    bool lost = false;
    for (uint32_t i = 0; i < launch->binding_count; i++)
        if (launch->bindings[i].memory && launch->bindings[i].access & READS)
            lost |= bound(gpu, &launch->bindings[i])->lost;
    bool fails = !lost && strikes(&knobs.fail_launch);
    if (!lost && !fails) run_kernel(gpu, launch);
    for (uint32_t i = 0; i < launch->binding_count && !lost; i++)
        if (launch->bindings[i].memory && launch->bindings[i].access & WRITES)
            bound(gpu, &launch->bindings[i])->lost = fails;
    knobs.launches++;
    knobs.since_read++;
    if (fails) ((struct gpu *)gpu)->untold = true;
    pthread_mutex_unlock(&lock);
    return lost ? tell_lost(gpu) : BNB_OK;
}

/* Products of one row, in a grid of its own: four times the threadgroups, which find nothing left to do. */
static bnb_status discrete_serve(void *gpu, const struct launch *whole) {
    const struct matmul_args *args = whole->args;
    if (strcmp(whole->family, "matmul") || args->m != 1) return BNB_UNSUPPORTED;
    struct launch launch = *whole;
    launch.family = "matmul_vector";
    launch.kernel = "matmul_vector_1";
    launch.constants[5] = 0; /* of the whole product y's dtype; of the kernel, whether bytes are looked up */
    launch.groups[0] = 4 * ((args->n + VECTOR_COLUMNS - 1) / VECTOR_COLUMNS);
    launch.groups[1] = launch.groups[2] = 1;
    launch.threads = VECTOR_THREADS;
    knobs.serves++;
    return discrete_launch(gpu, &launch);
}

/* Crossovers of its own too, so that small matrices come to tiles and splits. */
const struct driver discrete_driver = {
    .kind = "discrete",
    .sizes = {.vectors_most = 4, .tiles_wanted = 16, .split_least = 64},
    .open = discrete_open,
    .describe = discrete_describe,
    .alloc = fake_alloc,
    .free = fake_free,
    .host = fake_host,
    .cached = fake_cached,
    .room = fake_room,
    .ready = fake_ready,
    .write = fake_write,
    .read = fake_read,
    .launch = discrete_launch,
    .serve = discrete_serve,
    .idle = fake_idle,
    .wait = fake_wait,
};
