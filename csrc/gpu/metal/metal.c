/* Metal through libobjc, in plain C: opens the default GPU of a Mac and enqueues kernels on it. */
#include "metal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct metal metal;

/* More than any struct that a kernel points to: Metal's validation holds what is bound to that size, looked at or
 * not. */
enum { NOTHING_BYTES = 8192 };

void metal_lock(void) { lock(LOCK_GPU); }
void metal_unlock(void) { unlock(LOCK_GPU); }

void *metal_enter(void) {
    metal_lock();
    return objc.autoreleasePoolPush();
}

void metal_leave(void *pool) {
    objc.autoreleasePoolPop(pool);
    metal_unlock();
}

/* ── Opening ────────────────────────────────────────────────────────────────────────────────────────────────────── */

#define ABSENT(...) (fail(BNB_UNSUPPORTED, "Metal is absent: " __VA_ARGS__), false)

static bool is_set(const char *variable) {
    const char *value = getenv(variable);
    return value && !strcmp(value, "1");
}

/* In a process without a window the system's default device can be nil although there is a GPU. */
static id find_device(void) {
    id device = objc.createSystemDefaultDevice();
    if (device) return device;
    id all = objc.copyAllDevices();
    if (all && NSArray_count(all)) device = NSObject_retain(NSArray_objectAtIndex(all, 0));
    NSObject_release(all);
    return device;
}

static bool is_recent_enough(void) {
    id process = NSProcessInfo_processInfo(objc.getClass("NSProcessInfo"));
    if (NSProcessInfo_isOperatingSystemAtLeastVersion(process, (NSOperatingSystemVersion){13, 1, 0})) return true;
    const char *version = NSString_UTF8String(NSProcessInfo_operatingSystemVersionString(process));
    return ABSENT("it needs macOS 13.1 or later, and this is %s; update macOS, or use the device \"cpu\"", version);
}

/* The GPU that virtual Macs show says Apple5, and yet runs kernels of simdgroups on the chip beneath. */
static bool is_capable(void) {
    if (is_set("BNB_METAL_ANY_FAMILY") || (MTLDevice_supportsFamily(metal.device, MTL_GPU_FAMILY_APPLE7) &&
                                           MTLDevice_supportsFamily(metal.device, MTL_GPU_FAMILY_METAL3)))
        return true;
    return ABSENT(
        "\"%s\" lacks what an Apple M1 has (GPU family Apple7, Metal 3), as the GPUs of Intel Macs do; use the "
        "device \"cpu\", or, in a virtual Mac on Apple Silicon, try BNB_METAL_ANY_FAMILY=1",
        metal.name);
}

/* Each family does what the ones before it do; 1001 is Apple1. */
static int find_family(void) {
    NSInteger family = MTL_GPU_FAMILY_APPLE1;
    while (family < MTL_GPU_FAMILY_APPLE1 + 64 && MTLDevice_supportsFamily(metal.device, family + 1)) family++;
    return (int)(family - 1000);
}

static bool open_device(void) {
    metal.device = find_device();
    if (!metal.device)
        return ABSENT("macOS shows no GPU to this process, as in some virtual machines and sandboxes; "
                      "use the device \"cpu\"");
    snprintf(metal.name, sizeof metal.name, "%s", NSString_UTF8String(MTLDevice_name(metal.device)));
    if (!is_recent_enough() || !is_capable()) return false;
    metal.family = find_family();
    metal.working_set = MTLDevice_recommendedMaxWorkingSetSize(metal.device);
    metal.buffer_max = MTLDevice_maxBufferLength(metal.device);
    metal.exact = is_set("BNB_METAL_EXACT");
    metal.profiling = is_set("BNB_PROFILE");
    metal.serial = is_set("BNB_METAL_SERIAL");
    if (!labels_open()) return false;
    metal.nothing = MTLDevice_newBufferWithLength_options(metal.device, NOTHING_BYTES, MTL_RESOURCE_STORAGE_SHARED);
    if (!metal.nothing) return ABSENT("%s gave no memory, not even a page; restart the system", metal.name);
    residency_open();
    residency_add(metal.nothing);
    return queue_open() && kernels_open();
}

/* An Apple chip has one GPU. */
static void *metal_open(uint32_t index) {
    if (index)
        return refuse(BNB_UNSUPPORTED, "metal:%u is absent: an Apple chip has one GPU; use the device \"metal\"",
                      index);
    const char *missing = objc_load();
    if (missing) return ABSENT("%s; use the device \"cpu\"", missing), NULL;
    void *pool = metal_enter();
    bool  opened = open_device();
    metal_leave(pool);
    return opened ? &metal : NULL;
}

static void metal_describe(void *, char *text, size_t size) {
    snprintf(text, size, "%s, GPU family Apple%d, %.1f GB for one process, %.1f GB in one buffer, %s", metal.name,
             metal.family, (double)metal.working_set / 1e9, (double)metal.buffer_max / 1e9, kernels_origin());
}

/* On M1 and M2 shifts run at a quarter of the rate, and a table of bytes needs half of them. */
static void metal_choose(void *, struct sizes *sizes) { sizes->byte_table = metal.family <= 8; }

/* ── Launching ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static bnb_status check(const struct launch *launch) {
    if (launch->args_bytes > MTL_SET_BYTES_MAX || launch->binding_count > MAX_BINDINGS ||
        launch->constant_count > MAX_CONSTANTS)
        return fail(BNB_INVALID, "%s: %zu bytes of arguments, %u bindings, %u constants: more than a launch takes",
                    launch->kernel, launch->args_bytes, launch->binding_count, launch->constant_count);
    if (!launch->threads || launch->threads % 32 || !launch->groups[0] || !launch->groups[1] || !launch->groups[2])
        return fail(BNB_INVALID, "%s: %u threads in %u × %u × %u groups are no grid", launch->kernel, launch->threads,
                    launch->groups[0], launch->groups[1], launch->groups[2]);
    if (launch->shared_bytes % 16)
        return fail(BNB_INVALID, "%s: %u bytes of threadgroup memory, expected a multiple of 16", launch->kernel,
                    launch->shared_bytes);
    return BNB_OK;
}

/* Whether a launch must wait for those since the last barrier: it reads what they write, or writes what they touch. */
static bool must_wait(const struct launch *launch) {
    uint64_t phase = queue_phase();
    for (uint32_t i = 0; i < launch->binding_count; i++) {
        const struct memory *memory = launch->bindings[i].memory;
        enum access          access = launch->bindings[i].access;
        if (!memory || access == UNUSED) continue;
        if (memory->written_in == phase || (access & WRITES && memory->read_in == phase)) return true;
    }
    return false;
}

/* A place that the kernel won't look at gets memory that nobody else touches. */
static void bind(id encoder, uint64_t batch, const struct binding *binding, uint32_t index) {
    struct memory *memory = binding->memory;
    if (!memory || binding->access == UNUSED) {
        MTLComputeCommandEncoder_setBuffer_offset_atIndex(encoder, metal.nothing, 0, index);
        return;
    }
    MTLComputeCommandEncoder_setBuffer_offset_atIndex(encoder, memory->buffer, binding->offset, index);
    memory->used = batch;
    if (binding->access & READS) memory->read_in = queue_phase();
    if (!(binding->access & WRITES)) return;
    memory->written = batch;
    memory->written_in = queue_phase();
    if (binding->access == WRITES) memory->lost = false;
}

static void encode(id encoder, uint64_t batch, const struct pipeline *pipeline, const struct launch *launch) {
    if (metal.serial || must_wait(launch)) queue_barrier();
    label_launch(encoder, launch);
    MTLComputeCommandEncoder_setComputePipelineState(encoder, pipeline->state);
    if (launch->args_bytes)
        MTLComputeCommandEncoder_setBytes_length_atIndex(encoder, launch->args, launch->args_bytes, 0);
    for (uint32_t i = 0; i < launch->binding_count; i++) bind(encoder, batch, &launch->bindings[i], i + 1);
    if (launch->shared_bytes)
        MTLComputeCommandEncoder_setThreadgroupMemoryLength_atIndex(encoder, launch->shared_bytes, 0);
    MTLComputeCommandEncoder_dispatchThreadgroups_threadsPerThreadgroup(
        encoder, (MTLSize){launch->groups[0], launch->groups[1], launch->groups[2]}, (MTLSize){launch->threads, 1, 1});
    label_launch_end(encoder);
}

/* Whether a batch has failed that was to write what this launch reads. */
static bool reads_what_is_lost(const struct launch *launch) {
    for (uint32_t i = 0; i < launch->binding_count; i++) {
        const struct memory *memory = launch->bindings[i].memory;
        if (memory && memory->lost && launch->bindings[i].access & READS) return true;
    }
    return false;
}

/* A launch with what is found out about it. */
struct prepared {
    const struct launch   *launch;
    struct kernel         *kernel;
    const struct pipeline *pipeline;
};

static bnb_status prepare(const struct launch *launch, struct prepared *prepared) {
    struct kernel *kernel = kernels_find(launch->family, launch->kernel);
    if (!kernel) return fail(BNB_UNSUPPORTED, "metal/%s.metal has no kernel %s", launch->family, launch->kernel);
    const struct pipeline *pipeline = kernels_pipeline(kernel, launch);
    if (!pipeline) return bnb_last_status();
    if (launch->threads > pipeline->threads_max)
        return fail(BNB_UNSUPPORTED, "%s: %u threads in a group are more than the %lu that %s can give this kernel",
                    launch->kernel, launch->threads, pipeline->threads_max, metal.name);
    *prepared = (struct prepared){launch, kernel, pipeline};
    return BNB_OK;
}

/* What the launch is to write becomes its own. */
static bnb_status own_results(const struct launch *launch) {
    bnb_status status = BNB_OK;
    for (uint32_t i = 0; i < launch->binding_count && status == BNB_OK; i++)
        if (launch->bindings[i].memory && launch->bindings[i].access & WRITES)
            status = memory_own(launch->bindings[i].memory);
    return status;
}

static bnb_status enqueue(const struct prepared *prepared) {
    bnb_status owned = own_results(prepared->launch);
    if (owned) return owned;
    uint64_t batch;
    id       encoder = queue_encoder(&batch);
    if (!encoder) return bnb_last_status();
    encode(encoder, batch, prepared->pipeline, prepared->launch);
    queue_encoded(prepared->kernel, prepared->launch->bytes_moved);
    return BNB_OK;
}

static bnb_status metal_launch(void *, const struct launch *launch) {
    bnb_status status = check(launch);
    if (status != BNB_OK) return status;
    struct prepared prepared;
    void           *pool = metal_enter();
    status = reads_what_is_lost(launch) ? queue_tell_lost() : prepare(launch, &prepared);
    if (status == BNB_OK) status = enqueue(&prepared);
    metal_leave(pool);
    return status;
}

/* ── Recording ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Launches that were looked up once, to be encoded again. */
struct list {
    size_t          count;
    struct prepared launches[];
};

static bnb_status metal_record(void *, const struct launch *launches, size_t count, void **graph) {
    struct list *list = malloc(sizeof *list + count * sizeof *list->launches);
    if (!list) return fail(BNB_OUT_OF_MEMORY, "the host has no memory left");
    void      *pool = metal_enter();
    bnb_status status = BNB_OK;
    for (list->count = 0; list->count < count && status == BNB_OK; list->count++)
        status = prepare(&launches[list->count], &list->launches[list->count]);
    metal_leave(pool);
    if (status == BNB_OK)
        *graph = list;
    else
        free(list);
    return status;
}

static bnb_status metal_replay(void *, void *graph) {
    const struct list *list = graph;
    void              *pool = metal_enter();
    bnb_status         status = BNB_OK;
    for (size_t i = 0; i < list->count && status == BNB_OK; i++)
        status = reads_what_is_lost(list->launches[i].launch) ? queue_tell_lost() : enqueue(&list->launches[i]);
    metal_leave(pool);
    return status;
}

static void metal_forget(void *, void *graph) { free(graph); }

static bnb_status metal_wait(void *) {
    void      *pool = metal_enter();
    bnb_status status = queue_wait_all();
    metal_leave(pool);
    return status;
}

static bool metal_idle(void *) {
    void *pool = metal_enter();
    bool  idle = queue_idle();
    metal_leave(pool);
    return idle;
}

/* Vectors and tiles cross over between 10 and 13 rows on an M3 Max in MLX (ml-explore/mlx, pull request 3863). */
const struct driver metal_driver = {
    .kind = "metal",
    .sizes = {.vectors_most = 8, .skinny_most = 16, .wide_vectors = 1, .tiles_wanted = 256, .split_least = 512},
    .open = metal_open,
    .describe = metal_describe,
    .choose = metal_choose,
    .alloc = metal_alloc,
    .adopt = metal_adopt,
    .free = metal_free,
    .host = metal_host,
    .ready = metal_ready,
    .write = metal_write,
    .read = metal_read,
    .cached = metal_cached,
    .room = metal_room,
    .launch = metal_launch,
    .record = metal_record,
    .replay = metal_replay,
    .forget = metal_forget,
    .idle = metal_idle,
    .wait = metal_wait,
};
