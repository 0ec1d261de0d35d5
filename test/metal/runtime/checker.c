// Owns the record of who touched which byte, and the callbacks through which instrumented kernels report every access.
//
// Kernels of a checked library are compiled with -fsanitize=thread and linked to this file instead of its runtime.
// What happens before what: a thread's own accesses are in order; a threadgroup barrier orders the accesses of its
// threadgroup to the memory its flags name; a simdgroup barrier those of its simdgroup; nothing orders threadgroups.
#define _GNU_SOURCE
#include "internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { UNKNOWN = 0, WRITTEN = 1, OUTSIDE = 2 }; // states of a byte whose contents are tracked
enum { READS = 1, WRITES = 2, ATOMIC = 4 };     // what an access does

// Epochs of 0 mean never. Readers are those since the last write; all of the newest epoch are kept, so no race is
// missed.
typedef struct {
    uint32_t write_epoch, write_simd_epoch, write_place;
    uint32_t read_epoch, read_simd_epoch, read_place;
    uint32_t read_simdgroups; // a bit for each simdgroup that read in read_epoch
    uint32_t read_lanes;      // and the lanes of the last of them in its read_simd_epoch
    uint16_t write_thread;
    uint8_t  read_simdgroup;
    uint8_t  write_atomic : 1, read_by_other_group : 1;
} record;

typedef struct {
    uintptr_t begin, end;
    bool      read_only;
    uint32_t  index;   // of the buffer
    uint32_t  memory;  // SIM_MEM_DEVICE or SIM_MEM_THREADGROUP
    uint8_t  *known;   // states by byte, or NULL: everything is readable
    record   *records; // by byte, or NULL: nobody writes
} region;

static region             regions[SIM_MAX_BUFFERS + 1];
static uint32_t           region_count;
static region            *last;
static const sim_library *library;
// Pieces of threadgroup memory that belong to one simdgroup each.
static struct {
    uintptr_t begin, end;
    uint32_t  simdgroup;
} slices[SIM_MAX_VARIABLES * SIM_MAX_THREADS / SIM_LANES];
static uint32_t  slice_count;
static uintptr_t free_begin, free_end; // memory that belongs to the simulator or to one thread

static void *records_of(size_t bytes) {
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

// Buffers that overlap become one region, which may be written if one of them may.
static void add_buffer(const sim_launch *launch, uint32_t index) {
    const buffer_binding *b = &launch->buffers[index];
    uintptr_t             begin = (uintptr_t)b->memory, end = begin + b->bytes;
    bool                  read_only = sim_kernel_read_only(launch->kernel, index);
    for (uint32_t i = 0; i < region_count; i++) {
        region *r = &regions[i];
        if (begin >= r->end || end <= r->begin) continue;
        if (begin < r->begin) r->begin = begin;
        if (end > r->end) r->end = end;
        r->read_only &= read_only;
        return;
    }
    regions[region_count++] = (region){begin, end, read_only, index, SIM_MEM_DEVICE, nullptr, nullptr};
}

// The bytes of a fresh buffer are unknown until somebody writes them.
static void mark_fresh(const sim_launch *launch) {
    for (uint32_t i = 0; i < SIM_MAX_BUFFERS; i++) {
        const buffer_binding *b = &launch->buffers[i];
        if (!b->memory || !(b->flags & SIM_BUFFER_FRESH)) continue;
        for (uint32_t k = 0; k < region_count; k++) {
            region *r = &regions[k];
            if ((uintptr_t)b->memory < r->begin || (uintptr_t)b->memory >= r->end || !r->known) continue;
            memset(r->known + ((uintptr_t)b->memory - r->begin), UNKNOWN, b->bytes);
        }
    }
}

int checker_begin(const sim_launch *launch) {
    region_count = 0;
    last = nullptr;
    library = launch->kernel->library;
    size_t bytes;
    free_begin = (uintptr_t)threads_region(&bytes);
    free_end = free_begin + bytes;
    uint32_t bound = sim_kernel_buffers(launch->kernel);
    bool     fresh = false;
    for (uint32_t i = 0; i < SIM_MAX_BUFFERS; i++) {
        if (!(bound >> i & 1)) continue;
        add_buffer(launch, i);
        fresh |= launch->buffers[i].flags & SIM_BUFFER_FRESH;
    }
    for (uint32_t i = 0; i < region_count; i++) {
        region *r = &regions[i];
        size_t  size = r->end - r->begin;
        if (!r->read_only && !(r->records = records_of(size * sizeof(record)))) return -1;
        if (!fresh) continue;
        if (!(r->known = records_of(size))) return -1;
        memset(r->known, WRITTEN, size);
    }
    if (fresh) mark_fresh(launch);
    uintptr_t begin = (uintptr_t)launch->threadgroup_memory;
    size_t    size =
        (uintptr_t)launch->threadgroup_end + SIM_PAGE - begin; // with some of the guard pages, which nothing else is at
    region *r = &regions[region_count++];
    *r = (region){
        begin - SIM_MAX_GAP, begin + size, false, 0, SIM_MEM_THREADGROUP, records_of(size + SIM_MAX_GAP), nullptr};
    if (!r->known || !(r->records = records_of((size + SIM_MAX_GAP) * sizeof(record)))) return -1;
    return 0;
}

// A threadgroup starts with memory of unknown contents, and gaps around its variables.
void checker_begin_group(void) {
    slice_count = 0;
    region           *r = &regions[region_count - 1];
    const sim_launch *launch = now.launch;
    uint8_t          *known = r->known + SIM_MAX_GAP;
    memset(r->known, OUTSIDE, r->end - r->begin);
    for (uint32_t i = 0; i < launch->kernel->variable_count; i++) {
        memset(known + launch->kernel->variables[i]->offset, UNKNOWN, launch->kernel->variables[i]->bytes);
    }
    for (uint32_t i = 0; i < launch->kernel->entry->parameter_count; i++) {
        const sim_parameter *p = &launch->kernel->entry->parameters[i];
        if (p->kind != SIM_PARAMETER_THREADGROUP) continue;
        memset(known + ((char *)threads_slots()[i] - launch->threadgroup_memory), UNKNOWN,
               launch->threadgroup[p->index]);
    }
}

void checker_end(void) {
    for (uint32_t i = 0; i < region_count; i++) {
        size_t size = regions[i].end - regions[i].begin;
        if (regions[i].records) munmap(regions[i].records, size * sizeof(record));
        if (regions[i].known) munmap(regions[i].known, size);
    }
    region_count = 0;
}

static const char *name_memory(const region *r, uintptr_t address, char *text, size_t size) {
    if (r->memory == SIM_MEM_DEVICE) {
        snprintf(text, size, "byte %lld of buffer %u, which holds %zu bytes", (long long)(address - r->begin), r->index,
                 r->end - r->begin);
        return text;
    }
    const sim_kernel *kernel = now.launch->kernel;
    size_t            offset = address - r->begin - SIM_MAX_GAP;
    for (uint32_t i = 0; i < kernel->variable_count; i++) {
        const sim_variable *v = kernel->variables[i];
        if (offset + SIM_MAX_GAP < v->offset || offset >= v->offset + v->bytes + SIM_MAX_GAP) continue;
        snprintf(text, size, "byte %lld of threadgroup variable %s, which holds %zu bytes",
                 (long long)(offset - v->offset), v->name, v->bytes);
        return text;
    }
    snprintf(text, size, "byte %zu of threadgroup memory", offset);
    return text;
}

static void report_race(const region *r, uintptr_t address, bool write, const void *where, const char *other,
                        uint32_t place, bool other_group, uint32_t other_thread) {
    char what[160], there[512], who[64];
    if (other_group)
        snprintf(who, sizeof who, "another threadgroup");
    else if (other_thread < SIM_MAX_THREADS)
        snprintf(who, sizeof who, "thread %u", other_thread);
    else
        snprintf(who, sizeof who, "another thread");
    report("data race", where, nullptr, "this %s of %s is not ordered after the %s by %s at %s",
           write ? "write" : "read", name_memory(r, address, what, sizeof what), other, who,
           report_place((const void *)(library->image_begin + place), there, sizeof there));
}

// Whether the thread that runs may rely on the last write of a byte.
static bool after_write(const record *c, uint32_t epoch, uint32_t simd_epoch) {
    if (!c->write_epoch) return true;
    if (c->write_epoch < now.group_start) return false;
    if (c->write_thread == now.thread || c->write_epoch < epoch) return true;
    return c->write_thread / SIM_LANES == now.thread / SIM_LANES && c->write_simd_epoch < simd_epoch;
}

// Whether the thread that runs may overwrite what was read.
static bool after_reads(const record *c, uint32_t epoch, uint32_t simd_epoch) {
    if (!c->read_epoch) return true;
    if (c->read_by_other_group || c->read_epoch < now.group_start) return false;
    if (c->read_epoch < epoch) return true;
    uint32_t simdgroup = now.thread / SIM_LANES;
    if (c->read_simdgroups & ~(1u << simdgroup)) return false;
    return c->read_simd_epoch < simd_epoch || !(c->read_lanes & ~(1u << now.thread % SIM_LANES));
}

static void note_read(record *c, uint32_t epoch, uint32_t simd_epoch, uint32_t place) {
    uint32_t simdgroup = now.thread / SIM_LANES;
    if (c->read_epoch && c->read_epoch < now.group_start) c->read_by_other_group = 1;
    if (c->read_epoch != epoch) c->read_simdgroups = 0;
    if (c->read_epoch != epoch || c->read_simdgroup != simdgroup || c->read_simd_epoch != simd_epoch) c->read_lanes = 0;
    c->read_epoch = epoch;
    c->read_simd_epoch = simd_epoch;
    c->read_simdgroups |= 1u << simdgroup;
    c->read_simdgroup = (uint8_t)simdgroup;
    c->read_lanes |= 1u << now.thread % SIM_LANES;
    c->read_place = place;
}

static void check_race(region *r, uintptr_t address, bool write, bool atomic, const void *where) {
    record  *c = &r->records[address - r->begin];
    uint32_t epoch = now.epoch[r->memory], simd_epoch = now.simd_epoch[r->memory][now.thread / SIM_LANES];
    if (r->memory == SIM_MEM_THREADGROUP && c->write_epoch < now.group_start && c->read_epoch < now.group_start)
        *c = (record){};
    if (!(atomic && c->write_atomic) && !after_write(c, epoch, simd_epoch)) {
        report_race(r, address, write, where, "write", c->write_place, c->write_epoch < now.group_start,
                    c->write_thread);
    }
    uint32_t place = (uint32_t)((uintptr_t)where - library->image_begin);
    if (!write) {
        note_read(c, epoch, simd_epoch, place);
        return;
    }
    if (!after_reads(c, epoch, simd_epoch)) {
        report_race(r, address, write, where, "read", c->read_place,
                    c->read_by_other_group || c->read_epoch < now.group_start, SIM_MAX_THREADS);
    }
    *c = (record){.write_epoch = epoch,
                  .write_simd_epoch = simd_epoch,
                  .write_place = place,
                  .write_thread = (uint16_t)now.thread,
                  .write_atomic = atomic};
}

static region *find_region(uintptr_t address, size_t bytes) {
    if (last && address >= last->begin && address + bytes <= last->end) return last;
    for (uint32_t i = 0; i < region_count; i++) {
        if (address >= regions[i].begin && address + bytes <= regions[i].end) return last = &regions[i];
    }
    return nullptr;
}

[[noreturn]] static void outside(uintptr_t address, size_t bytes, bool write, const void *where) {
    const region *nearest = nullptr;
    uintptr_t     distance = 1 << 20;
    for (uint32_t i = 0; i < region_count; i++) {
        const region *r = &regions[i];
        uintptr_t     away = address < r->begin ? r->begin - address : address >= r->end ? address - r->end : 0;
        if (away >= distance) continue;
        nearest = r;
        distance = away;
    }
    char what[160];
    if (nearest)
        name_memory(nearest, address, what, sizeof what);
    else
        snprintf(what, sizeof what, "an address in no buffer");
    report(write ? "write out of bounds" : "read out of bounds", where, nullptr, "%zu bytes at %s", bytes, what);
    threads_abandon();
}

static void check_known(region *r, uintptr_t address, size_t bytes, uint32_t access, const void *where) {
    uint8_t *known = r->known + (address - r->begin);
    for (size_t i = 0; i < bytes; i++) {
        if (known[i] == OUTSIDE) outside(address + i, bytes, access & WRITES, where);
        if (known[i] == UNKNOWN && access & READS) {
            char what[160];
            report("uninitialised read", where, nullptr, "nobody wrote %s",
                   name_memory(r, address + i, what, sizeof what));
        }
        known[i] = WRITTEN;
    }
}

static void check_slices(uintptr_t address, size_t bytes, const void *where) {
    for (uint32_t i = 0; i < slice_count; i++) {
        if (address + bytes <= slices[i].begin || address >= slices[i].end) continue;
        if (slices[i].simdgroup == now.thread / SIM_LANES) return;
        report("another simdgroup's slice", where, nullptr, "simdgroup %u has declared that memory its own",
               slices[i].simdgroup);
        return;
    }
}

static void check(const volatile void *memory, size_t bytes, uint32_t access, const void *where) {
    uintptr_t address = (uintptr_t)memory;
    if (!region_count || (address >= free_begin && address < free_end)) return;
    region *r = find_region(address, bytes);
    if (!r) {
        if (!(access & WRITES) && address >= library->image_begin && address + bytes <= library->image_end)
            return; // a constant
        outside(address, bytes, access & WRITES, where);
    }
    if (access & WRITES && r->read_only) {
        report("write to constant memory", where, nullptr, "the kernel declares buffer %u as read only", r->index);
        threads_abandon();
    }
    if (r->memory == SIM_MEM_THREADGROUP) check_slices(address, bytes, where);
    if (r->known) check_known(r, address, bytes, access, where);
    if (!r->records) return;
    bool write = access & (WRITES | ATOMIC); // an atomic load is ordered among atomics as an update is
    for (size_t i = 0; i < bytes; i++) check_race(r, address + i, write, access & ATOMIC, where);
}

#define WHERE __builtin_return_address(0)
#pragma GCC visibility push(default)

void sim_own_slice(const void *at, sim_size bytes) {
    const uint32_t simdgroup = now.thread / SIM_LANES;
    if (!region_count) return;
    for (uint32_t i = 0; i < slice_count; i++)
        if (slices[i].begin == (uintptr_t)at && slices[i].simdgroup == simdgroup) return;
    if (slice_count < sizeof slices / sizeof *slices)
        slices[slice_count++] = (typeof(*slices)){(uintptr_t)at, (uintptr_t)at + bytes, simdgroup};
}

void sim_brought(const void *at, sim_size bytes) {
    region *r = region_count ? find_region((uintptr_t)at, bytes) : nullptr;
    if (!r || r->memory != SIM_MEM_THREADGROUP) return;
    const size_t offset = (uintptr_t)at - r->begin;
    check_known(r, (uintptr_t)at, bytes, WRITES, __builtin_return_address(0));
    memset(r->records + offset, 0, bytes * sizeof(record));
}

void __tsan_init(void) {}

#define ACCESS(size)                                                                                                   \
    void __tsan_read##size(void *p) { check(p, size, READS, WHERE); }                                                  \
    void __tsan_write##size(void *p) { check(p, size, WRITES, WHERE); }                                                \
    void __tsan_unaligned_read##size(void *p) { check(p, size, READS, WHERE); }                                        \
    void __tsan_unaligned_write##size(void *p) { check(p, size, WRITES, WHERE); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

void *__tsan_memcpy(void *to, const void *from, size_t bytes) {
    check(from, bytes, READS, WHERE);
    check(to, bytes, WRITES, WHERE);
    return memcpy(to, from, bytes);
}

void *__tsan_memmove(void *to, const void *from, size_t bytes) {
    check(from, bytes, READS, WHERE);
    check(to, bytes, WRITES, WHERE);
    return memmove(to, from, bytes);
}

void *__tsan_memset(void *to, int value, size_t bytes) {
    check(to, bytes, WRITES, WHERE);
    return memset(to, value, bytes);
}

#define ATOMIC_UPDATE(name)                                                                                            \
    uint32_t __tsan_atomic32_fetch_##name(volatile uint32_t *p, uint32_t value, int) {                                 \
        check(p, 4, READS | WRITES | ATOMIC, WHERE);                                                                   \
        return __atomic_fetch_##name(p, value, __ATOMIC_RELAXED);                                                      \
    }
ATOMIC_UPDATE(add)
ATOMIC_UPDATE(sub)
ATOMIC_UPDATE(and)
ATOMIC_UPDATE(or)
ATOMIC_UPDATE(xor)

uint32_t __tsan_atomic32_load(const volatile uint32_t *p, int) {
    check(p, 4, READS | ATOMIC, WHERE);
    return *p;
}

void __tsan_atomic32_store(volatile uint32_t *p, uint32_t value, int) {
    check(p, 4, WRITES | ATOMIC, WHERE);
    *p = value;
}

uint32_t __tsan_atomic32_exchange(volatile uint32_t *p, uint32_t value, int) {
    check(p, 4, READS | WRITES | ATOMIC, WHERE);
    return __atomic_exchange_n(p, value, __ATOMIC_RELAXED);
}

uint32_t __tsan_atomic32_compare_exchange_val(volatile uint32_t *p, uint32_t expected, uint32_t desired, int, int) {
    check(p, 4, READS | WRITES | ATOMIC, WHERE);
    __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}

// The callbacks of -fsanitize=undefined's checks. Each is told where it stands in the source.
typedef struct {
    const char *file;
    uint32_t    line, column;
} source_location;

static void undefined(const source_location *location, const char *kind, const char *what) {
    const sim_site site = {location->file, location->line, nullptr};
    report(kind, nullptr, &site, "%s", what);
}

void __ubsan_handle_type_mismatch_v1(source_location *l, void *) {
    undefined(l, "misaligned access", "the address is not a multiple of the type's alignment (or is null)");
    threads_abandon();
}

void __ubsan_handle_out_of_bounds(source_location *l, void *) {
    undefined(l, "array out of bounds", "the index is outside the array");
    threads_abandon();
}

void __ubsan_handle_local_out_of_bounds(void) {
    report("array out of bounds", WHERE, nullptr,
           "the access is outside the array, which is in thread or constant memory");
    threads_abandon();
}

void __ubsan_handle_shift_out_of_bounds(source_location *l, void *, void *) {
    undefined(l, "bad shift", "the distance is negative or not below the number of bits");
}

#define OVERFLOW(name, ...)                                                                                            \
    void __ubsan_handle_##name##_overflow(source_location *l, __VA_ARGS__) {                                           \
        undefined(l, "integer overflow", "the result does not fit: widen an operand, or say what may be lost");        \
    }
OVERFLOW(add, void *, void *)
OVERFLOW(sub, void *, void *)
OVERFLOW(mul, void *, void *)
OVERFLOW(negate, void *)

void __ubsan_handle_divrem_overflow(source_location *l, void *, void *) {
    undefined(l, "integer division", "by zero, or of the least integer by -1");
    threads_abandon();
}

void __ubsan_handle_float_cast_overflow(source_location *l, void *) {
    undefined(l, "bad conversion", "the floating-point value does not fit the integer type");
}

void __ubsan_handle_builtin_unreachable(source_location *l) {
    undefined(l, "unreachable code", "it was reached");
    threads_abandon();
}

void __ubsan_handle_missing_return(source_location *l) {
    undefined(l, "missing return", "the end of a function that returns a value was reached");
    threads_abandon();
}

#pragma GCC visibility pop
