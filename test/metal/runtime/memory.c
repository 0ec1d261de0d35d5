// Owns memory between guard pages, and turns the faults that kernels cause into errors.
#define _GNU_SOURCE
#include "internal.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { GUARD = 16 * SIM_PAGE, POISON = 0xFF, TAIL = 0xC5 };

typedef struct allocation {
    struct allocation *next;
    char              *base; // of the mapping: guard, pages, guard
    size_t             mapped;
    char              *memory;
    size_t             bytes;
} allocation;

static allocation *allocations;

static allocation *find(const void *memory) {
    for (allocation *a = allocations; a; a = a->next) {
        if (a->memory == memory) return a;
    }
    return nullptr;
}

bool memory_tail_intact(const void *memory) {
    const allocation *a = find(memory);
    if (!a) return true;
    for (const char *p = a->memory + a->bytes; p < a->base + a->mapped - GUARD; p++) {
        if (*(const unsigned char *)p != TAIL) return false;
    }
    return true;
}

const char *memory_fault_place(uintptr_t address, const sim_launch *launch, char *text, size_t size) {
    for (uint32_t i = 0; i < SIM_MAX_BUFFERS; i++) {
        const buffer_binding *b = &launch->buffers[i];
        const allocation     *a = nullptr;
        for (const allocation *one = allocations; one && b->memory; one = one->next) {
            if ((char *)b->memory >= one->memory && (char *)b->memory < one->memory + one->bytes) a = one;
        }
        if (!a || address < (uintptr_t)a->base || address >= (uintptr_t)a->base + a->mapped) continue;
        snprintf(text, size, "at byte %lld of buffer %u, which holds %zu bytes",
                 (long long)(address - (uintptr_t)b->memory), i, b->bytes);
        return text;
    }
    size_t bytes;
    char  *region = threads_region(&bytes);
    if (address >= (uintptr_t)region && address < (uintptr_t)region + bytes) {
        snprintf(text, size, "past the end of a thread's stack of %d KB", SIM_STACK_BYTES >> 10);
    } else if (address + GUARD >= (uintptr_t)launch->threadgroup_memory &&
               address < (uintptr_t)launch->threadgroup_end + GUARD) {
        snprintf(text, size, "at byte %lld of threadgroup memory",
                 (long long)(address - (uintptr_t)launch->threadgroup_memory));
    } else {
        snprintf(text, size, "at address 0x%llx, which is in no buffer (or a vector that is not aligned)",
                 (unsigned long long)address);
    }
    return text;
}

static struct sigaction before[3];
static stack_t          stack_before;
static const int        signals[3] = {SIGSEGV, SIGBUS, SIGFPE};
static struct {
    uintptr_t address, instruction;
    int       signal;
} fault;

// Runs on the faulting thread's stack pointer's place taken by the main stack: reports, then leaves the launch.
[[noreturn]] static void after_fault(void) {
    char               place[200];
    const void        *where = (const void *)(fault.instruction + 1);
    const sim_library *library = now.launch->kernel->library;
    if (fault.instruction < library->image_begin || fault.instruction >= library->image_end) where = nullptr;
    if (fault.signal == SIGFPE)
        report("integer division", where, nullptr, "by zero, or of the least integer by -1");
    else
        report("bad access", where, nullptr, "%s", memory_fault_place(fault.address, now.launch, place, sizeof place));
    threads_abandon();
}

static void on_fault(int signal, siginfo_t *info, void *context) {
    int which = signal == SIGSEGV ? 0 : signal == SIGBUS ? 1 : 2;
    if (!threads_inside()) { // not ours: the next attempt goes to whoever was asked before
        sigaction(signal, &before[which], nullptr);
        return;
    }
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    fault.address = (uintptr_t)info->si_addr;
    fault.instruction = (uintptr_t)registers[REG_RIP];
    fault.signal = signal;
    static alignas(64) char stack[64 << 10];
    registers[REG_RIP] = (greg_t)(uintptr_t)after_fault;
    registers[REG_RSP] = (greg_t)((uintptr_t)stack + sizeof stack - 64 - 8); // as after a call
}

bool memory_guard_begin(void) {
    static alignas(64) char stack[64 << 10];
    const stack_t           own = {.ss_sp = stack, .ss_size = sizeof stack};
    if (sigaltstack(&own, &stack_before)) return false;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    for (int i = 0; i < 3; i++) sigaction(signals[i], &action, &before[i]);
    return true;
}

void memory_guard_end(void) {
    for (int i = 0; i < 3; i++) sigaction(signals[i], &before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
}

#pragma GCC visibility push(default)

void *sim_allocate(size_t bytes) {
    if (bytes == 0 || bytes > SIZE_MAX / 4) return nullptr;
    size_t      pages = (bytes + SIM_PAGE - 1) & -(size_t)SIM_PAGE, mapped = pages + 2 * (size_t)GUARD;
    allocation *a = malloc(sizeof *a);
    char *base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!a || base == MAP_FAILED || mprotect(base, GUARD, PROT_NONE) ||
        mprotect(base + GUARD + pages, GUARD, PROT_NONE)) {
        if (base != MAP_FAILED) munmap(base, mapped);
        free(a);
        return nullptr;
    }
    char *memory = base + GUARD + ((pages - bytes) & -(size_t)16);
    memset(memory, POISON, bytes);
    memset(memory + bytes, TAIL, (size_t)(base + GUARD + pages - (memory + bytes)));
    *a = (allocation){allocations, base, mapped, memory, bytes};
    allocations = a;
    return memory;
}

void sim_release(void *memory) {
    for (allocation **link = &allocations; *link; link = &(*link)->next) {
        allocation *a = *link;
        if (a->memory != memory) continue;
        *link = a->next;
        munmap(a->base, a->mapped);
        free(a);
        return;
    }
}

void sim_write(void *memory, const void *from, size_t bytes) { memcpy(memory, from, bytes); }

void sim_read(void *to, const void *memory, size_t bytes) { memcpy(to, memory, bytes); }

#pragma GCC visibility pop
