/* Kernels by name: a library of each family and a pipeline of each kernel, both compiled when they are first used.
 *
 * Where bunsandbytes-<fingerprint>.metallib stands beside this library, kernels compiled ahead are taken from it: a
 * file
 * made of other kernels has another name. */
#define _GNU_SOURCE /* dladdr */
#include "../kernels.h"
#include "metal.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BUCKETS_OF_KERNELS = 256 };

struct family {
    const struct kernel_source *source;
    id                          library;
    char                       *failure;
};

static struct family *families;
static struct kernel *kernels[BUCKETS_OF_KERNELS];
static id             compiled_ahead;
static char           origin[PATH_MAX + 256] = "kernels compiled from their embedded source";

/* ── Names ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* FNV-1a. */
static uint64_t hash_of(const char *text, size_t length) {
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (uint8_t)text[i]) * 0x100000001b3;
    return hash;
}

static struct kernel **bucket_of_name(const char *name, size_t length) {
    return &kernels[hash_of(name, length) % BUCKETS_OF_KERNELS];
}

static bool add_kernels(struct family *family) {
    static const char mark[] = "host_name(\"";
    for (const char *at = family->source->text; (at = strstr(at, mark));) {
        at += sizeof mark - 1;
        size_t          length = strcspn(at, "\"");
        struct kernel **bucket = bucket_of_name(at, length);
        struct kernel  *kernel = calloc(1, sizeof *kernel);
        char           *name = strndup(at, length);
        if (!kernel || !name) return fail(BNB_OUT_OF_MEMORY, "the host has no memory left"), false;
        *kernel = (struct kernel){.family = family, .name = name, .next = *bucket};
        *bucket = kernel;
    }
    return true;
}

struct kernel *kernels_find(const char *family, const char *name) {
    for (struct kernel *kernel = *bucket_of_name(name, strlen(name)); kernel; kernel = kernel->next)
        if (!strcmp(kernel->name, name) && !strcmp(kernel->family->source->name, family)) return kernel;
    return NULL;
}

/* ── Opening ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Of all files that kernels are compiled from, in any order. scripts/metallib.ts works out the same. */
static uint64_t fingerprint(void) {
    uint64_t all = 0;
    for (const struct kernel_source *file = kernel_headers; file->name; file++)
        all ^= hash_of(file->text, strlen(file->text));
    for (const struct kernel_source *file = kernel_families; file->name; file++)
        all ^= hash_of(file->text, strlen(file->text));
    return all;
}

static void load_compiled_ahead(void) {
    Dl_info self;
    char    path[PATH_MAX];
    if (!dladdr((const void *)kernels_open, &self)) return;
    const char *slash = strrchr(self.dli_fname, '/');
    int         folder = slash ? (int)(slash - self.dli_fname) : 0;
    snprintf(path, sizeof path, "%.*s%sbunsandbytes-%016llx.metallib", folder, self.dli_fname, slash ? "/" : "",
             (unsigned long long)fingerprint());
    if (access(path, R_OK)) return;
    id error = NULL, url = NSURL_fileURLWithPath(objc.getClass("NSURL"), objc_string(path));
    compiled_ahead = MTLDevice_newLibraryWithURL_error(metal.device, url, &error);
    if (compiled_ahead)
        snprintf(origin, sizeof origin, "kernels from %s", path);
    else
        snprintf(origin, sizeof origin, "kernels compiled from their embedded source, for Metal refuses %s: %s", path,
                 objc_error(error));
}

bool kernels_open(void) {
    size_t count = 0;
    while (kernel_families[count].name) count++;
    families = calloc(count ? count : 1, sizeof *families);
    if (!families) return fail(BNB_OUT_OF_MEMORY, "the host has no memory left"), false;
    for (size_t i = 0; i < count; i++) {
        families[i].source = &kernel_families[i];
        if (!add_kernels(&families[i])) return false;
    }
    load_compiled_ahead();
    return true;
}

const char *kernels_origin(void) { return origin; }

/* ── Compiling ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* A family's text as Metal gets it. Line numbers in Metal's messages are those of the files in metal/. */
static char *join(const struct kernel_source *family) {
    static const char head[] = "#include <metal_stdlib>\nusing namespace metal;\n";
    static const char format[] = "#line 1 \"metal/%s%s\"\n%s\n";
    size_t            bytes = sizeof head + sizeof format + strlen(family->name) + strlen(family->text) + 8;
    for (const struct kernel_source *header = kernel_headers; header->name; header++)
        bytes += sizeof format + strlen(header->name) + strlen(header->text);
    char *text = malloc(bytes);
    if (!text) return NULL;
    char *to = stpcpy(text, head);
    for (const struct kernel_source *header = kernel_headers; header->name; header++)
        to += sprintf(to, format, header->name, "", header->text);
    sprintf(to, format, family->name, ".metal", family->text);
    return text;
}

/* Fast math would let a NaN pass unseen and round a division wrongly. Since macOS 15 the mode leaves the functions
 * fast:
 * they have an option of their own. Before, and in what scripts/metallib.ts compiles, one option sets both. */
static id compile_options(void) {
    id options = NSObject_new(objc.getClass("MTLCompileOptions"));
    MTLCompileOptions_setLanguageVersion(options, MTL_LANGUAGE_VERSION_3_0);
    if (NSObject_respondsToSelector(options, objc.selectors[SEL_MTLCompileOptions_setMathMode])) {
        MTLCompileOptions_setMathMode(options, MTL_MATH_MODE_SAFE);
        MTLCompileOptions_setMathFloatingPointFunctions(options, MTL_MATH_FUNCTIONS_PRECISE);
    } else {
        MTLCompileOptions_setFastMathEnabled(options, false);
    }
    return options;
}

static id library_of(struct family *family) {
    if (family->library || family->failure) return family->library;
    char *text = join(family->source);
    id    error = NULL, library = NULL, options = compile_options();
    if (text) library = MTLDevice_newLibraryWithSource_options_error(metal.device, objc_string(text), options, &error);
    if (!library) family->failure = strdup(text ? objc_error(error) : "the host has no memory left");
    family->library = library;
    NSObject_release(options);
    free(text);
    return family->library;
}

/* Metal wants a function's constants as typed values; those of our kernels are all uint. */
static id function_of(id library, const char *name, const struct pipeline *pipeline, id *error) {
    if (!pipeline->constant_count) return MTLLibrary_newFunctionWithName(library, objc_string(name));
    id values = NSObject_new(objc.getClass("MTLFunctionConstantValues"));
    for (uint32_t i = 0; i < pipeline->constant_count; i++)
        MTLFunctionConstantValues_setConstantValue_type_atIndex(values, &pipeline->constants[i], MTL_DATA_TYPE_UINT, i);
    id function = MTLLibrary_newFunctionWithName_constantValues_error(library, objc_string(name), values, error);
    NSObject_release(values);
    return function;
}

static void compile(struct kernel *kernel, struct pipeline *pipeline) {
    id error = NULL, function = NULL;
    if (compiled_ahead) function = function_of(compiled_ahead, kernel->name, pipeline, &error);
    if (!function && library_of(kernel->family)) {
        error = NULL;
        function = function_of(kernel->family->library, kernel->name, pipeline, &error);
    }
    if (function) {
        label_function(function, kernel->name, pipeline);
        pipeline->state = MTLDevice_newComputePipelineStateWithFunction_error(metal.device, function, &error);
        NSObject_release(function);
    }
    if (pipeline->state)
        pipeline->threads_max = MTLComputePipelineState_maxTotalThreadsPerThreadgroup(pipeline->state);
    else
        pipeline->failure = strdup(kernel->family->failure ? kernel->family->failure : objc_error(error));
}

const struct pipeline *kernels_pipeline(struct kernel *kernel, const struct launch *launch) {
    struct pipeline *pipeline = kernel->pipelines;
    size_t           bytes = launch->constant_count * sizeof *launch->constants;
    while (pipeline && (pipeline->constant_count != launch->constant_count ||
                        memcmp(pipeline->constants, launch->constants, bytes)))
        pipeline = pipeline->next;
    if (!pipeline) {
        pipeline = calloc(1, sizeof *pipeline);
        if (!pipeline) return refuse(BNB_OUT_OF_MEMORY, "the host has no memory left");
        memcpy(pipeline->constants, launch->constants, bytes);
        pipeline->constant_count = launch->constant_count;
        pipeline->next = kernel->pipelines;
        kernel->pipelines = pipeline;
        compile(kernel, pipeline);
    }
    if (!pipeline->state)
        return refuse(BNB_UNSUPPORTED, "%s could not compile the kernel %s of metal/%s.metal: %s", metal.name,
                      kernel->name, kernel->family->source->name, pipeline->failure);
    return pipeline;
}

/* ── Profiles ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int slowest_first(const void *a, const void *b) {
    double x = (*(struct kernel *const *)a)->profile.seconds, y = (*(struct kernel *const *)b)->profile.seconds;
    return (x < y) - (x > y);
}

void kernels_profile(void) {
    struct kernel *ran[1024];
    size_t         count = 0;
    for (uint32_t bucket = 0; bucket < BUCKETS_OF_KERNELS; bucket++)
        for (struct kernel *kernel = kernels[bucket]; kernel && count < 1024; kernel = kernel->next)
            if (kernel->profile.runs) ran[count++] = kernel;
    qsort(ran, count, sizeof *ran, slowest_first);
    fprintf(stderr, "%-40s %10s %12s %12s %10s\n", "kernel", "runs", "total ms", "mean us", "GB/s");
    for (size_t i = 0; i < count; i++) {
        const struct profile *profile = &ran[i]->profile;
        fprintf(stderr, "%-40s %10llu %12.3f %12.2f %10.1f\n", ran[i]->name, (unsigned long long)profile->runs,
                profile->seconds * 1e3, profile->seconds * 1e6 / (double)profile->runs,
                profile->seconds > 0 ? profile->bytes / profile->seconds / 1e9 : 0);
    }
}
