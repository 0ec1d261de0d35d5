/* The fake's devices, contexts and memory. */
#include "fake.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../metal/runtime/simulator.h"

void violation(const char *sentence, ...) {
    va_list values;
    va_start(values, sentence);
    fputs("fake libcuda: ", stderr);
    vfprintf(stderr, sentence, values);
    fputc('\n', stderr);
    va_end(values);
    abort();
}

/* ── Faults and counters ────────────────────────────────────────────────────────────────────────────────────────── */

struct faults faults = {
#define USUAL(name, usual) .name = usual,
    FAULTS(USUAL)
#undef USUAL
};
struct counters counters;

bool strikes(_Atomic long *countdown) { return *countdown > 0 && --*countdown == 0; }

void fake_cuda_set(const char *fault, long value) {
#define SET_FAULT(name, usual)                                                                                         \
    if (!strcmp(fault, #name)) {                                                                                       \
        faults.name = value;                                                                                           \
        return;                                                                                                        \
    }
    FAULTS(SET_FAULT)
#undef SET_FAULT
    violation("there is no fault %s", fault);
}

long fake_cuda_count(const char *name) {
#define COUNTER(counter)                                                                                               \
    if (!strcmp(name, #counter)) return counters.counter;
    COUNTER(compiles)
    COUNTER(allocations)
    COUNTER(launches)
    COUNTER(overlapped)
    COUNTER(runs)
    COUNTER(copies)
    COUNTER(waits)
    COUNTER(live)
    COUNTER(ranges)
    COUNTER(open_ranges)
    COUNTER(graphs)
    COUNTER(live_graphs)
    COUNTER(streams)
#undef COUNTER
    violation("there is no counter %s", name);
}

int nvtxRangePushA(const char *name) {
    const char *expected = "small/add ";
    if (strncmp(name, expected, strlen(expected))) violation("nvtxRangePushA: %s, expected %s…", name, expected);
    counters.ranges++;
    return (int)counters.open_ranges++;
}

int nvtxRangePop(void) {
    if (!counters.open_ranges) violation("nvtxRangePop: no range is open");
    return (int)--counters.open_ranges;
}

__attribute__((constructor)) static void read_faults(void) {
    const char *given = getenv("BNB_FAKE_CUDA");
    char        name[64];
    long        value;
    for (int length; given && sscanf(given, "%63[^=]=%ld%n", name, &value, &length) == 2;
         given += length + (given[length] == ','))
        fake_cuda_set(name, value);
}

/* ── Devices ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool started;

CUresult cuInit(unsigned flags) {
    if (flags) violation("cuInit: flags %u", flags);
    started = !faults.init;
    return (CUresult)faults.init;
}

CUresult cuDriverGetVersion(int *version) { return *version = (int)faults.version, CUDA_SUCCESS; }

CUresult cuDeviceGetCount(int *count) {
    if (!started) violation("cuDeviceGetCount before cuInit");
    return *count = (int)faults.devices, CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int index) {
    if (index < 0 || index >= faults.devices) return 101;
    return *device = index, CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    snprintf(name, (size_t)size, "Simulated NVIDIA GPU %d", device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice) {
    switch (attribute) {
    case ATTRIBUTE_MULTIPROCESSORS: return *value = 132, CUDA_SUCCESS;
    case ATTRIBUTE_MAJOR: return *value = (int)faults.capability / 10, CUDA_SUCCESS;
    case ATTRIBUTE_MINOR: return *value = (int)faults.capability % 10, CUDA_SUCCESS;
    case ATTRIBUTE_SHARED_MOST: return *value = SIM_MOST_THREADGROUP_BYTES, CUDA_SUCCESS;
    case ATTRIBUTE_POOLS: return *value = (int)faults.pools, CUDA_SUCCESS;
    default: violation("cuDeviceGetAttribute: %d is none that the driver should ask for", attribute);
    }
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice) { return *bytes = (size_t)faults.memory, CUDA_SUCCESS; }

/* ── The context ────────────────────────────────────────────────────────────────────────────────────────────────── */

static pthread_mutex_t         lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local CUcontext current;
static CUresult                lost_by;
static char                    lost_text[2048];

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = (CUcontext)(uintptr_t)(0x1000 + device);
    return (CUresult)faults.context;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    current = context;
    return lost_by;
}

CUresult enter(const char *function) {
    if (!current) violation("%s: this thread has no current context", function);
    pthread_mutex_lock(&lock);
    return lost_by;
}

CUresult leave(CUresult result) {
    pthread_mutex_unlock(&lock);
    return result;
}

void lose(CUresult result, const char *text) {
    lost_by = result;
    snprintf(lost_text, sizeof lost_text, "an illegal memory access was encountered (simulated: %s)", text);
}

CUresult is_lost(void) { return lost_by; }

CUresult cuGetErrorString(CUresult result, const char **text) {
    *text = result == lost_by && lost_by         ? lost_text
            : result == CUDA_SUCCESS             ? "no error"
            : result == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory"
            : result == 218                      ? "a PTX JIT compilation failed"
                                                 : "a simulated error";
    return CUDA_SUCCESS;
}

/* ── Memory ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static struct allocation *allocations;
static size_t             used, reserved;

CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    CUresult result = enter("cuMemGetInfo");
    *total = (size_t)faults.memory;
    *free = (size_t)faults.memory - reserved;
    return leave(result);
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice) { return *pool = (CUmemoryPool)0x3000, CUDA_SUCCESS; }

CUresult cuMemPoolSetAttribute(CUmemoryPool, int attribute, void *) {
    if (attribute != POOL_RELEASE_THRESHOLD) violation("cuMemPoolSetAttribute: %d", attribute);
    return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAttribute(CUmemoryPool, int attribute, void *value) {
    CUresult result = enter("cuMemPoolGetAttribute");
    if (attribute != POOL_RESERVED && attribute != POOL_USED) violation("cuMemPoolGetAttribute: %d", attribute);
    *(uint64_t *)value = attribute == POOL_RESERVED ? reserved : used;
    return leave(result);
}

CUresult cuMemPoolTrimTo(CUmemoryPool, size_t bytes) {
    CUresult result = enter("cuMemPoolTrimTo");
    reserved = used > bytes ? used : bytes < reserved ? bytes : reserved;
    return leave(result);
}

/* Between guard pages, and filled with 0xFF: as floats NaN, as sizes and indices far out of bounds. */
static CUresult allocate(CUdeviceptr *at, size_t bytes) {
    if (!bytes) violation("cuMemAllocAsync: 0 bytes");
    if (strikes(&faults.fail_alloc) || bytes > (size_t)faults.memory - used) return CUDA_ERROR_OUT_OF_MEMORY;
    struct allocation *allocation = calloc(1, sizeof *allocation);
    if (!allocation || !(allocation->memory = sim_allocate(bytes))) violation("the host has no memory left");
    allocation->bytes = bytes;
    allocation->next = allocations;
    allocations = allocation;
    used += bytes;
    if (reserved < used) reserved = used;
    counters.allocations++;
    counters.live++;
    *at = (CUdeviceptr)(uintptr_t)allocation->memory;
    return CUDA_SUCCESS;
}

/* A graph's memory has an address from its capture on, and whatever is left in it whenever the graph runs. */
CUresult cuMemAllocAsync(CUdeviceptr *at, size_t bytes, CUstream stream) {
    CUresult result = enter("cuMemAllocAsync");
    if (!result) result = allocate(at, bytes);
    if (!result && captured_by(stream)) {
        allocations->graph = captured_by(stream);
        enqueue(stream, (struct command){.kind = SET, .to = allocations->memory, .value = 0xFF, .bytes = bytes});
    }
    return leave(result);
}

struct allocation *find_allocation(CUdeviceptr at, size_t bytes, const char *function) {
    const char *address = (const char *)(uintptr_t)at;
    for (struct allocation *allocation = allocations; allocation; allocation = allocation->next) {
        if (address < allocation->memory || address >= allocation->memory + allocation->bytes) continue;
        if (allocation->freed) violation("%s: memory that was freed", function);
        if (bytes > (size_t)(allocation->memory + allocation->bytes - address))
            violation("%s: %zu bytes at byte %zu of memory that holds %zu", function, bytes,
                      (size_t)(address - allocation->memory), allocation->bytes);
        return allocation;
    }
    violation("%s: 0x%llx is in no memory of the GPU", function, at);
}

bool is_of_graph(CUdeviceptr at) {
    const char *address = (const char *)(uintptr_t)at;
    for (struct allocation *allocation = allocations; allocation; allocation = allocation->next)
        if (address >= allocation->memory && address < allocation->memory + allocation->bytes) return allocation->graph;
    return false;
}

CUresult cuMemFreeAsync(CUdeviceptr at, CUstream stream) {
    CUresult result = enter("cuMemFreeAsync");
    if (result) return leave(result);
    struct allocation *allocation = find_allocation(at, 0, "cuMemFreeAsync");
    if ((char *)(uintptr_t)at != allocation->memory) violation("cuMemFreeAsync: not where an allocation begins");
    if (allocation->graph != captured_by(stream))
        violation("cuMemFreeAsync: memory of a graph outside its capture, or others' within one");
    allocation->freed = true;
    if (!allocation->graph) enqueue(stream, (struct command){.kind = FREE, .allocation = allocation});
    return leave(CUDA_SUCCESS);
}

void release_allocation(struct allocation *allocation) {
    struct allocation **at = &allocations;
    while (*at != allocation) at = &(*at)->next;
    *at = allocation->next;
    used -= allocation->bytes;
    counters.live--;
    sim_release(allocation->memory);
    free(allocation);
}

void release_graph(const struct CUgraph_st *graph) {
    for (struct allocation *allocation = allocations, *next; allocation; allocation = next) {
        next = allocation->next;
        if (allocation->graph != graph) continue;
        if (!allocation->freed) violation("cuGraphInstantiate: memory that the graph leaves behind");
        release_allocation(allocation);
    }
}

static struct pinned {
    char  *memory;
    size_t bytes;
} pinned[16];

CUresult cuMemAllocHost_v2(void **memory, size_t bytes) {
    CUresult result = enter("cuMemAllocHost");
    if (result) return leave(result);
    if (strikes(&faults.fail_pinned)) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    struct pinned *place = pinned;
    while (place->memory) place++;
    *place = (struct pinned){malloc(bytes), bytes};
    return *memory = place->memory, leave(CUDA_SUCCESS);
}

bool is_pinned(const void *memory) {
    for (const struct pinned *p = pinned; p->memory; p++)
        if ((const char *)memory >= p->memory && (const char *)memory < p->memory + p->bytes) return true;
    return false;
}
