// Owns what the runtime's files share: the running launch, its threads, and the calls between the files.
#pragma once
#include "module.h"
#include "simulator.h"

enum { SIM_STACK_BYTES = 64 << 10, SIM_PAGE = 4096, SIM_MAX_GAP = 64, SIM_MAX_VARIABLES = 64, SIM_MAX_CONSTANTS = 64 };

struct sim_kernel {
    const sim_kernel_entry *entry;
    sim_library            *library;
    size_t                  threadgroup_bytes;
    sim_variable           *variables[SIM_MAX_VARIABLES];
    uint32_t                variable_count;
};

struct sim_library {
    char             *path;
    const sim_module *module;
    uintptr_t         image_begin, image_end;
    sim_kernel       *kernels;
    struct line_row  *lines; // the decoded line table, sorted by address; NULL until first needed
    size_t            line_count;
};

typedef struct {
    void    *memory;
    size_t   bytes;
    uint32_t flags;
    bool     owned; // by the launch, from sim_launch_bytes
} buffer_binding;

struct sim_launch {
    const sim_kernel *kernel;
    buffer_binding    buffers[SIM_MAX_BUFFERS];
    size_t            threadgroup[SIM_MAX_BUFFERS];
    struct {
        unsigned char value[8];
        size_t        bytes;
    } constants[SIM_MAX_CONSTANTS]; // in the order of the library's table
    char  *threadgroup_memory;      // where the running launch's variables and arguments start
    char  *threadgroup_end;         // where a guard page follows them
    size_t threadgroup_most;        // bytes of them that are allowed
};

typedef enum { THREAD_READY, THREAD_AT_SIMD, THREAD_AT_BARRIER, THREAD_DONE } thread_state;

typedef struct {
    void        *stack_pointer;
    thread_state state;
    uint32_t     index;
    uint32_t     flags; // of the barrier it waits at
    sim_site     site;
    sim_combine  combine;
    sim_u32      values[SIM_VALUE_COUNT];
} thread;

// What the checker needs to know about the thread that runs.
typedef struct {
    const sim_launch *launch;
    uint32_t          group[3];
    uint32_t          thread;
    uint32_t          epoch[3];                                   // by memory flag: raised by threadgroup barriers
    uint32_t          group_start;                                // the epochs at which this threadgroup began
    uint32_t          simd_epoch[3][SIM_MAX_THREADS / SIM_LANES]; // by memory flag: raised by simdgroup barriers
} execution;

extern execution now;

// threads.c
int               threads_prepare(void);         // 0, or -1 without memory
void             *threads_region(size_t *bytes); // memory of stacks and thread records, which kernels may touch freely
void            **threads_slots(void);           // the kernel's parameter slots, inside that region
void              threads_shuffle_lanes(uint32_t seed);
bool              threads_run_group(const sim_kernel *kernel, const uint32_t grid[3], const uint32_t group[3],
                                    const uint32_t position[3], uint32_t seed, bool lax);
[[noreturn]] void threads_abandon(void); // stops the launch from inside a thread
bool              threads_inside(void);  // whether a kernel's thread is running now
const thread     *threads_current(void);

// memory.c
typedef void (*fault_action)(void);
bool        memory_guard_begin(void); // catches faults until memory_guard_end
void        memory_guard_end(void);
const char *memory_fault_place(uintptr_t address, const sim_launch *launch, char *text, size_t size);
bool        memory_tail_intact(const void *memory); // whether nobody wrote between a buffer's end and its guard page

// checker.c
int  checker_begin(const sim_launch *launch);
void checker_begin_group(void);
void checker_end(void);

// report.c
void report_clear(void);
int  report_count(void);
// kind and text of one error. `where` is an address in the library, or NULL if the site says where, or neither is
// known.
void report(const char *kind, const void *where, const sim_site *site, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
// "file:line" of an address in the library.
const char *report_place(const void *where, char *text, size_t size);
int         report_failure(const char *format, ...) __attribute__((format(printf, 1, 2))); // sets sim_errors; -1
