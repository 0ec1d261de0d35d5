/* Names for what Xcode and Instruments show, and captures for them: BNB_LABELS=1, and BNB_CAPTURE=file.gputrace.
 *
 * A name costs messages for every launch, so that without either variable nothing has one. */
#include "metal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static id manager;

/* ── Captures ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static void stop_capture(void) {
    void *pool = metal_enter();
    queue_drain();
    if (manager) MTLCaptureManager_stopCapture(manager);
    manager = NULL;
    metal_leave(pool);
}

#define NO_CAPTURE(...) (fail(BNB_UNSUPPORTED, "Metal is absent: BNB_CAPTURE is set, and " __VA_ARGS__), false)

/* From now until the process ends. */
static bool start_capture(const char *path) {
    size_t length = strlen(path);
    if (length < 10 || strcmp(path + length - 9, ".gputrace"))
        return NO_CAPTURE("%s does not end in .gputrace, as Xcode wants it", path);
    manager = MTLCaptureManager_sharedCaptureManager(objc.getClass("MTLCaptureManager"));
    if (!manager || !MTLCaptureManager_supportsDestination(manager, MTL_CAPTURE_GPU_TRACE_DOCUMENT)) {
        manager = NULL;
        return NO_CAPTURE("this process may not capture: start it with METAL_CAPTURE_ENABLED=1");
    }
    id error = NULL, descriptor = NSObject_new(objc.getClass("MTLCaptureDescriptor"));
    MTLCaptureDescriptor_setCaptureObject(descriptor, metal.device);
    MTLCaptureDescriptor_setDestination(descriptor, MTL_CAPTURE_GPU_TRACE_DOCUMENT);
    MTLCaptureDescriptor_setOutputURL(descriptor, NSURL_fileURLWithPath(objc.getClass("NSURL"), objc_string(path)));
    bool started = MTLCaptureManager_startCaptureWithDescriptor_error(manager, descriptor, &error);
    NSObject_release(descriptor);
    if (started) {
        atexit(stop_capture);
#ifdef __linux__
        at_quick_exit(stop_capture); /* so Bun ends a process there */
#endif
        return true;
    }
    manager = NULL;
    return NO_CAPTURE("Metal refuses to write %s: %s", path, objc_error(error));
}

bool labels_open(void) {
    const char *path = getenv("BNB_CAPTURE"), *labels = getenv("BNB_LABELS");
    bool        captures = path && *path;
    metal.labels = captures || (labels && !strcmp(labels, "1"));
    return !captures || start_capture(path);
}

/* ── Names ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

void label_queue(id queue) {
    if (metal.labels) MTLCommandQueue_setLabel(queue, objc_string("bunsandbytes"));
}

void label_batch(id buffer, id encoder, uint64_t number) {
    if (!metal.labels) return;
    char text[32];
    snprintf(text, sizeof text, "batch %llu", (unsigned long long)number);
    MTLCommandBuffer_setLabel(buffer, objc_string(text));
    MTLComputeCommandEncoder_setLabel(encoder, objc_string(text));
}

void label_memory(id buffer, size_t bytes, bool adopted) {
    if (!metal.labels) return;
    char text[64];
    snprintf(text, sizeof text, "%zu bytes%s", bytes, adopted ? " of a file" : "");
    MTLBuffer_setLabel(buffer, objc_string(text));
}

void label_function(id function, const char *name, const struct pipeline *pipeline) {
    if (!metal.labels) return;
    char text[256];
    int  length = snprintf(text, sizeof text, "%s", name);
    for (uint32_t i = 0; i < pipeline->constant_count && length < (int)sizeof text; i++)
        length += snprintf(text + length, sizeof text - (size_t)length, "%s%u", i ? ", " : " ", pipeline->constants[i]);
    MTLFunction_setLabel(function, objc_string(text));
}

void label_launch(id encoder, const struct launch *launch) {
    if (!metal.labels) return;
    char text[256];
    snprintf(text, sizeof text, "%s/%s %u × %u × %u groups of %u, %zu bytes", launch->family, launch->kernel,
             launch->groups[0], launch->groups[1], launch->groups[2], launch->threads, launch->bytes_moved);
    MTLComputeCommandEncoder_pushDebugGroup(encoder, objc_string(text));
}

void label_launch_end(id encoder) {
    if (metal.labels) MTLComputeCommandEncoder_popDebugGroup(encoder);
}
