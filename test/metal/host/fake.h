/* What the files of the fake Metal share: objects, violations, and the faults that a test can inject.
 *
 * The driver of csrc/gpu/metal/ runs unchanged on top of this library, which stands in for libobjc, Foundation and
 * Metal. It is stricter than Apple's: where Metal would misbehave later, or only under its validation layer, the
 * process
 * says what rule was broken and aborts. */
#ifndef FAKE_METAL_H
#define FAKE_METAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../../csrc/gpu/metal/objc.h"

#define EXPORT __attribute__((visibility("default")))

/* Prints the rule that was broken, and aborts. */
[[noreturn]] void violation(const char *sentence, ...) __attribute__((format(printf, 1, 2)));

/* ── Objects ────────────────────────────────────────────────────────────────────────────────────────────────────── */

enum class_id {
    NSObject,
    NSArray,
    NSString,
    NSError,
    NSURL,
    NSProcessInfo,
    MTLDevice,
    MTLCaptureManager,
    MTLCaptureDescriptor,
    MTLCompileOptions,
    MTLLibrary,
    MTLFunction,
    MTLFunctionConstantValues,
    MTLComputePipelineState,
    MTLBuffer,
    MTLResidencySetDescriptor,
    MTLResidencySet,
    MTLCommandQueue,
    MTLCommandBuffer,
    MTLComputeCommandEncoder,
    CLASSES
};

/* Opens every object. A freed object keeps its header, so that a message to it is recognised. */
struct objc_object {
    enum class_id class;
    bool        is_class;
    _Atomic int references;
};

extern const char *const class_names[CLASSES];
extern _Atomic long      class_live[CLASSES];

/* Frees what an object owns, or NULL. */
extern void (*const class_destroy[CLASSES])(id object);
void destroy_capture_descriptor(id descriptor);
void destroy_library(id library);
void destroy_function(id function);
void destroy_pipeline(id pipeline);
void destroy_buffer(id buffer);
void destroy_residency_set(id set);
void destroy_command_buffer(id buffer);
void destroy_encoder(id encoder);

void *object_new(enum class_id class, size_t size); /* cleared, with one reference */
id    autorelease(void *object);
void *keep(void *object); /* one more reference; nil is fine */
void  drop(void *object); /* one less; nil is fine */
/* The object that a method was given, which must be alive and of this class, or nil where that is allowed. */
void *expect(id object, enum class_id class, const char *method);

id          string_of(const char *text); /* autoreleased */
const char *text_of(id string);
void        give_error(id *error, const char *text); /* autoreleased; `error` may be NULL */

/* An implementation of every message, with the types that the driver calls it by. */
#define PROTOTYPE(class, name, selector, returns, ...)                                                                 \
    returns fake_##class##_##name(id self, SEL command __VA_OPT__(, ) __VA_ARGS__);
METAL_METHODS(PROTOTYPE)
#undef PROTOTYPE

/* While there is a capture: a line of it, such as the label that an object was given. */
void capture_line(const char *what, const char *text);

/* ── What encoders bind ─────────────────────────────────────────────────────────────────────────────────────────── */

/* Constants of Metal for a function, by index. */
struct constants {
    struct objc_object object;
    uint32_t           defined; /* a bit each */
    uint32_t           values[32];
};

struct pipeline_state {
    struct objc_object       object;
    const struct sim_kernel *kernel;
    struct constants         constants;
};

struct capture_descriptor {
    struct objc_object object;
    id                 of, url;
    NSInteger          destination;
};

struct device_buffer {
    struct objc_object object;
    void              *memory;
    size_t             bytes;
    size_t             room;             /* bytes behind the end, which the CPU may read and nobody may write */
    bool               lent;             /* the pages are somebody else's */
    bool               in_set, resident; /* as was asked for, and as of the set's last commit */
};

bool is_mapped(const void *pages, size_t bytes); /* all of it, in this process */

/* ── Faults and counters ────────────────────────────────────────────────────────────────────────────────────────── */

/* FAULT(name, usual value): set by BNB_FAKE_METAL="name=value,…" or fake_metal_set(). Sizes are in bytes. */
#define FAULTS(FAULT)                                                                                                  \
    FAULT(default_device, 1) /* 0: only MTLCopyAllDevices has it */                                                    \
    FAULT(devices, 1)                                                                                                  \
    FAULT(large_chip, 0)    /* 1: the name says Max */                                                                 \
    FAULT(family, 1009)     /* the newest Apple family */                                                              \
    FAULT(os_version, 1500) /* 1301 is macOS 13.1 */                                                                   \
    FAULT(math_mode, 1)     /* 0: as before macOS 15, setMathMode: is unknown */                                       \
    FAULT(residency, 1)     /* 0: as before macOS 15, there are no residency sets */                                   \
    FAULT(working_set, (long)4 << 30)                                                                                  \
    FAULT(buffer_max, (long)1 << 30)                                                                                   \
    FAULT(fail_alloc, 0)        /* the nth newBuffer from now on gives nil */                                          \
    FAULT(fail_adopt, 0)        /* the nth newBufferWithBytesNoCopy from now on gives nil */                           \
    FAULT(fail_queue, 0)        /* the nth newCommandQueue from now on gives nil */                                    \
    FAULT(fail_compile, 0)      /* the nth newLibraryWithSource from now on gives an error */                          \
    FAULT(no_kernels, 0)        /* 1: every newLibraryWithSource gives an error, and operations are the CPU's */       \
    FAULT(fail_commit, 0)       /* the nth command buffer from now on fails, and all that its queue runs after it */   \
    FAULT(polls, 3)             /* so often must a command buffer's status be asked until it runs without a wait */    \
    FAULT(wait_milliseconds, 0) /* how long a command buffer that is waited for takes at least */

extern struct faults {
#define FIELD(name, usual) _Atomic long name;
    FAULTS(FIELD)
#undef FIELD
} faults;

/* True where the countdown reaches its end now. */
bool strikes(_Atomic long *countdown);

extern struct counters {
    _Atomic long compiles, buffers, adopted, commits, dispatches, runs, blocking_waits, barriers, residency_requests;
} counters;

/* For tests: a counter, or how many objects of a class are alive. */
EXPORT long fake_metal_count(const char *name);
EXPORT void fake_metal_set(const char *fault, long value);
/* NULL, or which objects live on that should have died with an autorelease pool. Called at exit too. */
EXPORT const char *fake_metal_report(void);

#endif
