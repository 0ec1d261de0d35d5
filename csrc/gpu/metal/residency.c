/* What macOS is to keep in memory for the GPU: since macOS 15, all our buffers are in one residency set.
 *
 * Without it the system takes a model's gigabytes away from the GPU after about a second of idleness, and brings them
 * back, page by page, when the next command buffer wants them. MLX and llama.cpp keep such sets too. The pool's limit
 * is the
 * set's: it never holds more than the device recommends for one process. */
#include "metal.h"

static struct {
    id   set; /* nil before macOS 15 */
    bool changed;
} residency;

void residency_open(void) {
    if (!NSObject_respondsToSelector(metal.device, objc.selectors[SEL_MTLDevice_newResidencySetWithDescriptor_error]))
        return;
    id descriptor = NSObject_new(objc.getClass("MTLResidencySetDescriptor"));
    residency.set = MTLDevice_newResidencySetWithDescriptor_error(metal.device, descriptor, NULL);
    NSObject_release(descriptor);
}

void residency_attach(id queue) {
    if (residency.set) MTLCommandQueue_addResidencySet(queue, residency.set);
}

void residency_add(id buffer) {
    if (!residency.set) return;
    MTLResidencySet_addAllocation(residency.set, buffer);
    residency.changed = true;
}

void residency_remove(id buffer) {
    if (!residency.set) return;
    MTLResidencySet_removeAllocation(residency.set, buffer);
    residency.changed = true;
}

void residency_settle(void) {
    if (!residency.changed) return;
    MTLResidencySet_commit(residency.set);
    MTLResidencySet_requestResidency(residency.set);
    residency.changed = false;
}
