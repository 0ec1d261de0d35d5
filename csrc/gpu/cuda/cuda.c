/* CUDA through NVIDIA's driver, in plain C: opens GPUs and enqueues kernels, each GPU's on one stream. */
#define _GNU_SOURCE
#include "cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool cuda_profiling;

static struct gpu gpus[GPUS_MOST];

/* ── Failures ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static bnb_status tell_lost(const struct gpu *gpu) {
    return fail(BNB_DEVICE_LOST,
                "%s failed at work that was enqueued before: %s. CUDA ended this process's context on it, and with it "
                "all memory "
                "there: start the process again",
                gpu->name, gpu->lost);
}

/* After these a context takes no more calls. */
static bool ends_the_context(CUresult result) {
    return result == CUDA_ERROR_ILLEGAL_ADDRESS || result == CUDA_ERROR_LAUNCH_TIMEOUT ||
           result == CUDA_ERROR_CONTEXT_IS_DESTROYED || result == CUDA_ERROR_ASSERT ||
           (result >= CUDA_ERROR_HARDWARE_STACK && result <= CUDA_ERROR_LAUNCH_FAILED) || result == CUDA_ERROR_UNKNOWN;
}

bnb_status cuda_failed(struct gpu *gpu, CUresult result, const char *what) {
    if (ends_the_context(result)) {
        if (!*gpu->lost) snprintf(gpu->lost, sizeof gpu->lost, "%s", libcuda_error(result));
        return tell_lost(gpu);
    }
    bnb_status status = result == CUDA_ERROR_OUT_OF_MEMORY ? BNB_OUT_OF_MEMORY : BNB_DEVICE_LOST;
    return fail(status, "%s failed on %s: %s (%d)", what, gpu->name, libcuda_error(result), result);
}

bool cuda_enter(struct gpu *gpu) {
    lock(LOCK_GPU);
    if (!*gpu->lost) libcuda.cuCtxSetCurrent(gpu->context);
    return !*gpu->lost || (tell_lost(gpu), false);
}

void cuda_leave(void) { unlock(LOCK_GPU); }

/* ── Opening ────────────────────────────────────────────────────────────────────────────────────────────────────── */

#define ABSENT(...) (fail(BNB_UNSUPPORTED, "CUDA is absent: " __VA_ARGS__), false)

static bool is_set(const char *variable) {
    const char *value = getenv(variable);
    return value && !strcmp(value, "1");
}

/* Once for the process; where it fails, it does so again for every GPU that is asked for. */
static bool open_driver(void) {
    static enum { UNTRIED, OPEN, ABSENT_SAID } state;
    static char reason[1024];
    if (state == UNTRIED) {
        cuda_profiling = is_set("BNB_PROFILE");
        state = libcuda_load() && ranges_open() ? OPEN : ABSENT_SAID;
        if (state == OPEN)
            profile_open();
        else
            snprintf(reason, sizeof reason, "%s", bnb_last_error());
    }
    return state == OPEN || (fail(BNB_UNSUPPORTED, "%s", reason), false);
}

static bool cuda_lacks(void) {
    lock(LOCK_GPU);
    bool lacks = ptx_lacks() && open_driver();
    unlock(LOCK_GPU);
    return lacks;
}

static bnb_status cuda_take(const void *kernels, size_t bytes) {
    lock(LOCK_GPU);
    bnb_status status = ptx_take(kernels, bytes);
    unlock(LOCK_GPU);
    return status;
}

static bool find_device(struct gpu *gpu, uint32_t index) {
    int count = 0;
    libcuda.cuDeviceGetCount(&count);
    if ((int64_t)index < count)
        return libcuda.cuDeviceGet(&gpu->device, (int)index) == CUDA_SUCCESS ||
               ABSENT("its GPU %u can't be had", index);
    if (!count) return ABSENT("NVIDIA's driver sees no GPU; use the device \"cpu\"");
    return ABSENT("there is no GPU %u: NVIDIA's driver sees %d, counted from 0", index, count);
}

static int attribute_of(const struct gpu *gpu, int attribute) {
    int value = 0;
    return libcuda.cuDeviceGetAttribute(&value, attribute, gpu->device) == CUDA_SUCCESS ? value : 0;
}

/* Our kernels multiply on tensor cores, of the kind that NVIDIA's GPUs have since 2020. */
static bool is_capable(const struct gpu *gpu) {
    if (gpu->capability < 80)
        return ABSENT("\"%s\" has compute capability %d.%d, and 8.0 (Ampere, 2020) is needed; use the device \"cpu\"",
                      gpu->name, gpu->capability / 10, gpu->capability % 10);
    if (!attribute_of(gpu, ATTRIBUTE_POOLS))
        return ABSENT("\"%s\" has no memory pools here, as under some virtual GPUs; use the device \"cpu\"", gpu->name);
    return true;
}

static bool describe_device(struct gpu *gpu) {
    if (libcuda.cuDeviceGetName(gpu->name, sizeof gpu->name, gpu->device) ||
        libcuda.cuDeviceTotalMem_v2(&gpu->total, gpu->device))
        return ABSENT("its GPU does not say its name and memory");
    gpu->capability = 10 * attribute_of(gpu, ATTRIBUTE_MAJOR) + attribute_of(gpu, ATTRIBUTE_MINOR);
    gpu->multiprocessors = attribute_of(gpu, ATTRIBUTE_MULTIPROCESSORS);
    gpu->shared_most = attribute_of(gpu, ATTRIBUTE_SHARED_MOST);
    libcuda.cuDriverGetVersion(&gpu->driver_version);
    return is_capable(gpu);
}

/* The primary context, which other users of CUDA in the process share. */
static bool open_context(struct gpu *gpu) {
    CUresult result = libcuda.cuDevicePrimaryCtxRetain(&gpu->context, gpu->device);
    if (result == CUDA_ERROR_DEVICE_UNAVAILABLE)
        return ABSENT("\"%s\" is in exclusive mode and another process has it; end that, or use the device \"cpu\"",
                      gpu->name);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return ABSENT("\"%s\" has no memory left for a context: other processes fill it; nvidia-smi names them",
                      gpu->name);
    if (result == CUDA_SUCCESS) result = libcuda.cuCtxSetCurrent(gpu->context);
    if (result == CUDA_SUCCESS) result = libcuda.cuStreamCreate(&gpu->stream, STREAM_NON_BLOCKING);
    if (result == CUDA_SUCCESS) result = libcuda.cuDeviceGetDefaultMemPool(&gpu->pool, gpu->device);
    uint64_t keep = UINT64_MAX; /* freed memory stays ours until somebody lacks it */
    if (result == CUDA_SUCCESS) result = libcuda.cuMemPoolSetAttribute(gpu->pool, POOL_RELEASE_THRESHOLD, &keep);
    return result == CUDA_SUCCESS || ABSENT("\"%s\" can't be used: %s (%d)", gpu->name, libcuda_error(result), result);
}

static void *cuda_open(uint32_t index) {
    lock(LOCK_GPU);
    struct gpu *gpu = index < GPUS_MOST ? &gpus[index] : NULL;
    bool        opened = open_driver() && ptx_open();
    if (opened && !gpu) opened = ABSENT("of one machine's GPUs it takes the first %d", GPUS_MOST);
    opened = opened && find_device(gpu, index) && describe_device(gpu) && open_context(gpu);
    unlock(LOCK_GPU);
    return opened ? gpu : NULL;
}

static void cuda_describe(void *of, char *text, size_t size) {
    const struct gpu *gpu = of;
    snprintf(text, size, "%s, compute capability %d.%d, %.1f GB, driver for CUDA %d.%d", gpu->name,
             gpu->capability / 10, gpu->capability % 10, (double)gpu->total / 1e9, gpu->driver_version / 1000,
             gpu->driver_version % 1000 / 10);
}

/* ── Launching ──────────────────────────────────────────────────────────────────────────────────────────────────── */

enum { ARGS_MOST = 4096 };

static bnb_status check(const struct launch *launch) {
    if (launch->args_bytes > ARGS_MOST || launch->binding_count > MAX_BINDINGS ||
        launch->constant_count > MAX_CONSTANTS)
        return fail(BNB_INVALID, "%s: %zu bytes of arguments, %u bindings, %u constants: more than a launch takes",
                    launch->kernel, launch->args_bytes, launch->binding_count, launch->constant_count);
    if (!launch->threads || launch->threads % 32 || launch->threads > 1024 || !launch->groups[0] ||
        !launch->groups[1] || !launch->groups[2])
        return fail(BNB_INVALID, "%s: %u threads in %u × %u × %u groups are no grid", launch->kernel, launch->threads,
                    launch->groups[0], launch->groups[1], launch->groups[2]);
    /* A grid's first side may have 2^31 - 1 groups here, the others 65,535. */
    if (launch->groups[0] > INT32_MAX || launch->groups[1] > UINT16_MAX || launch->groups[2] > UINT16_MAX)
        return fail(BNB_UNSUPPORTED, "%s: %u × %u × %u groups are more than CUDA takes", launch->kernel,
                    launch->groups[0], launch->groups[1], launch->groups[2]);
    return BNB_OK;
}

/* Attributes of launches become a graph's edges from CUDA 12.3 on. */
enum { OVERLAPS_IN_GRAPHS = 12030 };

/* Whether the launch may begin while the last one ends: where the kernel waits for that, either before all else, or
 * once it has read a weight, which must be older than the last launch that began when all before it were done: from
 * that one on launches may be under way. In a graph, all of whose launches come after whatever was enqueued before it,
 * the graph itself must not write the weight. */
static bool may_overlap(const struct gpu *gpu, const struct kernel *kernel, const struct pipeline *pipeline,
                        const struct launch *launch) {
    static const uint32_t early[] = {1, 2, 3,
                                     4, 5, 8}; /* bindings of a product's weight; 8: the offset of its scales */
    uint64_t              capture = cuda_capture(gpu);
    if (capture ? gpu->driver_version < OVERLAPS_IN_GRAPHS : gpu->after_other) return false;
    if (!kernel->overlaps) return pipeline->waits;
    for (size_t i = 0; i < sizeof early / sizeof *early; i++) {
        const struct memory *memory = launch->bindings[early[i]].memory;
        if (memory && (capture ? memory->captured == capture : memory->written >= gpu->last_whole)) return false;
    }
    return true;
}

void cuda_note_done(struct gpu *gpu, uint64_t launches) {
    if (gpu->last_whole <= launches) gpu->last_whole = launches + 1;
}

static void note_launch(struct gpu *gpu, bool overlaps) {
    gpu->launches++;
    gpu->after_other = false;
    if (!overlaps) gpu->last_whole = gpu->launches;
}

static void note_writes(const struct gpu *gpu, const struct launch *launch) {
    uint64_t capture = cuda_capture(gpu);
    for (uint32_t i = 0; i < launch->binding_count; i++) {
        struct memory *memory = launch->bindings[i].memory;
        if (!memory || !(launch->bindings[i].access & WRITES)) continue;
        if (capture)
            memory->captured = capture;
        else
            memory->written = gpu->launches;
    }
}

void cuda_note_graph(struct gpu *gpu, const struct launch *launches, size_t count) {
    note_launch(gpu, false);
    gpu->after_other = true;
    for (size_t i = 0; i < count; i++) note_writes(gpu, &launches[i]);
}

static CUresult start(const struct gpu *gpu, const struct pipeline *pipeline, const struct launch *launch,
                      bool overlaps, void **parameters) {
    if (!overlaps)
        return libcuda.cuLaunchKernel(pipeline->function, launch->groups[0], launch->groups[1], launch->groups[2],
                                      launch->threads, 1, 1, launch->shared_bytes, cuda_stream(gpu), parameters, NULL);
    struct launch_attribute attribute = {.id = LAUNCH_PROGRAMMATIC, .value.allowed = 1};
    struct launch_config    config = {
        .groups = {launch->groups[0], launch->groups[1], launch->groups[2]},
        .threads = {launch->threads, 1, 1},
        .shared_bytes = launch->shared_bytes,
        .stream = cuda_stream(gpu),
        .attributes = &attribute,
        .attribute_count = 1,
    };
    return libcuda.cuLaunchKernelEx(&config, pipeline->function, parameters, NULL);
}

static CUresult enqueue(struct gpu *gpu, const struct kernel *kernel, const struct pipeline *pipeline,
                        const struct launch *launch) {
    bool        overlaps = may_overlap(gpu, kernel, pipeline, launch);
    CUdeviceptr at[MAX_BINDINGS] = {};
    void       *parameters[MAX_BINDINGS + 1];
    uint32_t    count = 0;
    if (launch->args_bytes) parameters[count++] = (void *)launch->args;
    for (uint32_t i = 0; i < MAX_BINDINGS; i++) { /* a kernel takes as many as it has */
        const struct memory *memory = i < launch->binding_count ? launch->bindings[i].memory : NULL;
        if (memory && launch->bindings[i].access != UNUSED) at[i] = memory->at + launch->bindings[i].offset;
        parameters[count++] = &at[i];
    }
    CUresult result = start(gpu, pipeline, launch, overlaps, parameters);
    if (result != CUDA_SUCCESS) return result;
    if (!cuda_capture(gpu)) note_launch(gpu, overlaps);
    note_writes(gpu, launch);
    return CUDA_SUCCESS;
}

static bnb_status launch_on(struct gpu *gpu, const struct launch *launch) {
    struct kernel *kernel = ptx_find(gpu, launch->family, launch->kernel);
    if (!kernel)
        return fail(BNB_UNSUPPORTED, "this build of the library has no kernel %s of %s for CUDA", launch->kernel,
                    launch->family);
    const struct pipeline *pipeline = ptx_pipeline(gpu, kernel, launch);
    if (!pipeline) return bnb_last_status();
    if (cuda_profiling) profile_begin(gpu);
    range_push(launch);
    CUresult result = enqueue(gpu, kernel, pipeline, launch);
    range_pop();
    if (result == CUDA_ERROR_OUT_OF_RESOURCES)
        return fail(BNB_UNSUPPORTED, "%s: %s lacks the registers or the shared memory for %u threads in a group",
                    launch->kernel, gpu->name, launch->threads);
    if (result != CUDA_SUCCESS) return cuda_failed(gpu, result, launch->kernel);
    if (cuda_profiling) profile_end(gpu, kernel, launch->bytes_moved);
    return BNB_OK;
}

bnb_status cuda_launch(void *on, const struct launch *given) {
    bnb_status status = check(given);
    if (status != BNB_OK) return status;
    struct launch launch = *given;
    cuda_replace(&launch);
    status = cuda_enter(on) ? launch_on(on, &launch) : bnb_last_status();
    cuda_leave();
    return status;
}

/* ── Waiting ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Other threads may enqueue meanwhile: only marking a failure takes the lock. */
static bnb_status cuda_wait(void *on) {
    struct gpu *gpu = on;
    bool        open = cuda_enter(gpu);
    uint64_t    launches = gpu->launches;
    cuda_leave();
    if (!open) return bnb_last_status();
    CUresult result = libcuda.cuStreamSynchronize(gpu->stream);
    lock(LOCK_GPU);
    bnb_status status = BNB_OK;
    if (result == CUDA_SUCCESS)
        cuda_note_done(gpu, launches);
    else
        status = cuda_failed(gpu, result, "the work that was enqueued before");
    cuda_leave();
    return status;
}

static bool cuda_idle(void *on) {
    struct gpu *gpu = on;
    bool        idle = !cuda_enter(gpu) || libcuda.cuStreamQuery(gpu->stream) != CUDA_ERROR_NOT_READY;
    cuda_leave();
    return idle; /* what has failed will not become less so: who waits is told */
}

static bnb_status cuda_ready(void *gpu, void *, enum access) { return cuda_wait(gpu); }
static void      *cuda_host(void *, void *) { return NULL; }

const struct driver cuda_driver = {
    .kind = "cuda",
    .sizes = {.vectors_most = 16, .tiles_wanted = 264, .split_least = 512},
    .open = cuda_open,
    .lacks = cuda_lacks,
    .take = cuda_take,
    .describe = cuda_describe,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .host = cuda_host,
    .cached = cuda_cached,
    .room = cuda_room,
    .ready = cuda_ready,
    .write = cuda_write,
    .read = cuda_read,
    .copy = cuda_copy,
    .launch = cuda_launch,
    .serve = cuda_serve,
    .record = cuda_record,
    .replay = cuda_replay,
    .forget = cuda_forget,
    .idle = cuda_idle,
    .wait = cuda_wait,
};
