// Owns libraries, kernels and launches: what is bound, whether that is legal, and the order of the threadgroups.
#define _GNU_SOURCE
#include "internal.h"
#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <xmmintrin.h>

static size_t align_up(size_t value, size_t alignment) { return (value + alignment - 1) / alignment * alignment; }

// Lays out a kernel's threadgroup variables, first as a GPU would (for the size it reports), then with gaps between
// them, so that an access past one does not land in the next.
static int place_variables(sim_kernel *kernel) {
    size_t with_gaps = 0;
    for (sim_variable *v = *kernel->library->module->variables; v; v = v->next) {
        if (v->function != kernel->entry->function) continue;
        if (kernel->variable_count == SIM_MAX_VARIABLES) {
            return report_failure("kernel %s has more than %d threadgroup variables", kernel->entry->name,
                                  SIM_MAX_VARIABLES);
        }
        size_t alignment = v->alignment < SIM_THREADGROUP_ALIGNMENT ? SIM_THREADGROUP_ALIGNMENT : v->alignment;
        kernel->threadgroup_bytes = align_up(kernel->threadgroup_bytes, v->alignment) + v->bytes;
        v->offset = align_up(with_gaps, alignment);
        with_gaps = v->offset + v->bytes + SIM_MAX_GAP;
        kernel->variables[kernel->variable_count++] = v;
    }
    return 0;
}

// The library's first and last address, for telling its constants from wild pointers.
static void find_image(sim_library *library, struct link_map *map) {
    const ElfW(Ehdr) *elf = (const ElfW(Ehdr) *)map->l_addr;
    const ElfW(Phdr) *segments = (const ElfW(Phdr) *)(map->l_addr + elf->e_phoff);
    library->image_begin = map->l_addr;
    for (int i = 0; i < elf->e_phnum; i++) {
        uintptr_t end = map->l_addr + segments[i].p_vaddr + segments[i].p_memsz;
        if (segments[i].p_type == PT_LOAD && end > library->image_end) library->image_end = end;
    }
}

static void **parameter_slot(const sim_kernel *kernel, uint32_t kind, uint32_t index) {
    for (uint32_t i = 0; i < kernel->entry->parameter_count; i++) {
        const sim_parameter *p = &kernel->entry->parameters[i];
        if (p->kind == kind && p->index == index) return &threads_slots()[i];
    }
    return nullptr;
}

static const sim_parameter *parameter(const sim_kernel *kernel, uint32_t kind, uint32_t index) {
    for (uint32_t i = 0; i < kernel->entry->parameter_count; i++) {
        const sim_parameter *p = &kernel->entry->parameters[i];
        if (p->kind == kind && p->index == index) return p;
    }
    return nullptr;
}

static uint32_t parameter_mask(const sim_kernel *kernel, uint32_t kind) {
    uint32_t mask = 0;
    for (uint32_t i = 0; i < kernel->entry->parameter_count; i++) {
        const sim_parameter *p = &kernel->entry->parameters[i];
        if (p->kind == kind) mask |= 1u << p->index;
    }
    return mask;
}

static const sim_constant_entry *constant(const sim_library *library, uint32_t index) {
    for (uint32_t i = 0; i < library->module->constant_count; i++) {
        if (library->module->constants[i].index == index) return &library->module->constants[i];
    }
    return nullptr;
}

// Puts the launch's function constants into the library's globals.
static int set_constants(const sim_launch *launch) {
    const sim_kernel *kernel = launch->kernel;
    const sim_module *module = kernel->library->module;
    for (uint32_t i = 0; i < module->constant_count; i++) {
        const sim_constant_entry *c = &module->constants[i];
        *c->defined = launch->constants[i].bytes != 0;
        memset(c->value, 0, c->bytes);
        if (*c->defined) memcpy(c->value, launch->constants[i].value, c->bytes);
    }
    for (uint32_t i = 0; i < kernel->entry->constant_count; i++) {
        const sim_constant_entry *c = constant(kernel->library, kernel->entry->constants[i]);
        if (!*c->defined) {
            return report_failure("kernel %s needs the function constant %s (index %u), which is not set",
                                  kernel->entry->name, c->name, c->index);
        }
    }
    module->derive_constants();
    return 0;
}

// Gives every buffer and threadgroup parameter its address. The threadgroup's memory ends at a guard page.
static int bind(sim_launch *launch) {
    const sim_kernel *kernel = launch->kernel;
    for (uint32_t i = 0; i < kernel->entry->parameter_count; i++) {
        const sim_parameter *p = &kernel->entry->parameters[i];
        if (p->kind != SIM_PARAMETER_BUFFER) continue;
        const buffer_binding *b = &launch->buffers[p->index];
        if (!b->memory)
            return report_failure("kernel %s: nothing is bound at buffer %u (%s)", kernel->entry->name, p->index,
                                  p->name);
        if (b->bytes < p->bytes) {
            return report_failure("kernel %s: buffer %u (%s) holds %zu bytes, but the kernel reads %zu",
                                  kernel->entry->name, p->index, p->name, b->bytes, p->bytes);
        }
        threads_slots()[i] = b->memory;
    }
    const size_t alignment =
        launch->threadgroup_most > SIM_MAX_THREADGROUP_BYTES ? SIM_TILE_ALIGNMENT : SIM_THREADGROUP_ALIGNMENT;
    size_t counted = kernel->threadgroup_bytes, used = 0;
    for (uint32_t i = 0; i < kernel->variable_count; i++)
        used = kernel->variables[i]->offset + kernel->variables[i]->bytes + SIM_MAX_GAP;
    size_t offsets[SIM_MAX_BUFFERS];
    for (uint32_t i = 0; i < SIM_MAX_BUFFERS; i++) {
        const sim_parameter *p = parameter(kernel, SIM_PARAMETER_THREADGROUP, i);
        if (!p) continue;
        if (!launch->threadgroup[i]) {
            return report_failure("kernel %s: no length is set for threadgroup argument %u (%s)", kernel->entry->name,
                                  i, p->name);
        }
        counted = align_up(counted, SIM_THREADGROUP_ALIGNMENT) + launch->threadgroup[i];
        offsets[i] = align_up(used, alignment);
        used = align_up(offsets[i] + launch->threadgroup[i] + SIM_MAX_GAP, SIM_THREADGROUP_ALIGNMENT);
    }
    if (counted > launch->threadgroup_most) {
        return report_failure("kernel %s: %zu bytes of threadgroup memory, at most %zu are there", kernel->entry->name,
                              counted, launch->threadgroup_most);
    }
    size_t last_gap = used ? SIM_MAX_GAP : 0; // the guard page takes its place
    launch->threadgroup_memory = launch->threadgroup_end - align_up(used - last_gap, alignment);
    for (uint32_t i = 0; i < SIM_MAX_BUFFERS; i++) {
        void **slot = parameter_slot(kernel, SIM_PARAMETER_THREADGROUP, i);
        if (slot) *slot = launch->threadgroup_memory + offsets[i];
    }
    return 0;
}

static void fill_threadgroup_memory(const char *begin, const char *end) {
    memset((char *)begin, 0xFF, (size_t)(end - begin));
}

// The p-th of count threadgroups, in order or shuffled: a walk with a step that shares no factor with count. Products
// fit, since no run of a simulator has 2^32 of them.
static uint64_t walk(uint64_t p, uint64_t count, uint32_t seed) {
    if (!seed) return p;
    uint64_t step = (uint64_t)seed * 2654435761u % count | 1;
    for (uint64_t a = step, b = count;;) {
        while (b) {
            uint64_t r = a % b;
            a = b;
            b = r;
        }
        if (a == 1) break;
        a = ++step;
        b = count;
    }
    return (p * step + seed) % count;
}

static void run_groups(const sim_launch *launch, const uint32_t grid[3], const uint32_t group[3], uint32_t seed,
                       bool lax) {
    bool     checked = launch->kernel->library->module->checked;
    uint64_t total = (uint64_t)grid[0] * grid[1] * grid[2];
    for (uint64_t p = 0; p < total; p++) {
        uint64_t number = walk(p, total, seed);
        now.group[0] = (uint32_t)(number % grid[0]);
        now.group[1] = (uint32_t)(number / grid[0] % grid[1]);
        now.group[2] = (uint32_t)(number / grid[0] / grid[1]);
        uint32_t start = now.epoch[SIM_MEM_DEVICE] > now.epoch[SIM_MEM_THREADGROUP] ? now.epoch[SIM_MEM_DEVICE]
                                                                                    : now.epoch[SIM_MEM_THREADGROUP];
        now.group_start = now.epoch[SIM_MEM_DEVICE] = now.epoch[SIM_MEM_THREADGROUP] = start + 1;
        fill_threadgroup_memory(launch->threadgroup_memory, launch->threadgroup_end);
        if (checked) checker_begin_group();
        if (!threads_run_group(launch->kernel, grid, group, now.group, seed, lax)) return;
    }
}

// As a GPU of Apple's does with fp32 in all its modes: subnormal operands and results count as zeros of their sign.
static void flush_subnormals(bool on) {
    const unsigned both = _MM_FLUSH_ZERO_ON | 0x40; // DAZ
    _mm_setcsr(on ? _mm_getcsr() | both : _mm_getcsr() & ~both);
}

static int check_sizes(const sim_kernel *kernel, const uint32_t grid[3], const uint32_t group[3]) {
    uint32_t most = kernel->entry->max_threads ? kernel->entry->max_threads : SIM_MAX_THREADS;
    uint64_t threads = (uint64_t)group[0] * group[1] * group[2], groups = (uint64_t)grid[0] * grid[1] * grid[2];
    if (group[0] > SIM_MAX_THREADS || group[1] > SIM_MAX_THREADS || group[2] > SIM_MAX_THREADS || threads == 0 ||
        threads > most) {
        return report_failure("kernel %s: a threadgroup of %u x %u x %u threads, 1 to %u are allowed",
                              kernel->entry->name, group[0], group[1], group[2], most);
    }
    if (groups == 0)
        return report_failure("kernel %s: an empty grid of %u x %u x %u threadgroups", kernel->entry->name, grid[0],
                              grid[1], grid[2]);
    return 0;
}

static void check_tails(const sim_launch *launch) {
    for (uint32_t i = 0; i < SIM_MAX_BUFFERS; i++) {
        if (!memory_tail_intact(launch->buffers[i].memory)) {
            report("bad access", nullptr, nullptr, "a write just past buffer %u, which holds %zu bytes", i,
                   launch->buffers[i].bytes);
        }
    }
}

#pragma GCC visibility push(default)

sim_library *sim_library_open(const char *path) {
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return report_failure("%s", dlerror()), nullptr;
    const sim_module *module = dlsym(handle, "sim_translated_module");
    if (!module) return report_failure("%s is not a library of translated kernels", path), nullptr;
    if (module->constant_count > SIM_MAX_CONSTANTS) {
        return report_failure("%s has more than %d function constants", path, SIM_MAX_CONSTANTS), nullptr;
    }
    sim_library     *library = calloc(1, sizeof *library);
    sim_kernel      *kernels = calloc(module->kernel_count ? module->kernel_count : 1, sizeof *kernels);
    char            *copy = strdup(path);
    struct link_map *map;
    if (!library || !kernels || !copy || threads_prepare() || dlinfo(handle, RTLD_DI_LINKMAP, &map)) {
        return report_failure("no memory for the library %s", path), nullptr;
    }
    library->path = copy;
    library->module = module;
    library->kernels = kernels;
    find_image(library, map);
    for (uint32_t i = 0; i < module->kernel_count; i++) {
        kernels[i].entry = &module->kernels[i];
        kernels[i].library = library;
        if (place_variables(&kernels[i])) return nullptr;
    }
    return library;
}

uint32_t sim_library_kernel_count(const sim_library *library) { return library->module->kernel_count; }

const sim_kernel *sim_library_kernel_at(const sim_library *library, uint32_t position) {
    return position < library->module->kernel_count ? &library->kernels[position] : nullptr;
}

const sim_kernel *sim_library_kernel(const sim_library *library, const char *host_name) {
    for (uint32_t i = 0; i < library->module->kernel_count; i++) {
        if (!strcmp(library->kernels[i].entry->name, host_name)) return &library->kernels[i];
    }
    return report_failure("%s has no kernel named %s", library->path, host_name), nullptr;
}

const char *sim_kernel_name(const sim_kernel *kernel) { return kernel->entry->name; }
uint32_t    sim_kernel_max_threads(const sim_kernel *kernel) {
    return kernel->entry->max_threads ? kernel->entry->max_threads : SIM_UNDECLARED_THREADS;
}
size_t   sim_kernel_threadgroup_bytes(const sim_kernel *kernel) { return kernel->threadgroup_bytes; }
uint32_t sim_kernel_buffers(const sim_kernel *kernel) { return parameter_mask(kernel, SIM_PARAMETER_BUFFER); }
uint32_t sim_kernel_threadgroup_arguments(const sim_kernel *kernel) {
    return parameter_mask(kernel, SIM_PARAMETER_THREADGROUP);
}

int sim_kernel_read_only(const sim_kernel *kernel, uint32_t index) {
    const sim_parameter *p = parameter(kernel, SIM_PARAMETER_BUFFER, index);
    return p && p->read_only;
}

uint32_t sim_library_constant_bytes(const sim_library *library, uint32_t index) {
    const sim_constant_entry *c = constant(library, index);
    return c ? c->bytes : 0;
}

sim_launch *sim_launch_new(const sim_kernel *kernel) {
    sim_launch *launch = calloc(1, sizeof *launch);
    if (launch) launch->kernel = kernel;
    return launch;
}

static void unbind(buffer_binding *binding) {
    if (binding->owned) sim_release(binding->memory);
    *binding = (buffer_binding){};
}

void sim_launch_free(sim_launch *launch) {
    for (uint32_t i = 0; i < SIM_MAX_BUFFERS; i++) unbind(&launch->buffers[i]);
    free(launch);
}

int sim_launch_buffer(sim_launch *launch, uint32_t index, void *memory, size_t bytes, uint32_t flags) {
    if (index >= SIM_MAX_BUFFERS)
        return report_failure("buffer index %u, at most %d exist", index, SIM_MAX_BUFFERS - 1);
    unbind(&launch->buffers[index]);
    launch->buffers[index] = (buffer_binding){memory, bytes, flags, false};
    return 0;
}

int sim_launch_bytes(sim_launch *launch, uint32_t index, const void *bytes, size_t count) {
    void *copy = sim_allocate(count);
    if (!copy) return report_failure("no memory for %zu bytes at buffer %u", count, index);
    memcpy(copy, bytes, count);
    if (sim_launch_buffer(launch, index, copy, count, 0)) return sim_release(copy), -1;
    launch->buffers[index].owned = true;
    return 0;
}

int sim_launch_threadgroup(sim_launch *launch, uint32_t index, size_t bytes) {
    if (index >= SIM_MAX_BUFFERS)
        return report_failure("threadgroup index %u, at most %d exist", index, SIM_MAX_BUFFERS - 1);
    if (bytes % SIM_THREADGROUP_ALIGNMENT)
        return report_failure("threadgroup argument %u: %zu bytes, not a multiple of 16", index, bytes);
    launch->threadgroup[index] = bytes;
    return 0;
}

int sim_launch_constant(sim_launch *launch, uint32_t index, const void *value, size_t bytes) {
    const sim_library        *library = launch->kernel->library;
    const sim_constant_entry *c = constant(library, index);
    if (!c) return 0; // as Metal, which ignores constants that the library does not have
    if (bytes != c->bytes) return report_failure("function constant %u has %u bytes, not %zu", index, c->bytes, bytes);
    ptrdiff_t position = c - library->module->constants;
    memcpy(launch->constants[position].value, value, bytes);
    launch->constants[position].bytes = bytes;
    return 0;
}

int sim_run(sim_launch *launch, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z, uint32_t group_x, uint32_t group_y,
            uint32_t group_z, uint32_t seed, uint32_t flags) {
    static char *threadgroup_region;
    const size_t capacity = SIM_MOST_THREADGROUP_BYTES + SIM_MAX_VARIABLES * (SIM_MAX_GAP + SIM_THREADGROUP_ALIGNMENT);
    const uint32_t grid[3] = {grid_x, grid_y, grid_z}, group[3] = {group_x, group_y, group_z};
    report_clear();
    if (!threadgroup_region) threadgroup_region = sim_allocate(capacity / SIM_PAGE * SIM_PAGE);
    if (!threadgroup_region) return report_failure("no memory for threadgroup memory"), 1;
    launch->threadgroup_end = threadgroup_region + capacity / SIM_PAGE * SIM_PAGE;
    launch->threadgroup_most = flags & SIM_RUN_LARGE ? SIM_MOST_THREADGROUP_BYTES : SIM_MAX_THREADGROUP_BYTES;
    now = (execution){.launch = launch};
    if (check_sizes(launch->kernel, grid, group) || set_constants(launch) || bind(launch)) return 1;
    bool checked = launch->kernel->library->module->checked;
    if (checked && checker_begin(launch)) return report_failure("no memory for the checker's records"), 1;
    if (!memory_guard_begin()) return report_failure("the fault handler cannot be installed"), 1;
    threads_shuffle_lanes(seed);
    flush_subnormals(flags & SIM_RUN_FLUSH);
    run_groups(launch, grid, group, seed, flags & SIM_RUN_LAX);
    flush_subnormals(false);
    memory_guard_end();
    if (checked) checker_end();
    check_tails(launch);
    return report_count();
}

#pragma GCC visibility pop
