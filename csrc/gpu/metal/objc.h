/* Objective-C from plain C: the types, and a typed function for every message of selectors.h.
 *
 *     id queue = MTLDevice_newCommandQueue(device);      is      id queue = [device newCommandQueue];
 *
 * What `new…`, `copy…` and MTLCreate… return is ours to release; all else dies with the autorelease pool unless it is
 * retained. objc_msgSend must be called through the exact type of the method: on arm64 a variadic call would put the
 * arguments elsewhere. */
#ifndef BNB_METAL_OBJC_H
#define BNB_METAL_OBJC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "selectors.h"

typedef struct objc_object   *id;
typedef struct objc_selector *SEL;
typedef unsigned long         NSUInteger;
typedef long                  NSInteger;

typedef struct {
    NSUInteger width, height, depth;
} MTLSize;

typedef struct {
    NSInteger major, minor, patch;
} NSOperatingSystemVersion;

/* Values of Apple's enumerations. */
enum {
    MTL_GPU_FAMILY_APPLE1 = 1001,
    MTL_GPU_FAMILY_APPLE7 = 1007, /* M1 */
    MTL_GPU_FAMILY_METAL3 = 5001,
    MTL_LANGUAGE_VERSION_3_0 = 3 << 16,
    MTL_MATH_MODE_SAFE = 0,
    MTL_MATH_FUNCTIONS_PRECISE = 1,
    MTL_DATA_TYPE_UINT = 33,
    MTL_RESOURCE_STORAGE_SHARED = 0,
    MTL_DISPATCH_TYPE_CONCURRENT = 1,
    MTL_BARRIER_SCOPE_BUFFERS = 1,
    MTL_CAPTURE_GPU_TRACE_DOCUMENT = 2,
    MTL_COMMAND_BUFFER_COMPLETED = 4,
    MTL_COMMAND_BUFFER_ERROR = 5,
    MTL_SET_BYTES_MAX = 4096,
};

enum selector {
#define SELECTOR(class, name, ...) SEL_##class##_##name,
    METAL_METHODS(SELECTOR)
#undef SELECTOR
        SELECTORS
};

/* The runtime's entry points, once objc_load has found them. */
extern struct objc {
    void (*msgSend)(void);
    id (*getClass)(const char *name);
    void *(*autoreleasePoolPush)(void);
    void (*autoreleasePoolPop)(void *pool);
    id (*createSystemDefaultDevice)(void);
    id (*copyAllDevices)(void);
    SEL selectors[SELECTORS];
} objc;

/* Loads Apple's libraries, or in their place the one that the environment's BNB_METAL_LIBRARY names. NULL, or the end
 * of a sentence that says what is missing. */
const char *objc_load(void);

#define MESSAGE_ARITY_(_0, _1, _2, _3, _4, n, ...) n
#define MESSAGE_ARITY(...)                         MESSAGE_ARITY_(_ __VA_OPT__(, ) __VA_ARGS__, 4, 3, 2, 1, 0)
#define MESSAGE_PASTE_(a, b)                       a##b
#define MESSAGE_PASTE(a, b)                        MESSAGE_PASTE_(a, b)
#define MESSAGE_TAKES0()
#define MESSAGE_TAKES1(A)          , A a
#define MESSAGE_TAKES2(A, B)       , A a, B b
#define MESSAGE_TAKES3(A, B, C)    , A a, B b, C c
#define MESSAGE_TAKES4(A, B, C, D) , A a, B b, C c, D d
#define MESSAGE_GIVES0
#define MESSAGE_GIVES1 , a
#define MESSAGE_GIVES2 , a, b
#define MESSAGE_GIVES3 , a, b, c
#define MESSAGE_GIVES4 , a, b, c, d
#define MESSAGE(class, name, selector, returns, ...)                                                                   \
    static inline returns class##_##name(                                                                              \
        id self MESSAGE_PASTE(MESSAGE_TAKES, MESSAGE_ARITY(__VA_ARGS__))(__VA_ARGS__)) {                               \
        return ((returns (*)(id, SEL __VA_OPT__(, ) __VA_ARGS__))objc.msgSend)(                                        \
            self, objc.selectors[SEL_##class##_##name] MESSAGE_PASTE(MESSAGE_GIVES, MESSAGE_ARITY(__VA_ARGS__)));      \
    }
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpedantic" /* a function that returns void returns the void of a message */
METAL_METHODS(MESSAGE)
#undef MESSAGE
#pragma clang diagnostic pop

static inline id objc_string(const char *text) {
    return NSString_stringWithUTF8String(objc.getClass("NSString"), text);
}

/* What an NSError says, valid until the pool is popped. */
static inline const char *objc_error(id error) {
    const char *text = error ? NSString_UTF8String(NSError_localizedDescription(error)) : NULL;
    return text ? text : "Metal gave no reason";
}

#endif
