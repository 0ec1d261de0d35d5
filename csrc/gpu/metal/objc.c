/* Loads the Objective-C runtime and Metal, which no header and no library of Apple's is needed for at build time. */
#include "objc.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

struct objc objc;

/* Without CoreGraphics, MTLCreateSystemDefaultDevice gives nil in a process that has no window. */
static const char *const libraries[] = {
    "/usr/lib/libobjc.A.dylib",
    "/System/Library/Frameworks/Foundation.framework/Foundation",
    "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics",
    "/System/Library/Frameworks/Metal.framework/Metal",
};
enum { LIBRARIES = sizeof libraries / sizeof *libraries };

static char reason[512];

static const char *find(void *const handles[], const char *symbol, void *function) {
    for (size_t i = 0; i < LIBRARIES; i++) {
        void *address = dlsym(handles[i], symbol);
        if (address) {
            *(void **)function = address;
            return NULL;
        }
    }
    snprintf(reason, sizeof reason, "%s was not found in this system's Metal", symbol);
    return reason;
}

static const char *load(void *handles[]) {
    const char *other = getenv("BNB_METAL_LIBRARY");
#ifndef __APPLE__
    if (!other || !*other) return "it needs macOS on Apple Silicon, and this is another system";
#endif
    for (size_t i = 0; i < LIBRARIES; i++) {
        handles[i] = dlopen(other && *other ? other : libraries[i], RTLD_NOW | RTLD_LOCAL);
        if (!handles[i]) {
            snprintf(reason, sizeof reason, "a library could not be loaded: %s", dlerror());
            return reason;
        }
    }
    return NULL;
}

const char *objc_load(void) {
    void       *handles[LIBRARIES];
    const char *missing = load(handles);
    SEL (*registerName)(const char *);
    const struct {
        const char *symbol;
        void       *function;
    } symbols[] = {
        {"objc_msgSend", &objc.msgSend},
        {"sel_registerName", &registerName},
        {"objc_getClass", &objc.getClass},
        {"objc_autoreleasePoolPush", &objc.autoreleasePoolPush},
        {"objc_autoreleasePoolPop", &objc.autoreleasePoolPop},
        {"MTLCreateSystemDefaultDevice", &objc.createSystemDefaultDevice},
        {"MTLCopyAllDevices", &objc.copyAllDevices},
    };
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols && !missing; i++)
        missing = find(handles, symbols[i].symbol, symbols[i].function);
    if (missing) return missing;
#define REGISTER(class, name, selector, ...) objc.selectors[SEL_##class##_##name] = registerName(selector);
    METAL_METHODS(REGISTER)
#undef REGISTER
    return NULL;
}
