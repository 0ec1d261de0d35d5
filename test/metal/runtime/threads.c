// Owns the execution of one threadgroup: its threads as fibers, their order, and the points where they wait for each
// other.
#define _GNU_SOURCE
#include "internal.h"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

// Saves the callee-saved registers and the stack pointer, and continues where `to` was saved.
void sim_switch(void **save, void *to);
__asm__(".text\n"
        ".globl sim_switch\n"
        ".hidden sim_switch\n"
        ".type sim_switch,@function\n"
        "sim_switch:\n"
        " pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        " movq %rsp, (%rdi)\n"
        " movq %rsi, %rsp\n"
        " popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
        " ret\n");

typedef struct {
    uint32_t first, size; // its threads
    uint32_t lanes;       // how many must arrive at an operation
    uint32_t arrived;
    uint32_t generation; // picks the slots, so that a fast lane cannot overwrite what a slow one has yet to read
    uint32_t active;     // the lanes of the last operation
    alignas(64) char slots[2][SIM_LANES * SIM_SLOT_BYTES];
} simdgroup;

enum { QUEUE = SIM_MAX_THREADS };

static struct {
    char     *region; // parameter slots, then thread records, then stacks
    thread   *threads;
    char     *stacks;
    simdgroup simdgroups[SIM_MAX_THREADS / SIM_LANES];
    uint32_t  count, simdgroup_count;
    uint32_t  expected, arrived, unfinished; // of the threadgroup's barriers; threads that have not returned
    uint32_t  queue[QUEUE], head, queued;
    thread   *current;
    void     *main_stack;
    const sim_kernel_entry *entry;
    uint64_t                random; // 0: first come, first served
    uint32_t                pauses; // since something changed
    bool                    lax, abandoned;
    unsigned char           lane_order[SIM_LANES]; // as it comes, or shuffled by the seed
} state;

execution now;

static const size_t records_at = SIM_PAGE,
                    stacks_at = SIM_PAGE + ((sizeof(thread) * SIM_MAX_THREADS + SIM_PAGE) & -SIM_PAGE);
static const size_t region_bytes = stacks_at + (size_t)SIM_STACK_BYTES * SIM_MAX_THREADS;

int threads_prepare(void) {
    if (state.region) return 0;
    char *region =
        mmap(nullptr, region_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) return -1;
    state.threads = (thread *)(region + records_at);
    state.stacks = region + stacks_at;
    for (size_t i = 0; i < SIM_MAX_THREADS; i++) { // the lowest page of each stack faults
        if (mprotect(state.stacks + i * SIM_STACK_BYTES, SIM_PAGE, PROT_NONE)) return -1;
    }
    state.region = region;
    return 0;
}

void *threads_region(size_t *bytes) {
    *bytes = region_bytes;
    return state.region;
}

void **threads_slots(void) { return (void **)state.region; }

bool threads_inside(void) { return state.current != nullptr; }

const thread *threads_current(void) { return state.current; }

static void make_ready(thread *one) {
    one->state = THREAD_READY;
    state.queue[(state.head + state.queued++) % QUEUE] = one->index;
}

static uint32_t draw(uint32_t below) {
    state.random ^= state.random << 13;
    state.random ^= state.random >> 7;
    state.random ^= state.random << 17;
    return (uint32_t)(state.random >> 32) % below;
}

static thread *take_ready(void) {
    if (state.random) {
        uint32_t *chosen = &state.queue[(state.head + draw(state.queued)) % QUEUE], *front = &state.queue[state.head];
        uint32_t  swap = *chosen;
        *chosen = *front;
        *front = swap;
    }
    thread *next = &state.threads[state.queue[state.head]];
    state.head = (state.head + 1) % QUEUE;
    state.queued--;
    return next;
}

static void enter(thread *next) {
    state.current = next;
    now.thread = next->index;
}

// Lets another thread run until this one is ready and chosen again; the main stack runs when nobody is ready.
static void give_way(void) {
    thread *me = state.current;
    if (state.queued == 0) {
        state.current = nullptr;
        sim_switch(&me->stack_pointer, state.main_stack);
        return;
    }
    thread *next = take_ready();
    if (next == me) return;
    enter(next);
    sim_switch(&me->stack_pointer, next->stack_pointer);
}

[[noreturn]] void threads_abandon(void) {
    void *ignored;
    state.abandoned = true;
    state.current = nullptr;
    sim_switch(&ignored, state.main_stack);
    __builtin_unreachable();
}

static bool same_site(const sim_site *a, const sim_site *b) {
    return a->line == b->line && a->file == b->file && a->operation == b->operation;
}

static const char *describe_waiting(const thread *one, char *text, size_t size) {
    if (one->state == THREAD_DONE)
        snprintf(text, size, "has returned");
    else
        snprintf(text, size, "waits at %s in line %u", one->site.operation, one->site.line);
    return text;
}

// Names the first thread from `first` on that is not at the site where `waiting` waits.
static void report_divergence(const thread *waiting, uint32_t first, uint32_t size, const char *whose) {
    for (uint32_t i = first; i < first + size; i++) {
        const thread *other = &state.threads[i];
        if (other->state == waiting->state && same_site(&other->site, &waiting->site)) continue;
        char text[200];
        state.current = &state.threads[waiting->index];
        report(waiting->state == THREAD_AT_SIMD ? "divergent simdgroup operation" : "divergent barrier", nullptr,
               &waiting->site, "%s must be reached by every thread of the %s, but thread %u %s",
               waiting->site.operation, whose, i, describe_waiting(other, text, sizeof text));
        state.current = nullptr;
        return;
    }
}

static void release_simdgroup(simdgroup *group, const thread *leader) {
    group->active = 0;
    for (uint32_t i = 0; i < group->size; i++) {
        const thread *one = &state.threads[group->first + i];
        if (one->state == THREAD_AT_SIMD && same_site(&one->site, &leader->site)) group->active |= 1u << i;
    }
    if (leader->combine) leader->combine(group->slots[group->generation & 1], group->active);
    uint32_t number = group->first / SIM_LANES;
    for (uint32_t flag = SIM_MEM_DEVICE; flag <= SIM_MEM_THREADGROUP; flag <<= 1) {
        if (leader->flags & flag) now.simd_epoch[flag][number]++;
    }
    group->generation++;
    for (uint32_t i = 0; i < group->size; i++) {
        if (!(group->active >> i & 1)) continue;
        group->arrived--;
        make_ready(&state.threads[group->first + i]);
    }
}

static void release_barrier(uint32_t flags) {
    for (uint32_t flag = SIM_MEM_DEVICE; flag <= SIM_MEM_THREADGROUP; flag <<= 1) {
        if (flags & flag) now.epoch[flag]++;
    }
    state.arrived = 0;
    for (uint32_t i = 0; i < state.count; i++) {
        if (state.threads[i].state == THREAD_AT_BARRIER) make_ready(&state.threads[i]);
    }
}

// Whether all threads of a range that have not returned wait at the same place.
static bool uniform(uint32_t first, uint32_t size, thread_state waiting) {
    const thread *leader = nullptr;
    for (uint32_t i = first; i < first + size; i++) {
        const thread *one = &state.threads[i];
        if (one->state == THREAD_DONE) continue;
        if (one->state != waiting) return false;
        if (!leader) leader = one;
        if (!same_site(&one->site, &leader->site) || one->flags != leader->flags) return false;
    }
    return true;
}

static void finish_thread(void) {
    thread *me = state.current;
    me->state = THREAD_DONE;
    state.unfinished--;
    if (state.lax) {
        state.expected--;
        state.simdgroups[me->index / SIM_LANES].lanes--;
    }
    give_way();
    __builtin_unreachable();
}

static void thread_main(void) {
    state.entry->run(threads_slots(), state.current->values);
    finish_thread();
}

// A stack on which sim_switch returns into thread_main, aligned as a call would leave it.
static void *fresh_stack(uint32_t index) {
    void **top = (void **)(state.stacks + (size_t)(index + 1) * SIM_STACK_BYTES - 64);
    *--top = nullptr;
    *--top = (void *)thread_main;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    return top;
}

static void place_thread(uint32_t i, const uint32_t grid[3], const uint32_t group[3], const uint32_t position[3]) {
    thread        *one = &state.threads[i];
    const uint32_t inside[3] = {i % group[0], i / group[0] % group[1], i / (group[0] * group[1])};
    sim_u32       *v = one->values;
    for (int d = 0; d < 3; d++) {
        v[SIM_THREAD_POSITION_IN_THREADGROUP + d] = inside[d];
        v[SIM_THREADGROUP_POSITION_IN_GRID + d] = position[d];
        v[SIM_THREAD_POSITION_IN_GRID + d] = position[d] * group[d] + inside[d];
        v[SIM_THREADS_PER_THREADGROUP + d] = group[d];
        v[SIM_THREADS_PER_GRID + d] = group[d] * grid[d];
        v[SIM_THREADGROUPS_PER_GRID + d] = grid[d];
    }
    v[SIM_THREAD_INDEX_IN_THREADGROUP] = i;
    v[SIM_THREAD_INDEX_IN_SIMDGROUP] = i % SIM_LANES;
    v[SIM_SIMDGROUP_INDEX_IN_THREADGROUP] = i / SIM_LANES;
    v[SIM_SIMDGROUPS_PER_THREADGROUP] = state.simdgroup_count;
    v[SIM_THREADS_PER_SIMDGROUP] = SIM_LANES;
    v[SIM_THREAD_INDEX_IN_QUADGROUP] = i % 4;
    v[SIM_QUADGROUP_INDEX_IN_THREADGROUP] = i / 4;
    v[SIM_QUADGROUPS_PER_THREADGROUP] = (state.count + 3) / 4;
    one->index = i;
    one->stack_pointer = fresh_stack(i);
    one->flags = 0;
    one->site = (sim_site){};
    make_ready(one);
}

// Nobody is ready and somebody waits: an error, unless lanes that are left may go on without the others.
static bool resolve_stuck(void) {
    for (uint32_t g = 0; g < state.simdgroup_count; g++) {
        simdgroup *group = &state.simdgroups[g];
        for (uint32_t i = group->first; i < group->first + group->size; i++) {
            if (state.threads[i].state != THREAD_AT_SIMD) continue;
            if (state.lax) {
                release_simdgroup(group, &state.threads[i]);
                return true;
            }
            report_divergence(&state.threads[i], group->first, group->size, "simdgroup");
            return false;
        }
    }
    for (uint32_t i = 0; i < state.count; i++) {
        if (state.threads[i].state != THREAD_AT_BARRIER) continue;
        if (state.lax && state.arrived >= state.expected && uniform(0, state.count, THREAD_AT_BARRIER)) {
            release_barrier(state.threads[i].flags);
            return true;
        }
        report_divergence(&state.threads[i], 0, state.count, "threadgroup");
        return false;
    }
    return false;
}

void threads_shuffle_lanes(uint32_t seed) {
    for (uint32_t i = 0; i < SIM_LANES; i++) state.lane_order[i] = (unsigned char)i;
    state.random = (uint64_t)seed << 32 | 0x9E3779B9u;
    for (uint32_t i = SIM_LANES - 1; seed && i > 0; i--) {
        uint32_t      other = draw(i + 1);
        unsigned char swap = state.lane_order[i];
        state.lane_order[i] = state.lane_order[other];
        state.lane_order[other] = swap;
    }
}

bool threads_run_group(const sim_kernel *kernel, const uint32_t grid[3], const uint32_t group[3],
                       const uint32_t position[3], uint32_t seed, bool lax) {
    state.entry = kernel->entry;
    state.count = state.expected = state.unfinished = group[0] * group[1] * group[2];
    state.simdgroup_count = (state.count + SIM_LANES - 1) / SIM_LANES;
    state.arrived = state.head = state.queued = 0;
    state.random = seed ? ((uint64_t)seed << 32 | 0x9E3779B9u) ^ now.group_start : 0;
    state.pauses = 0;
    state.lax = lax;
    state.abandoned = false;
    for (uint32_t g = 0; g < state.simdgroup_count; g++) {
        simdgroup *one = &state.simdgroups[g];
        one->first = g * SIM_LANES;
        one->size = one->lanes = state.count - one->first < SIM_LANES ? state.count - one->first : SIM_LANES;
        one->arrived = one->generation = 0;
        now.simd_epoch[SIM_MEM_DEVICE][g] = now.simd_epoch[SIM_MEM_THREADGROUP][g] = 1;
    }
    for (uint32_t i = 0; i < state.count; i++) place_thread(i, grid, group, position);
    while (state.queued > 0) {
        enter(take_ready());
        sim_switch(&state.main_stack, state.current->stack_pointer);
        if (state.abandoned) return false;
        if (state.queued == 0 && state.unfinished > 0 && !resolve_stuck()) return false;
    }
    return true;
}

#pragma GCC visibility push(default)

sim_u32 sim_lane(void) { return state.current->index % SIM_LANES; }
sim_u32 sim_thread(void) { return state.current->index; }

static void wait_for_simdgroup(sim_site site, sim_u32 flags, sim_combine combine) {
    thread    *me = state.current;
    simdgroup *group = &state.simdgroups[me->index / SIM_LANES];
    me->state = THREAD_AT_SIMD;
    me->site = site;
    me->flags = flags;
    me->combine = combine;
    if (++group->arrived >= group->lanes && uniform(group->first, group->size, THREAD_AT_SIMD))
        release_simdgroup(group, me);
    give_way();
}

void sim_simdgroup_barrier(sim_u32 flags, sim_site site) { wait_for_simdgroup(site, flags, nullptr); }

sim_u32 sim_exchange(const void *in, void *out, sim_u32 bytes, int source, sim_combine combine, sim_site site) {
    uint32_t   lane = sim_lane();
    simdgroup *group = &state.simdgroups[state.current->index / SIM_LANES];
    char      *slots = group->slots[group->generation & 1];
    memcpy(slots + lane * SIM_SLOT_BYTES, in, bytes);
    wait_for_simdgroup(site, 0, combine);
    uint32_t active = group->active;
    uint32_t from = source == SIM_OWN_LANE     ? lane
                    : source == SIM_FIRST_LANE ? (uint32_t)__builtin_ctz(active)
                                               : (uint32_t)source % SIM_LANES;
    if (!(active >> from & 1)) {
        if (!state.lax) {
            report("shuffle from an inactive lane", nullptr, &site, "%s reads lane %u, which does not exist",
                   site.operation, from);
        }
        memset(out, 0xFF, bytes);
        return active;
    }
    memcpy(out, slots + from * SIM_SLOT_BYTES, bytes);
    return active;
}

void sim_threadgroup_barrier(sim_u32 flags, sim_site site) {
    thread *me = state.current;
    me->state = THREAD_AT_BARRIER;
    me->site = site;
    me->flags = flags;
    if (++state.arrived >= state.expected && uniform(0, state.count, THREAD_AT_BARRIER)) release_barrier(flags);
    give_way();
}

void sim_changed(void) { state.pauses = 0; }

void sim_pause(sim_site site) {
    thread *me = state.current;
    if (++state.pauses > 256 * SIM_MAX_THREADS) {
        report("endless wait", nullptr, &site, "what %s waits for does not come", site.operation);
        threads_abandon();
    }
    make_ready(me);
    give_way();
}

// For simdgroup_load and simdgroup_store, which one simdgroup does as one.
void sim_report_different_tiles(sim_site site) {
    report("divergent simdgroup operation", nullptr, &site,
           "%s must be given the same address, row length and order by all lanes", site.operation);
    threads_abandon();
}

void sim_report_lanes(sim_site site, const char *what) {
    if (state.lax) return;
    report("undefined lane", nullptr, &site, "%s %s", site.operation, what);
}

const unsigned char *sim_lane_order(void) { return state.lane_order; }

void *sim_threadgroup_variable(const sim_variable *variable) {
    return now.launch->threadgroup_memory + variable->offset;
}

#pragma GCC visibility pop
