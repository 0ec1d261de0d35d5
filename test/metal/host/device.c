/* The fake MTLDevice: buffers, libraries translated from Metal's language to C++, functions, pipelines. */
#define _DEFAULT_SOURCE /* mincore */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../runtime/simulator.h"

/* ── The device ─────────────────────────────────────────────────────────────────────────────────────────────────── */

id fake_MTLDevice_name(id, SEL) { return string_of(faults.large_chip ? "Simulated Apple Max" : "Simulated Apple GPU"); }

bool fake_MTLDevice_supportsFamily(id, SEL, NSInteger family) {
    return family <= faults.family || (family == MTL_GPU_FAMILY_METAL3 && faults.family >= MTL_GPU_FAMILY_APPLE7);
}

uint64_t   fake_MTLDevice_recommendedMaxWorkingSetSize(id, SEL) { return (uint64_t)faults.working_set; }
NSUInteger fake_MTLDevice_maxBufferLength(id, SEL) { return (NSUInteger)faults.buffer_max; }

/* ── Buffers ────────────────────────────────────────────────────────────────────────────────────────────────────── */

enum { PAGE = 16384, ROOM = 64, BEHIND = 0xC5 };

/* The memory lies between guard pages and is filled with 0xFF: as floats NaN, as sizes and indices far out of bounds.
 * Metal's own goes on to the end of its last page, and the CPU may read there; the fake leaves it a little of that, of
 * numbers that change where they are worked on, and sees when the buffer ends whether anybody has written there. */
id fake_MTLDevice_newBufferWithLength_options(id, SEL, NSUInteger length, NSUInteger options) {
    if (!length || (long)length > faults.buffer_max)
        violation("newBufferWithLength: %lu is not between 1 and maxBufferLength", length);
    if (options != MTL_RESOURCE_STORAGE_SHARED) violation("newBufferWithLength: the fake has only shared storage");
    if (strikes(&faults.fail_alloc)) return NULL;
    size_t rest = PAGE - 1 - (length - 1) % PAGE, room = rest < ROOM ? rest : ROOM;
    void  *memory = sim_allocate(length + room);
    if (!memory) return NULL;
    memset((char *)memory + length, BEHIND, room);
    counters.buffers++;
    struct device_buffer *buffer = object_new(MTLBuffer, sizeof *buffer);
    buffer->memory = memory;
    buffer->bytes = length;
    buffer->room = room;
    return &buffer->object;
}

/* Apple: whole pages, of one region that mmap or vm_allocate gave; who lends them sees to it that they outlive the
 * buffer. Whether they are mapped is asked for here, and again at each dispatch, where a region is given back too
 * early. */
id fake_MTLDevice_newBufferWithBytesNoCopy_length_options_deallocator(id, SEL, void *pages, NSUInteger length,
                                                                      NSUInteger options, const void *deallocator) {
    NSUInteger page = (NSUInteger)sysconf(_SC_PAGESIZE);
    if (!pages || (NSUInteger)pages % page || !length || length % page)
        violation("newBufferWithBytesNoCopy: %lu bytes at %p are no whole pages of %lu", length, pages, page);
    if ((long)length > faults.buffer_max) violation("newBufferWithBytesNoCopy: %lu is above maxBufferLength", length);
    if (options != MTL_RESOURCE_STORAGE_SHARED) violation("newBufferWithBytesNoCopy: only shared storage can be lent");
    if (deallocator) violation("newBufferWithBytesNoCopy: the fake calls no block");
    if (!is_mapped(pages, length)) violation("newBufferWithBytesNoCopy: %p is not mapped", pages);
    if (strikes(&faults.fail_adopt)) return NULL;
    counters.adopted++;
    struct device_buffer *buffer = object_new(MTLBuffer, sizeof *buffer);
    buffer->memory = pages;
    buffer->bytes = length;
    buffer->lent = true;
    return &buffer->object;
}

bool is_mapped(const void *pages, size_t bytes) {
    size_t         page = (size_t)sysconf(_SC_PAGESIZE), count = bytes / page;
    unsigned char *resident = malloc(count);
    if (!resident) violation("the host has no memory left");
    bool mapped = !mincore((void *)pages, bytes, resident);
    free(resident);
    return mapped;
}

void *fake_MTLBuffer_contents(id self, SEL) { return ((struct device_buffer *)self)->memory; }
void  destroy_buffer(id buffer) {
    const struct device_buffer *ending = (struct device_buffer *)buffer;
    if (ending->in_set) violation("a buffer was freed while it is in a residency set");
    for (size_t at = ending->bytes; at < ending->bytes + ending->room; at++)
        if (((unsigned char *)ending->memory)[at] != BEHIND)
            violation("byte %zu of a buffer of %zu was written", at, ending->bytes);
    if (!ending->lent) sim_release(ending->memory);
}

/* ── Libraries ──────────────────────────────────────────────────────────────────────────────────────────────────── */

struct compile_options {
    struct objc_object object;
    NSUInteger         language_version;
    bool               exact_math, precise_functions;
};

struct library {
    struct objc_object  object;
    struct sim_library *code;
};

id fake_NSObject_new(id self, SEL) {
    if (self->class == MTLCompileOptions) return object_new(self->class, sizeof(struct compile_options));
    if (self->class == MTLCaptureDescriptor) return object_new(self->class, sizeof(struct capture_descriptor));
    if (self->class == MTLResidencySetDescriptor) return object_new(self->class, sizeof(struct objc_object));
    if (self->class == MTLFunctionConstantValues) return object_new(self->class, sizeof(struct constants));
    violation("+[%s new]: the fake makes none", class_names[self->class]);
}

void fake_MTLCompileOptions_setLanguageVersion(id self, SEL, NSUInteger version) {
    ((struct compile_options *)self)->language_version = version;
}

void fake_MTLCompileOptions_setMathMode(id self, SEL, NSInteger mode) {
    ((struct compile_options *)self)->exact_math = mode == MTL_MATH_MODE_SAFE;
}

void fake_MTLCompileOptions_setMathFloatingPointFunctions(id self, SEL, NSInteger functions) {
    ((struct compile_options *)self)->precise_functions = functions == MTL_MATH_FUNCTIONS_PRECISE;
}

/* Before macOS 15 it sets both; since then it is deprecated and sets the mode. */
void fake_MTLCompileOptions_setFastMathEnabled(id self, SEL, bool enabled) {
    ((struct compile_options *)self)->exact_math = !enabled;
    if (!faults.math_mode) ((struct compile_options *)self)->precise_functions = !enabled;
}

/* Runs the translator, which prints the path of a library of translated kernels, or what is wrong with the text. */
static struct sim_library *translate(const char *source_path, id *error) {
    static char output[1 << 16];
    const char *mode = getenv("BNB_SIM"), *bun = getenv("BNB_SIM_BUN");
    char        command[4096];
    snprintf(command, sizeof command, "cd '%s' && '%s' test/metal/compile.ts '%s' '%s' 2>&1", SIM_ROOT,
             bun ? bun : "bun", source_path, mode ? mode : "fast");
    FILE *pipe = popen(command, "r");
    if (!pipe) violation("popen: %s", command);
    size_t length = fread(output, 1, sizeof output - 1, pipe);
    output[length] = 0;
    int status = pclose(pipe);
    while (length && output[length - 1] == '\n') output[--length] = 0;
    if (status) return give_error(error, output), NULL;
    struct sim_library *code = sim_library_open(output);
    if (!code) give_error(error, sim_errors());
    return code;
}

static id library_new(const char *source_path, id *error) {
    counters.compiles++;
    struct sim_library *code = translate(source_path, error);
    if (!code) return NULL;
    struct library *library = object_new(MTLLibrary, sizeof *library);
    library->code = code;
    return &library->object;
}

id fake_MTLDevice_newLibraryWithSource_options_error(id, SEL, id source, id given, id *error) {
    const char             *text = text_of(expect(source, NSString, "newLibraryWithSource:"));
    struct compile_options *options = expect(given, MTLCompileOptions, "newLibraryWithSource:");
    if (!options->exact_math) violation("newLibraryWithSource: fast math is on, under which kernels may differ");
    if (!options->precise_functions)
        violation("newLibraryWithSource: math functions are fast, whose last bits and NaN may differ");
    if (options->language_version != MTL_LANGUAGE_VERSION_3_0)
        violation("newLibraryWithSource: the language version is not set to 3.0, which macOS 13 has");
    if (faults.no_kernels || strikes(&faults.fail_compile))
        return give_error(error, "metal/injected.metal:7:1: error: this fault was asked for"), NULL;
    char  path[] = "/tmp/bnb-kernels-XXXXXX";
    int   file = mkstemp(path);
    FILE *out = file < 0 ? NULL : fdopen(file, "w");
    if (!out || fputs(text, out) < 0 || fclose(out)) violation("%s could not be written", path);
    id library = library_new(path, error);
    remove(path);
    return library;
}

/* A metallib for the fake is a text in Metal's language. */
id fake_MTLDevice_newLibraryWithURL_error(id, SEL, id url, id *error) {
    return library_new(text_of(expect(url, NSURL, "newLibraryWithURL:")), error);
}

void destroy_library(id) {} /* its code stays loaded */

/* ── Functions ──────────────────────────────────────────────────────────────────────────────────────────────────── */

struct function {
    struct objc_object       object;
    struct library          *library;
    const struct sim_kernel *kernel;
    struct constants         constants;
};

void fake_MTLFunctionConstantValues_setConstantValue_type_atIndex(id self, SEL, const void *value, NSUInteger type,
                                                                  NSUInteger index) {
    struct constants *constants = (struct constants *)self;
    if (type != MTL_DATA_TYPE_UINT || index >= 32)
        violation("setConstantValue: type %lu at %lu; the driver only has uint, below 32", type, index);
    constants->defined |= 1u << index;
    memcpy(&constants->values[index], value, sizeof(uint32_t));
}

static id function_new(struct library *library, const char *name, const struct constants *constants, id *error) {
    const struct sim_kernel *kernel = sim_library_kernel(library->code, name);
    char                     text[256];
    snprintf(text, sizeof text, "Function %s was not found in the library", name);
    if (!kernel) return give_error(error, text), NULL;
    for (uint32_t i = 0; constants && i < 32; i++) {
        uint32_t bytes = sim_library_constant_bytes(library->code, i);
        snprintf(text, sizeof text, "%s: function constant %u is a uint for the host, but has %u bytes in the kernel",
                 name, i, bytes);
        if (constants->defined >> i & 1 && bytes && bytes != sizeof(uint32_t)) return give_error(error, text), NULL;
    }
    struct function *function = object_new(MTLFunction, sizeof *function);
    function->library = keep(library);
    function->kernel = kernel;
    if (constants) {
        function->constants.defined = constants->defined;
        memcpy(function->constants.values, constants->values, sizeof constants->values);
    }
    return &function->object;
}

id fake_MTLLibrary_newFunctionWithName(id self, SEL, id name) {
    return function_new((struct library *)self, text_of(expect(name, NSString, "newFunctionWithName:")), NULL, NULL);
}

id fake_MTLLibrary_newFunctionWithName_constantValues_error(id self, SEL, id name, id values, id *error) {
    return function_new((struct library *)self, text_of(expect(name, NSString, "newFunctionWithName:")),
                        expect(values, MTLFunctionConstantValues, "newFunctionWithName:constantValues:"), error);
}

void destroy_function(id function) { drop(((struct function *)function)->library); }

/* ── Pipelines ──────────────────────────────────────────────────────────────────────────────────────────────────── */

id fake_MTLDevice_newComputePipelineStateWithFunction_error(id, SEL, id given, id *error) {
    struct function *function = expect(given, MTLFunction, "newComputePipelineStateWithFunction:");
    size_t           shared = sim_kernel_threadgroup_bytes(function->kernel);
    if (shared > SIM_MAX_THREADGROUP_BYTES) {
        char text[256];
        snprintf(text, sizeof text,
                 "%s: Threadgroup memory size (%zu) exceeds the maximum threadgroup memory allowed (%d)",
                 sim_kernel_name(function->kernel), shared, SIM_MAX_THREADGROUP_BYTES);
        return give_error(error, text), NULL;
    }
    struct pipeline_state *pipeline = object_new(MTLComputePipelineState, sizeof *pipeline);
    pipeline->kernel = function->kernel;
    pipeline->constants = function->constants;
    return &pipeline->object;
}

NSUInteger fake_MTLComputePipelineState_maxTotalThreadsPerThreadgroup(id self, SEL) {
    return sim_kernel_max_threads(((struct pipeline_state *)self)->kernel);
}

void destroy_pipeline(id) {}
