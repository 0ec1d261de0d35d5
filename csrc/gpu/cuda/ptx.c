/* Kernels by name, out of the PTX that was handed over: patched with a launch's constants, and compiled by the driver,
 * when first used. The driver keeps what it compiled in its own cache, ~/.nv/ComputeCache.
 *
 * The pack is a row of texts, each after a line `// bnb <family> <kernel> <architecture> <bytes>` (scripts/ptx.ts). */
#include "cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS_OF_KERNELS = 256, NAME_MOST = 64 };

static char *pack; /* ours, for as long as the process lives */
static bool  damaged;

static struct kernel *kernels[BUCKETS_OF_KERNELS];

/* ── Names ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* FNV-1a of a word, which ends at a blank or with the text. */
static uint32_t hash_of(const char *word) {
    uint32_t hash = 0x811c9dc5;
    for (; *word && *word != ' '; word++) hash = (hash ^ (uint8_t)*word) * 0x01000193;
    return hash;
}

static bool is_word(const char *at, const char *word) {
    size_t length = strlen(word);
    return !strncmp(at, word, length) && at[length] == ' ';
}

/* Of several texts of a kernel, the one for the GPU's own architecture or the nearest before it. */
struct kernel *ptx_find(const struct gpu *gpu, const char *family, const char *name) {
    struct kernel *best = NULL;
    for (struct kernel *kernel = kernels[hash_of(name) % BUCKETS_OF_KERNELS]; kernel; kernel = kernel->next) {
        bool fits = kernel->exactly ? gpu->capability == kernel->capability : gpu->capability >= kernel->capability;
        if (!fits || !is_word(kernel->name, name) || !is_word(kernel->family, family)) continue;
        if (kernel->overlaps && !libcuda.cuLaunchKernelEx) continue;
        if (!best || kernel->capability > best->capability) best = kernel;
    }
    return best;
}

/* The word after the one at `at`, on the same line. */
static const char *next_word(const char *at, const char *end) {
    while (at < end && *at != ' ' && *at != '\n') at++;
    return at < end && *at == ' ' ? at + 1 : NULL;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* Reads the text at `at` into `kernel`, and gives where the next one begins; NULL where the pack is damaged. */
static const char *read_kernel(const char *at, const char *end, struct kernel *kernel) {
    static const char mark[] = "// bnb ";
    const char       *line_end = memchr(at, '\n', (size_t)(end - at));
    if (!line_end || (size_t)(line_end - at) < sizeof mark - 1 || memcmp(at, mark, sizeof mark - 1)) return NULL;
    const char *family = at + sizeof mark - 1, *name = next_word(family, line_end);
    const char *architecture = name ? next_word(name, line_end) : NULL,
               *size = architecture ? next_word(architecture, line_end) : NULL;
    if (!size || strncmp(architecture, "sm_", 3) || !is_digit(architecture[3]) || !is_digit(*size)) return NULL;
    char  *rest; /* numbers end within the line */
    int    capability = (int)strtoul(architecture + 3, &rest, 10);
    size_t bytes = (size_t)strtoull(size, NULL, 10);
    if (!bytes || bytes > (size_t)(end - line_end - 1)) return NULL;
    *kernel = (struct kernel){
        .family = family,
        .name = name,
        .text = line_end + 1,
        .bytes = bytes,
        .capability = capability,
        .exactly = *rest == 'a',
        .overlaps = capability == 90 && *rest != 'a',
    };
    return kernel->text + bytes;
}

bool ptx_lacks(void) { return !pack && !damaged; }

bool ptx_open(void) {
    if (pack) return true;
    return fail(BNB_UNSUPPORTED, damaged ? "CUDA is absent: the kernels that came with this library are damaged; "
                                           "install it again"
                                         : "CUDA is absent: no kernels for it came with this library; use the npm "
                                           "package, or run \"bun run setup --cuda\" in a clone"),
           false;
}

/* How many texts there are; 0 where the pack is damaged. */
static size_t count_kernels(const char *text, size_t bytes) {
    struct kernel kernel;
    size_t        count = 0;
    for (const char *at = text; at < text + bytes; count++)
        if (!(at = read_kernel(at, text + bytes, &kernel))) return 0;
    return count;
}

/* Text and handles as one piece of memory; NULL where the text is damaged, or there is no memory. */
static struct kernel *handles_for(const char *text, size_t bytes) {
    size_t count = count_kernels(text, bytes);
    damaged = !count;
    if (damaged)
        return refuse(BNB_INVALID, "device_take_kernels: kernels, of %zu bytes, are damaged; install the package again",
                      bytes);
    struct kernel *handles = malloc(count * sizeof *handles + bytes);
    if (!handles) return refuse(BNB_OUT_OF_MEMORY, "the host has no memory for %zu bytes of kernels", bytes);
    memcpy(handles + count, text, bytes);
    pack = (char *)(handles + count);
    return handles;
}

/* Only the first counts: its names are pointed at. A copy is read, since another thread may write to the caller's. */
bnb_status ptx_take(const void *given, size_t bytes) {
    if (pack) return BNB_OK;
    char *copy = malloc(bytes);
    if (!copy) return fail(BNB_OUT_OF_MEMORY, "the host has no memory for %zu bytes of kernels", bytes);
    memcpy(copy, given, bytes);
    struct kernel *handles = handles_for(copy, bytes);
    free(copy);
    if (!handles) return bnb_last_status();
    for (const char *at = pack; at < pack + bytes; handles++) {
        at = read_kernel(at, pack + bytes, handles);
        struct kernel **bucket = &kernels[hash_of(handles->name) % BUCKETS_OF_KERNELS];
        handles->next = *bucket;
        *bucket = handles;
    }
    return BNB_OK;
}

/* ── Compiling ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* On Hopper and later a launch may begin while the one before it ends, so that its threadgroups are there when that is
 * done: where a kernel does not see to it by itself, it waits before all else. */
static bool is_to_wait(const struct gpu *gpu, const struct kernel *kernel) {
    return gpu->capability >= 90 && libcuda.cuLaunchKernelEx && !kernel->overlaps;
}

static char *failure_of(const char *sentence, CUresult result, const char *log) {
    char text[1024];
    snprintf(text, sizeof text, "%s: %s%s%.800s", sentence, libcuda_error(result), *log ? ": " : "", log);
    return strdup(text);
}

static void compile(struct pipeline *pipeline, const struct kernel *kernel, const struct launch *launch) {
    char     log[2048] = "", name[NAME_MOST + 8];
    int      options[] = {JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES};
    void    *values[] = {log, (void *)(uintptr_t)sizeof log};
    CUmodule module = NULL;
    pipeline->waits = is_to_wait(pipeline->gpu, kernel);
    char    *text = ptx_text(kernel, launch, pipeline->waits);
    CUresult result = text ? libcuda.cuModuleLoadDataEx(&module, text, 2, options, values) : CUDA_ERROR_OUT_OF_MEMORY;
    free(text);
    snprintf(name, sizeof name, "bnb_%s", launch->kernel);
    if (result == CUDA_SUCCESS) result = libcuda.cuModuleGetFunction(&pipeline->function, module, name);
    if (result != CUDA_SUCCESS) pipeline->failure = failure_of("its driver could not compile the kernel", result, log);
    int most = 0;
    if (result == CUDA_SUCCESS &&
        libcuda.cuFuncGetAttribute(&most, FUNCTION_THREADS_MOST, pipeline->function) == CUDA_SUCCESS &&
        (uint32_t)most < launch->threads)
        pipeline->failure =
            failure_of("it has too few registers for the kernel's threads", CUDA_ERROR_OUT_OF_RESOURCES, "");
}

static bool is_of(const struct pipeline *pipeline, const struct gpu *gpu, const struct launch *launch) {
    return pipeline->gpu == gpu && pipeline->threads == launch->threads &&
           pipeline->constant_count == launch->constant_count &&
           !memcmp(pipeline->constants, launch->constants, launch->constant_count * sizeof *launch->constants);
}

static struct pipeline *pipeline_new(struct gpu *gpu, struct kernel *kernel, const struct launch *launch) {
    struct pipeline *pipeline = calloc(1, sizeof *pipeline);
    if (!pipeline) return refuse(BNB_OUT_OF_MEMORY, "the host has no memory left");
    *pipeline = (struct pipeline){.gpu = gpu,
                                  .constant_count = launch->constant_count,
                                  .threads = launch->threads,
                                  .next = kernel->pipelines};
    memcpy(pipeline->constants, launch->constants, launch->constant_count * sizeof *launch->constants);
    kernel->pipelines = pipeline;
    compile(pipeline, kernel, launch);
    return pipeline;
}

/* Beyond 48 KB a kernel must ask for its shared memory. */
static bool has_shared_memory(struct gpu *gpu, struct pipeline *pipeline, const struct launch *launch) {
    if (launch->shared_bytes <= pipeline->shared_bytes || launch->shared_bytes <= 48 << 10) return true;
    if ((int64_t)launch->shared_bytes > gpu->shared_most ||
        libcuda.cuFuncSetAttribute(pipeline->function, FUNCTION_SHARED_MOST, (int)launch->shared_bytes) != CUDA_SUCCESS)
        return fail(BNB_UNSUPPORTED, "%s: %u bytes of shared memory are more than the %d that %s can give",
                    launch->kernel, launch->shared_bytes, gpu->shared_most, gpu->name),
               false;
    pipeline->shared_bytes = launch->shared_bytes;
    return true;
}

struct pipeline *ptx_pipeline(struct gpu *gpu, struct kernel *kernel, const struct launch *launch) {
    struct pipeline *pipeline = kernel->pipelines;
    while (pipeline && !is_of(pipeline, gpu, launch)) pipeline = pipeline->next;
    if (!pipeline) pipeline = pipeline_new(gpu, kernel, launch);
    if (!pipeline) return NULL;
    if (pipeline->failure)
        return refuse(BNB_UNSUPPORTED, "%s can't run %s of %s: %s", gpu->name, launch->kernel, launch->family,
                      pipeline->failure);
    return has_shared_memory(gpu, pipeline, launch) ? pipeline : NULL;
}

/* ── Profiles ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int slowest_first(const void *a, const void *b) {
    double x = (*(struct kernel *const *)a)->profile.seconds, y = (*(struct kernel *const *)b)->profile.seconds;
    return (x < y) - (x > y);
}

void ptx_profile(void) {
    struct kernel *ran[1024];
    size_t         count = 0;
    for (uint32_t bucket = 0; bucket < BUCKETS_OF_KERNELS; bucket++)
        for (struct kernel *kernel = kernels[bucket]; kernel && count < 1024; kernel = kernel->next)
            if (kernel->profile.runs) ran[count++] = kernel;
    qsort(ran, count, sizeof *ran, slowest_first);
    fprintf(stderr, "%-40s %10s %12s %12s %10s\n", "kernel", "runs", "total ms", "mean us", "GB/s");
    for (size_t i = 0; i < count; i++) {
        const struct profile *profile = &ran[i]->profile;
        fprintf(stderr, "%-40.*s %10llu %12.3f %12.2f %10.1f\n", (int)strcspn(ran[i]->name, " "), ran[i]->name,
                (unsigned long long)profile->runs, profile->seconds * 1e3,
                profile->seconds * 1e6 / (double)profile->runs,
                profile->seconds > 0 ? profile->bytes / profile->seconds / 1e9 : 0);
    }
}
