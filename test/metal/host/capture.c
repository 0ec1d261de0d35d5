/* The fake MTLCaptureManager: a capture is a text, with a line for each label and each group. And labels as such. */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static FILE *out;

void capture_line(const char *what, const char *text) {
    if (out) fprintf(out, "%s: %s\n", what, text);
}

/* ── Labels ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static void label(id self, id text) {
    capture_line(class_names[self->class], text_of(expect(text, NSString, "setLabel:")));
}

void fake_MTLFunction_setLabel(id self, SEL, id text) { label(self, text); }
void fake_MTLBuffer_setLabel(id self, SEL, id text) { label(self, text); }
void fake_MTLCommandQueue_setLabel(id self, SEL, id text) { label(self, text); }
void fake_MTLCommandBuffer_setLabel(id self, SEL, id text) { label(self, text); }
void fake_MTLComputeCommandEncoder_setLabel(id self, SEL, id text) { label(self, text); }

/* ── Captures ───────────────────────────────────────────────────────────────────────────────────────────────────── */

id fake_MTLCaptureManager_sharedCaptureManager(id, SEL) {
    static struct objc_object manager = {.class = MTLCaptureManager, .references = 1 << 30};
    return &manager;
}

/* As of a process that neither Xcode nor its environment lets capture. */
bool fake_MTLCaptureManager_supportsDestination(id, SEL, NSInteger destination) {
    const char *enabled = getenv("METAL_CAPTURE_ENABLED");
    return destination == 2 && enabled && !strcmp(enabled, "1");
}

void destroy_capture_descriptor(id descriptor) {
    drop(((struct capture_descriptor *)descriptor)->of);
    drop(((struct capture_descriptor *)descriptor)->url);
}

void fake_MTLCaptureDescriptor_setCaptureObject(id self, SEL, id of) {
    ((struct capture_descriptor *)self)->of = keep(expect(of, MTLDevice, "setCaptureObject:"));
}

void fake_MTLCaptureDescriptor_setDestination(id self, SEL, NSInteger destination) {
    ((struct capture_descriptor *)self)->destination = destination;
}

void fake_MTLCaptureDescriptor_setOutputURL(id self, SEL, id url) {
    ((struct capture_descriptor *)self)->url = keep(expect(url, NSURL, "setOutputURL:"));
}

bool fake_MTLCaptureManager_startCaptureWithDescriptor_error(id self, SEL, id given, id *error) {
    struct capture_descriptor *descriptor = expect(given, MTLCaptureDescriptor, "startCaptureWithDescriptor:");
    if (out) violation("startCaptureWithDescriptor: there is a capture already, an NSException");
    if (!descriptor->of || !descriptor->url)
        violation("startCaptureWithDescriptor: of what and into what must be said");
    if (!fake_MTLCaptureManager_supportsDestination(self, NULL, descriptor->destination))
        violation("startCaptureWithDescriptor: the destination %ld is not supported", descriptor->destination);
    const char *path = text_of(descriptor->url);
    if (!access(path, F_OK)) return give_error(error, "the output file already exists"), false;
    out = fopen(path, "w");
    if (!out) return give_error(error, "the output file can't be made"), false;
    return true;
}

void fake_MTLCaptureManager_stopCapture(id, SEL) {
    if (!out) violation("stopCapture: there is no capture");
    fclose(out);
    out = NULL;
}
