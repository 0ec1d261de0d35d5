/* The few classes of Foundation that the driver needs, and the faults and counters of the tests. */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Strings, errors and URLs are all a text. */
struct text {
    struct objc_object object;
    char              *text;
};

struct array {
    struct objc_object object;
    id                 only;
};

static void destroy_text(id object) { free(((struct text *)object)->text); }
static void destroy_array(id object) { drop(((struct array *)object)->only); }

void (*const class_destroy[CLASSES])(id) = {
    [NSString] = destroy_text,
    [NSError] = destroy_text,
    [NSURL] = destroy_text,
    [NSArray] = destroy_array,
    [MTLCaptureDescriptor] = destroy_capture_descriptor,
    [MTLLibrary] = destroy_library,
    [MTLFunction] = destroy_function,
    [MTLComputePipelineState] = destroy_pipeline,
    [MTLBuffer] = destroy_buffer,
    [MTLResidencySet] = destroy_residency_set,
    [MTLCommandBuffer] = destroy_command_buffer,
    [MTLComputeCommandEncoder] = destroy_encoder,
};

static void *text_new(enum class_id class, const char *text) {
    struct text *object = object_new(class, sizeof *object);
    object->text = strdup(text);
    return object;
}

id string_of(const char *text) { return autorelease(text_new(NSString, text)); }

const char *text_of(id string) {
    struct text *object = (struct text *)string;
    return object->text;
}

void give_error(id *error, const char *text) {
    if (error) *error = autorelease(text_new(NSError, text));
}

id fake_NSString_stringWithUTF8String(id, SEL, const char *text) {
    if (!text) violation("stringWithUTF8String: NULL throws an NSException");
    return string_of(text);
}

const char *fake_NSString_UTF8String(id self, SEL) { return text_of(self); }
id          fake_NSError_localizedDescription(id self, SEL) { return string_of(text_of(self)); }

id fake_NSURL_fileURLWithPath(id, SEL, id path) {
    return autorelease(text_new(NSURL, text_of(expect(path, NSString, "fileURLWithPath:"))));
}

NSUInteger fake_NSArray_count(id self, SEL) { return ((struct array *)self)->only != NULL; }

id fake_NSArray_objectAtIndex(id self, SEL, NSUInteger index) {
    if (index >= fake_NSArray_count(self, NULL)) violation("objectAtIndex: %lu is past the end, an NSException", index);
    return ((struct array *)self)->only;
}

/* ── The system ─────────────────────────────────────────────────────────────────────────────────────────────────── */

id fake_NSProcessInfo_processInfo(id, SEL) {
    static struct objc_object process = {.class = NSProcessInfo, .references = 1 << 30};
    return &process;
}

id fake_NSProcessInfo_operatingSystemVersionString(id, SEL) {
    char text[64];
    snprintf(text, sizeof text, "Version %ld.%ld (Build 22A1)", faults.os_version / 100, faults.os_version % 100);
    return string_of(text);
}

bool fake_NSProcessInfo_isOperatingSystemAtLeastVersion(id, SEL, NSOperatingSystemVersion least) {
    return faults.os_version >= least.major * 100 + least.minor;
}

static id device(void) {
    static struct objc_object only = {.class = MTLDevice, .references = 1};
    return keep(&only);
}

EXPORT id MTLCreateSystemDefaultDevice(void);
id        MTLCreateSystemDefaultDevice(void) { return faults.devices && faults.default_device ? device() : NULL; }

EXPORT id MTLCopyAllDevices(void);
id        MTLCopyAllDevices(void) {
    struct array *array = object_new(NSArray, sizeof *array);
    array->only = faults.devices ? device() : NULL;
    return &array->object;
}

/* ── Faults and counters ────────────────────────────────────────────────────────────────────────────────────────── */

struct faults faults = {
#define FIELD(name, usual) .name = usual,
    FAULTS(FIELD)
#undef FIELD
};
struct counters counters;

bool strikes(_Atomic long *countdown) { return *countdown > 0 && --*countdown == 0; }

void fake_metal_set(const char *fault, long value) {
#define SET(name, usual)                                                                                               \
    if (!strcmp(fault, #name)) {                                                                                       \
        faults.name = value;                                                                                           \
        return;                                                                                                        \
    }
    FAULTS(SET)
#undef SET
    violation("BNB_FAKE_METAL: there is no fault \"%s\"", fault);
}

long fake_metal_count(const char *name) {
#define COUNT(counter)                                                                                                 \
    if (!strcmp(name, #counter)) return counters.counter;
    COUNT(compiles)
    COUNT(buffers)
    COUNT(adopted)
    COUNT(commits)
    COUNT(dispatches)
    COUNT(runs)
    COUNT(blocking_waits)
    COUNT(barriers)
    COUNT(residency_requests)
#undef COUNT
    for (uint32_t class = 0; class < CLASSES; class++)
        if (!strcmp(name, class_names[class])) return class_live[class];
    violation("fake_metal_count: there is no counter \"%s\"", name);
}

/* Nothing of these outlives a call of the driver. */
const char *fake_metal_report(void) {
    static const enum class_id transient[] = {NSArray,           NSString,
                                              NSError,           NSURL,
                                              MTLCompileOptions, MTLResidencySetDescriptor,
                                              MTLFunction,       MTLFunctionConstantValues};
    static char                text[1024];
    size_t                     length = 0;
    for (size_t i = 0; i < sizeof transient / sizeof *transient; i++) {
        long live = class_live[transient[i]];
        if (live)
            length += (size_t)snprintf(text + length, sizeof text - length, "%ld %s leaked. ", live,
                                       class_names[transient[i]]);
    }
    return length ? text : NULL;
}

static void report_at_exit(void) {
    const char *leaks = fake_metal_report();
    if (!leaks) return;
    fprintf(stderr, "fake Metal: %s\n", leaks);
    _exit(86);
}

__attribute__((constructor)) static void read_faults(void) {
    atexit(report_at_exit);
    at_quick_exit(report_at_exit); /* so Bun ends a process */
    const char *given = getenv("BNB_FAKE_METAL");
    char       *text = given ? strdup(given) : NULL, *rest = text;
    for (char *fault; (fault = strsep(&rest, ","));) {
        char *value = strchr(fault, '=');
        if (!value) violation("BNB_FAKE_METAL: \"%s\" is not name=value", fault);
        *value = 0;
        fake_metal_set(fault, atol(value + 1));
    }
    free(text);
}
