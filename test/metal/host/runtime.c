/* The fake Objective-C runtime: objects, reference counts, autorelease pools, and objc_msgSend. */
#include "fake.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const class_names[CLASSES] = {
#define NAME(class) [class] = #class
    NAME(NSObject),
    NAME(NSArray),
    NAME(NSString),
    NAME(NSError),
    NAME(NSURL),
    NAME(NSProcessInfo),
    NAME(MTLDevice),
    NAME(MTLCaptureManager),
    NAME(MTLCaptureDescriptor),
    NAME(MTLCompileOptions),
    NAME(MTLLibrary),
    NAME(MTLFunction),
    NAME(MTLFunctionConstantValues),
    NAME(MTLComputePipelineState),
    NAME(MTLBuffer),
    NAME(MTLResidencySetDescriptor),
    NAME(MTLResidencySet),
    NAME(MTLCommandQueue),
    NAME(MTLCommandBuffer),
    NAME(MTLComputeCommandEncoder),
};
_Atomic long class_live[CLASSES];

void violation(const char *sentence, ...) {
    va_list values;
    va_start(values, sentence);
    fputs("fake Metal: ", stderr);
    vfprintf(stderr, sentence, values);
    fputc('\n', stderr);
    va_end(values);
    abort();
}

/* ── Objects ────────────────────────────────────────────────────────────────────────────────────────────────────── */

void *object_new(enum class_id class, size_t size) {
    id object = calloc(1, size);
    if (!object) violation("the host has no memory left");
    object->class = class;
    object->references = 1;
    class_live[class]++;
    return object;
}

static void alive(id object, const char *what) {
    if (object->references <= 0) violation("%s: a %s that was freed", what, class_names[object->class]);
}

void *expect(id object, enum class_id class, const char *method) {
    if (!object) violation("%s: nil, expected a %s", method, class_names[class]);
    alive(object, method);
    if (object->class != class || object->is_class)
        violation("%s: a %s, expected a %s", method, class_names[object->class], class_names[class]);
    return object;
}

void *keep(void *object) {
    if (object) {
        alive(object, "retain");
        ((id)object)->references++;
    }
    return object;
}

void drop(void *dropped) {
    id object = dropped;
    if (!object || object->is_class) return;
    alive(object, "release");
    if (--object->references) return;
    class_live[object->class]--;
    if (class_destroy[object->class]) class_destroy[object->class](object);
}

id   fake_NSObject_retain(id self, SEL) { return keep(self); }
void fake_NSObject_release(id self, SEL) { drop(self); }

/* ── Autorelease pools ──────────────────────────────────────────────────────────────────────────────────────────── */

static _Thread_local struct {
    id    *objects;
    size_t count, capacity, depth;
} pools;

EXPORT void *objc_autoreleasePoolPush(void);
void        *objc_autoreleasePoolPush(void) {
    pools.depth++;
    return (void *)(pools.count + 1);
}

EXPORT void objc_autoreleasePoolPop(void *pool);
void        objc_autoreleasePoolPop(void *pool) {
    size_t to = (size_t)pool - 1;
    if (!pools.depth || to > pools.count) violation("objc_autoreleasePoolPop: this pool is not open on this thread");
    while (pools.count > to) drop(pools.objects[--pools.count]);
    pools.depth--;
}

id autorelease(void *object) {
    if (!pools.depth)
        violation("a %s is autoreleased on a thread that has no pool, and leaks", class_names[((id)object)->class]);
    if (pools.count == pools.capacity) {
        pools.capacity = pools.capacity ? pools.capacity * 2 : 64;
        pools.objects = realloc(pools.objects, pools.capacity * sizeof *pools.objects);
        if (!pools.objects) violation("the host has no memory left");
    }
    return pools.objects[pools.count++] = object;
}

/* ── Messages ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static pthread_mutex_t naming = PTHREAD_MUTEX_INITIALIZER;

EXPORT SEL sel_registerName(const char *name);
SEL        sel_registerName(const char *name) {
    static char  *names[256];
    static size_t count;
    pthread_mutex_lock(&naming);
    size_t i = 0;
    while (i < count && strcmp(names[i], name)) i++;
    if (i == sizeof names / sizeof *names) violation("more than %zu selectors", i);
    if (i == count) names[count++] = strdup(name);
    pthread_mutex_unlock(&naming);
    return (SEL)names[i];
}

static struct method {
    enum class_id class;
    const char   *name;
    void (*function)(void);
    SEL selector;
} methods[] = {
#define METHOD(class, name, selector, ...) {class, selector, (void (*)(void))fake_##class##_##name, NULL},
    METAL_METHODS(METHOD)
#undef METHOD
};
enum { METHODS = sizeof methods / sizeof *methods };

__attribute__((constructor)) static void register_methods(void) {
    for (size_t i = 0; i < METHODS; i++) methods[i].selector = sel_registerName(methods[i].name);
}

static bool is_class_method(const char *selector) {
    static const char *const names[] = {"new", "stringWithUTF8String:", "fileURLWithPath:", "processInfo",
                                        "sharedCaptureManager"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(selector, names[i])) return true;
    return false;
}

static struct method *find_method(id self, SEL selector) {
    for (struct method *method = methods; method < methods + METHODS; method++) {
        if (method->selector != selector || (method->class != self->class && method->class != NSObject)) continue;
        if (method->class == MTLCompileOptions && !faults.math_mode && !strncmp(method->name, "setMath", 7)) continue;
        if (!faults.residency && strstr(method->name, "esidencySet")) continue;
        if (is_class_method(method->name) == self->is_class) return method;
    }
    return NULL;
}

void (*fake_find(id self, SEL selector))(void);
void (*fake_find(id self, SEL selector))(void) {
    const char *name = (const char *)selector;
    if (!self->is_class && self->references <= 0)
        violation("%s was sent to a %s that was freed", name, class_names[self->class]);
    struct method *method = find_method(self, selector);
    if (!method)
        violation("%c[%s %s]: unrecognized selector", self->is_class ? '+' : '-', class_names[self->class], name);
    return method->function;
}

bool fake_NSObject_respondsToSelector(id self, SEL, SEL selector) { return find_method(self, selector); }

/* Finds the method without touching what the caller put into registers for it, and jumps there. To nil: zero. */
__attribute__((naked)) EXPORT void objc_msgSend(void) {
    __asm__("test %rdi, %rdi\n"
            "jz 1f\n"
            "push %rbp\n"
            "mov %rsp, %rbp\n"
            "push %rdi\n push %rsi\n push %rdx\n push %rcx\n push %r8\n push %r9\n"
            "sub $128, %rsp\n"
            "movups %xmm0, (%rsp)\n movups %xmm1, 16(%rsp)\n movups %xmm2, 32(%rsp)\n movups %xmm3, 48(%rsp)\n"
            "movups %xmm4, 64(%rsp)\n movups %xmm5, 80(%rsp)\n movups %xmm6, 96(%rsp)\n movups %xmm7, 112(%rsp)\n"
            "call fake_find\n"
            "mov %rax, %r11\n"
            "movups (%rsp), %xmm0\n movups 16(%rsp), %xmm1\n movups 32(%rsp), %xmm2\n movups 48(%rsp), %xmm3\n"
            "movups 64(%rsp), %xmm4\n movups 80(%rsp), %xmm5\n movups 96(%rsp), %xmm6\n movups 112(%rsp), %xmm7\n"
            "add $128, %rsp\n"
            "pop %r9\n pop %r8\n pop %rcx\n pop %rdx\n pop %rsi\n pop %rdi\n"
            "pop %rbp\n"
            "jmp *%r11\n"
            "1: xor %eax, %eax\n"
            "xorps %xmm0, %xmm0\n"
            "ret\n");
}

EXPORT id objc_getClass(const char *name);
id        objc_getClass(const char *name) {
    static struct objc_object classes[CLASSES];
    for (uint32_t class = 0; class < CLASSES; class++) {
        if (strcmp(name, class_names[class])) continue;
        classes[class].class = class;
        classes[class].is_class = true;
        return &classes[class];
    }
    return NULL;
}
