/* The fake's stream: what is enqueued runs in order, and not before somebody waits or has asked often enough. So a host
 * that reads results without waiting, or fills pinned memory that a copy still needs, gets what it deserves. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct command *first, **end = &first;
static long            polls;

struct CUevent_st {
    bool   timed, recorded, reached;
    double seconds;
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* ── Commands ───────────────────────────────────────────────────────────────────────────────────────────────────── */

void enqueue(struct command command) {
    struct command *copy = malloc(sizeof *copy);
    if (!copy) violation("the host has no memory left");
    *copy = command;
    copy->next = NULL;
    *end = copy;
    end = &copy->next;
    polls = faults.polls;
}

static CUresult run(const struct command *command) {
    switch (command->kind) {
    case COPY: memcpy(command->to, command->from, command->bytes); break;
    case SET: memset(command->to, command->value, command->bytes); break;
    case FREE: release_allocation(command->allocation); break;
    case RECORD:
        command->event->seconds = now();
        command->event->reached = true;
        break;
    case LAUNCH: return launch_run(command->launch);
    }
    return CUDA_SUCCESS;
}

CUresult drain(void) {
    while (first && !is_lost()) {
        struct command *command = first;
        first = command->next;
        if (!first) end = &first;
        CUresult result = run(command);
        free(command);
        if (result) return result;
    }
    return is_lost();
}

/* ── Waiting ────────────────────────────────────────────────────────────────────────────────────────────────────── */

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    CUresult result = enter("cuStreamCreate");
    if (flags != STREAM_NON_BLOCKING)
        violation("cuStreamCreate: a stream that waits for everybody's work on the default stream");
    return *stream = (CUstream)0x2000, leave(result);
}

CUresult cuStreamSynchronize(CUstream) {
    CUresult result = enter("cuStreamSynchronize");
    counters.waits++;
    return leave(result ? result : drain());
}

CUresult cuStreamQuery(CUstream) {
    CUresult result = enter("cuStreamQuery");
    if (result || !first) return leave(result);
    return leave(polls-- > 0 ? CUDA_ERROR_NOT_READY : drain());
}

/* ── Events ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

CUresult cuEventCreate(CUevent *event, unsigned flags) {
    CUresult result = enter("cuEventCreate");
    *event = calloc(1, sizeof **event);
    (*event)->timed = flags != EVENT_NO_TIMING;
    return leave(result);
}

CUresult cuEventRecord(CUevent event, CUstream) {
    CUresult result = enter("cuEventRecord");
    if (result) return leave(result);
    event->recorded = true, event->reached = false;
    enqueue((struct command){.kind = RECORD, .event = event});
    return leave(CUDA_SUCCESS);
}

CUresult cuEventQuery(CUevent event) {
    CUresult result = enter("cuEventQuery");
    return leave(result ? result : event->recorded && !event->reached ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS);
}

CUresult cuEventSynchronize(CUevent event) {
    CUresult result = enter("cuEventSynchronize");
    while (!result && event->recorded && !event->reached && first) { /* no further than to the event */
        struct command *command = first;
        first = command->next;
        if (!first) end = &first;
        result = run(command);
        free(command);
    }
    return leave(result);
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to) {
    CUresult result = enter("cuEventElapsedTime");
    if (!from->timed || !to->timed) violation("cuEventElapsedTime: an event that keeps no time");
    if (!result && (!from->reached || !to->reached)) return leave(CUDA_ERROR_NOT_READY);
    return *milliseconds = (float)((to->seconds - from->seconds) * 1e3), leave(result);
}

/* ── Copies ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* What is not pinned has been copied, or was read to its end, when the call returns. */
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream) {
    CUresult result = enter("cuMemcpyHtoDAsync");
    if (result) return leave(result);
    find_allocation(to, bytes, "cuMemcpyHtoDAsync");
    counters.copies++;
    enqueue((struct command){.kind = COPY, .to = (char *)(uintptr_t)to, .from = from, .bytes = bytes});
    return leave(is_pinned(from) ? CUDA_SUCCESS : drain());
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream) {
    CUresult result = enter("cuMemcpyDtoHAsync");
    if (result) return leave(result);
    find_allocation(from, bytes, "cuMemcpyDtoHAsync");
    counters.copies++;
    enqueue((struct command){.kind = COPY, .to = to, .from = (const char *)(uintptr_t)from, .bytes = bytes});
    return leave(is_pinned(to) ? CUDA_SUCCESS : drain());
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream) {
    CUresult result = enter("cuMemsetD8Async");
    if (result) return leave(result);
    find_allocation(at, bytes, "cuMemsetD8Async");
    enqueue((struct command){.kind = SET, .to = (char *)(uintptr_t)at, .value = value, .bytes = bytes});
    return leave(CUDA_SUCCESS);
}
