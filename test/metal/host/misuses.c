/* Breaks one rule of Metal a run, to show that the fake Metal notices: `misuses <name>` must not come to its end. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../../../csrc/gpu/kernels.h"
#include "../../../csrc/gpu/metal/objc.h"

static void *pool;
static id    device, queue;

static id pipeline(void) {
    id error = NULL, options = NSObject_new(objc.getClass("MTLCompileOptions"));
    MTLCompileOptions_setLanguageVersion(options, MTL_LANGUAGE_VERSION_3_0);
    MTLCompileOptions_setMathMode(options, MTL_MATH_MODE_SAFE);
    MTLCompileOptions_setMathFloatingPointFunctions(options, MTL_MATH_FUNCTIONS_PRECISE);
    char text[8192];
    snprintf(text, sizeof text, "#include <metal_stdlib>\nusing namespace metal;\n%s", kernel_families[0].text);
    id library = MTLDevice_newLibraryWithSource_options_error(device, objc_string(text), options, &error);
    id values = NSObject_new(objc.getClass("MTLFunctionConstantValues"));
    MTLFunctionConstantValues_setConstantValue_type_atIndex(values, &(uint32_t){0}, MTL_DATA_TYPE_UINT, 0);
    id function = MTLLibrary_newFunctionWithName_constantValues_error(library, objc_string("add"), values, &error);
    id made = MTLDevice_newComputePipelineStateWithFunction_error(device, function, &error);
    if (!made) fprintf(stderr, "%s\n", objc_error(error));
    NSObject_release(function);
    NSObject_release(values);
    NSObject_release(options);
    return made;
}

static id buffer(void) { return MTLDevice_newBufferWithLength_options(device, 4096, MTL_RESOURCE_STORAGE_SHARED); }
static id commands(void) { return MTLCommandQueue_commandBufferWithUnretainedReferences(queue); }

static void dispatch(id encoder, NSUInteger threads) {
    MTLComputeCommandEncoder_dispatchThreadgroups_threadsPerThreadgroup(encoder, (MTLSize){1, 1, 1},
                                                                        (MTLSize){threads, 1, 1});
}

/* All that the kernel "add" needs but its output. */
static id half_encoded(id buffer_of_commands, id x) {
    id encoder =
        MTLCommandBuffer_computeCommandEncoderWithDispatchType(buffer_of_commands, MTL_DISPATCH_TYPE_CONCURRENT);
    MTLComputeCommandEncoder_setComputePipelineState(encoder, pipeline());
    MTLComputeCommandEncoder_setBytes_length_atIndex(encoder, (float[2]){0, 0}, 8, 0);
    MTLComputeCommandEncoder_setBuffer_offset_atIndex(encoder, x, 0, 1);
    return encoder;
}

static void over_release(void) {
    id x = buffer();
    NSObject_release(x);
    NSObject_release(x);
}

static void written_behind_the_end(void) {
    id x = buffer();
    ((char *)MTLBuffer_contents(x))[4096 + 63] = 0;
    NSObject_release(x);
}

static void use_after_free(void) {
    id x = buffer();
    NSObject_release(x);
    MTLBuffer_contents(x);
}

static void unknown_selector(void) { MTLBuffer_contents(queue); }
static void class_message_to_an_object(void) { NSString_stringWithUTF8String(objc_string("a"), "b"); }
static void null_string(void) { objc_string(NULL); }
static void wrong_class(void) { NSURL_fileURLWithPath(objc.getClass("NSURL"), queue); }

static void no_pool(void) {
    objc.autoreleasePoolPop(pool);
    objc_string("nobody frees this");
}

static void pool_popped_twice(void) {
    objc.autoreleasePoolPop(pool);
    objc.autoreleasePoolPop(pool);
}

static void empty_buffer(void) { MTLDevice_newBufferWithLength_options(device, 0, MTL_RESOURCE_STORAGE_SHARED); }

static id lent(void *pages, NSUInteger bytes) {
    return MTLDevice_newBufferWithBytesNoCopy_length_options_deallocator(device, pages, bytes,
                                                                         MTL_RESOURCE_STORAGE_SHARED, NULL);
}

static void *some_pages(void) {
    return mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void half_a_page(void) { lent(some_pages(), 2048); }

static void fast_math(void) {
    id options = NSObject_new(objc.getClass("MTLCompileOptions"));
    MTLDevice_newLibraryWithSource_options_error(device, objc_string(""), options, NULL);
}

static void fast_functions(void) {
    id options = NSObject_new(objc.getClass("MTLCompileOptions"));
    MTLCompileOptions_setMathMode(options, MTL_MATH_MODE_SAFE);
    MTLCompileOptions_setLanguageVersion(options, MTL_LANGUAGE_VERSION_3_0);
    MTLDevice_newLibraryWithSource_options_error(device, objc_string(""), options, NULL);
}

static void language_version(void) {
    id options = NSObject_new(objc.getClass("MTLCompileOptions"));
    MTLCompileOptions_setMathMode(options, MTL_MATH_MODE_SAFE);
    MTLCompileOptions_setMathFloatingPointFunctions(options, MTL_MATH_FUNCTIONS_PRECISE);
    MTLDevice_newLibraryWithSource_options_error(device, objc_string(""), options, NULL);
}

static void commit_twice(void) {
    id batch = commands();
    MTLCommandBuffer_commit(batch);
    MTLCommandBuffer_commit(batch);
}

static void commit_while_encoding(void) {
    id batch = commands();
    MTLCommandBuffer_computeCommandEncoderWithDispatchType(batch, MTL_DISPATCH_TYPE_CONCURRENT);
    MTLCommandBuffer_commit(batch);
}

static void two_encoders(void) {
    id batch = commands();
    MTLCommandBuffer_computeCommandEncoderWithDispatchType(batch, MTL_DISPATCH_TYPE_CONCURRENT);
    MTLCommandBuffer_computeCommandEncoderWithDispatchType(batch, MTL_DISPATCH_TYPE_CONCURRENT);
}

static void encode_after_commit(void) {
    id batch = commands();
    MTLCommandBuffer_commit(batch);
    MTLCommandBuffer_computeCommandEncoderWithDispatchType(batch, MTL_DISPATCH_TYPE_CONCURRENT);
}

static void encode_after_end(void) {
    id encoder = MTLCommandBuffer_computeCommandEncoderWithDispatchType(commands(), MTL_DISPATCH_TYPE_CONCURRENT);
    MTLComputeCommandEncoder_endEncoding(encoder);
    dispatch(encoder, 32);
}

static void no_end(void) {
    MTLCommandBuffer_computeCommandEncoderWithDispatchType(commands(), MTL_DISPATCH_TYPE_CONCURRENT);
    objc.autoreleasePoolPop(pool);
}

static void wait_without_commit(void) { MTLCommandBuffer_waitUntilCompleted(commands()); }
static void no_pipeline(void) {
    dispatch(MTLCommandBuffer_computeCommandEncoderWithDispatchType(commands(), MTL_DISPATCH_TYPE_CONCURRENT), 32);
}
static void unbound(void) { dispatch(half_encoded(commands(), buffer()), 32); }

static void bound_for_an_earlier_dispatch(void) {
    id x = buffer(), encoder = half_encoded(commands(), x);
    MTLComputeCommandEncoder_setBuffer_offset_atIndex(encoder, x, 0, 2);
    dispatch(encoder, 32);
    dispatch(encoder, 32);
}

static void too_many_threads(void) {
    id x = buffer(), encoder = half_encoded(commands(), x);
    MTLComputeCommandEncoder_setBuffer_offset_atIndex(encoder, x, 0, 2);
    dispatch(encoder, 2048);
}

static void long_bytes(void) {
    static char bytes[5000];
    MTLComputeCommandEncoder_setBytes_length_atIndex(half_encoded(commands(), NULL), bytes, sizeof bytes, 0);
}

static void offset_past_the_end(void) {
    MTLComputeCommandEncoder_setBuffer_offset_atIndex(half_encoded(commands(), NULL), buffer(), 4096, 2);
}

static void pages_given_back_too_early(void) {
    void *pages = some_pages();
    id    batch = commands(), encoder = half_encoded(batch, lent(pages, 1 << 16));
    MTLComputeCommandEncoder_setBuffer_offset_atIndex(encoder, buffer(), 0, 2);
    dispatch(encoder, 32);
    MTLComputeCommandEncoder_endEncoding(encoder);
    MTLCommandBuffer_commit(batch);
    munmap(pages, 1 << 16);
    MTLCommandBuffer_waitUntilCompleted(batch);
}

static void freed_too_early(void) {
    id batch = commands(), x = buffer(), encoder = half_encoded(batch, x);
    MTLComputeCommandEncoder_setBuffer_offset_atIndex(encoder, x, 0, 2);
    dispatch(encoder, 32);
    MTLComputeCommandEncoder_endEncoding(encoder);
    MTLCommandBuffer_commit(batch);
    NSObject_release(x);
    MTLCommandBuffer_waitUntilCompleted(batch);
}

static void too_many_under_way(void) {
    for (int i = 0; i < 65; i++) MTLCommandBuffer_commit(commands());
}

/* Two dispatches of which the second reads what the first writes, in a concurrent encoder: the fake runs it first. */
static void forgotten_barrier(void) {
    id batch = commands(), x = buffer(), y = buffer(), z = buffer(), encoder = half_encoded(batch, x);
    struct {
        uint32_t count;
        float    value;
    } args = {32, 1};
    memset(MTLBuffer_contents(x), 0, 128);
    for (int i = 0; i < 2; i++) {
        MTLComputeCommandEncoder_setBytes_length_atIndex(encoder, &args, sizeof args, 0);
        MTLComputeCommandEncoder_setBuffer_offset_atIndex(encoder, i ? y : x, 0, 1);
        MTLComputeCommandEncoder_setBuffer_offset_atIndex(encoder, i ? z : y, 0, 2);
        dispatch(encoder, 32);
    }
    MTLComputeCommandEncoder_endEncoding(encoder);
    MTLCommandBuffer_commit(batch);
    MTLCommandBuffer_waitUntilCompleted(batch);
    if (*(float *)MTLBuffer_contents(y) != 1) return;
    if (*(float *)MTLBuffer_contents(z) == 2) return;
    fprintf(stderr, "z was made of y before y was written\n");
    abort();
}

static void not_resident(void) {
    id batch = commands(), x = buffer(), y = buffer(), encoder = half_encoded(batch, x);
    id descriptor = NSObject_new(objc.getClass("MTLResidencySetDescriptor"));
    id set = MTLDevice_newResidencySetWithDescriptor_error(device, descriptor, NULL);
    MTLCommandQueue_addResidencySet(queue, set);
    MTLResidencySet_addAllocation(set, x);
    MTLResidencySet_commit(set);
    MTLResidencySet_addAllocation(set, y); /* and not committed */
    MTLComputeCommandEncoder_setBuffer_offset_atIndex(encoder, y, 0, 2);
    dispatch(encoder, 32);
    MTLComputeCommandEncoder_endEncoding(encoder);
    MTLCommandBuffer_commit(batch);
    MTLCommandBuffer_waitUntilCompleted(batch);
}

static void freed_while_resident(void) {
    id x = buffer(), descriptor = NSObject_new(objc.getClass("MTLResidencySetDescriptor"));
    MTLResidencySet_addAllocation(MTLDevice_newResidencySetWithDescriptor_error(device, descriptor, NULL), x);
    NSObject_release(x);
}

static void leak(void) {
    NSObject_retain(objc_string("forgotten"));
    objc.autoreleasePoolPop(pool);
    exit(0);
}

static const struct {
    const char *name;
    void (*run)(void);
} misuses[] = {
#define MISUSE(name) {#name, name}
    MISUSE(over_release),
    MISUSE(written_behind_the_end),
    MISUSE(use_after_free),
    MISUSE(unknown_selector),
    MISUSE(class_message_to_an_object),
    MISUSE(null_string),
    MISUSE(wrong_class),
    MISUSE(no_pool),
    MISUSE(pool_popped_twice),
    MISUSE(empty_buffer),
    MISUSE(half_a_page),
    MISUSE(pages_given_back_too_early),
    MISUSE(fast_math),
    MISUSE(fast_functions),
    MISUSE(language_version),
    MISUSE(commit_twice),
    MISUSE(commit_while_encoding),
    MISUSE(two_encoders),
    MISUSE(encode_after_commit),
    MISUSE(encode_after_end),
    MISUSE(no_end),
    MISUSE(wait_without_commit),
    MISUSE(no_pipeline),
    MISUSE(unbound),
    MISUSE(bound_for_an_earlier_dispatch),
    MISUSE(too_many_threads),
    MISUSE(long_bytes),
    MISUSE(offset_past_the_end),
    MISUSE(freed_too_early),
    MISUSE(too_many_under_way),
    MISUSE(forgotten_barrier),
    MISUSE(not_resident),
    MISUSE(freed_while_resident),
    MISUSE(leak),
};

int main(int argc, char **argv) {
    const char *missing = objc_load();
    if (missing) return fprintf(stderr, "%s\n", missing), 2;
    pool = objc.autoreleasePoolPush();
    device = objc.createSystemDefaultDevice();
    queue = MTLDevice_newCommandQueue(device);
    for (size_t i = 0; argc == 2 && i < sizeof misuses / sizeof *misuses; i++) {
        if (strcmp(argv[1], misuses[i].name)) continue;
        misuses[i].run();
        _Exit(0); /* nothing was noticed */
    }
    return 2;
}
