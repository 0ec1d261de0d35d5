/* The fake's stream: what is enqueued runs in order, and not before somebody waits or has asked often enough. So a host
 * that reads results without waiting, or fills pinned memory that a copy still needs, gets what it deserves. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ERROR_CAPTURE_INVALIDATED = 901, TAKEN_MOST = 64 << 10 };

static struct command *first, **end = &first;
static long            polls;

struct CUevent_st {
    bool   timed, recorded, reached;
    long   pending; /* records that the stream has yet to come to: the last of them counts */
    double seconds;
};

struct CUstream_st {
    struct CUgraph_st *graph; /* that it captures, or NULL */
};

/* What was captured: a list of commands. Its memory is the executable's, once there is one. */
struct CUgraph_st {
    struct command *first, **end;
    bool            executable;
};

struct CUexec_st {
    struct CUgraph_st *graph;
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* ── Commands ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static struct command **append_to(struct command **to, struct command command) {
    struct command *copy = malloc(sizeof *copy);
    if (!copy) violation("the host has no memory left");
    *copy = command;
    copy->next = NULL;
    *to = copy;
    return &copy->next;
}

static void append(struct command command) {
    end = append_to(end, command);
    polls = faults.polls;
}

void enqueue(CUstream stream, struct command command) {
    if (stream->graph)
        stream->graph->end = append_to(stream->graph->end, command);
    else
        append(command);
}

static CUresult run(const struct command *command) {
    switch (command->kind) {
    case COPY:
        memcpy(command->to, command->from, command->bytes);
        free(command->taken);
        break;
    case SET: memset(command->to, command->value, command->bytes); break;
    case FREE: release_allocation(command->allocation); break;
    case RECORD:
        command->event->seconds = now();
        command->event->reached = !--command->event->pending;
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
    all_is_done();
    return is_lost();
}

/* ── Waiting ────────────────────────────────────────────────────────────────────────────────────────────────────── */

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    CUresult result = enter("cuStreamCreate");
    if (flags != STREAM_NON_BLOCKING)
        violation("cuStreamCreate: a stream that waits for everybody's work on the default stream");
    *stream = calloc(1, sizeof **stream);
    counters.streams++;
    return leave(result);
}

CUresult cuStreamDestroy_v2(CUstream stream) {
    CUresult result = enter("cuStreamDestroy");
    if (stream->graph) violation("cuStreamDestroy: a stream that captures");
    free(stream);
    counters.streams--;
    return leave(result);
}

CUresult cuStreamSynchronize(CUstream stream) {
    CUresult result = enter("cuStreamSynchronize");
    if (stream->graph) violation("cuStreamSynchronize: a stream that captures");
    counters.waits++;
    return leave(result ? result : drain());
}

CUresult cuStreamQuery(CUstream) {
    CUresult result = enter("cuStreamQuery");
    if (result || !first) return leave(result);
    return leave(polls-- > 0 ? CUDA_ERROR_NOT_READY : drain());
}

/* ── Graphs ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

struct CUgraph_st *captured_by(CUstream stream) { return stream->graph; }

CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
    CUresult result = enter("cuStreamBeginCapture");
    if (mode != CAPTURE_RELAXED) violation("cuStreamBeginCapture: a mode that refuses what other threads do");
    if (stream->graph) violation("cuStreamBeginCapture: a stream that captures already");
    stream->graph = calloc(1, sizeof *stream->graph);
    stream->graph->end = &stream->graph->first;
    counters.live_graphs++;
    return leave(result);
}

static void destroy(struct CUgraph_st *graph) {
    for (struct command *command; (command = graph->first);) {
        graph->first = command->next;
        free(command->launch);
        free(command);
    }
    release_graph(graph);
    free(graph);
    counters.live_graphs--;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    CUresult result = enter("cuStreamEndCapture");
    if (!stream->graph) violation("cuStreamEndCapture: a stream that captures nothing");
    *graph = stream->graph;
    stream->graph = NULL;
    if (!strikes(&faults.fail_capture)) return leave(result);
    destroy(*graph);
    *graph = NULL;
    return leave(ERROR_CAPTURE_INVALIDATED);
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
    CUresult result = enter("cuGraphInstantiateWithFlags");
    if (flags) violation("cuGraphInstantiateWithFlags: flags %llu", flags);
    if (strikes(&faults.fail_instantiate)) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    *executable = calloc(1, sizeof **executable);
    (*executable)->graph = graph;
    graph->executable = true;
    return leave(result);
}

CUresult cuGraphDestroy(CUgraph graph) {
    CUresult result = enter("cuGraphDestroy");
    if (!graph->executable) destroy(graph);
    return leave(result);
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
    CUresult result = enter("cuGraphExecDestroy");
    if (!result) result = drain(); /* so that none of its runs is under way */
    destroy(executable->graph);
    free(executable);
    return leave(result);
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    CUresult result = enter("cuGraphLaunch");
    if (result) return leave(result);
    if (stream->graph) violation("cuGraphLaunch: into another graph");
    counters.graphs++;
    order_graph();
    for (const struct command *command = executable->graph->first; command; command = command->next) {
        struct command again = *command;
        if (again.kind == LAUNCH) launch_begins(again.launch = launch_again(command->launch));
        append(again);
    }
    order_graph();
    return leave(CUDA_SUCCESS);
}

/* ── Events ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

CUresult cuEventCreate(CUevent *event, unsigned flags) {
    CUresult result = enter("cuEventCreate");
    *event = calloc(1, sizeof **event);
    (*event)->timed = flags != EVENT_NO_TIMING;
    return leave(result);
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    CUresult result = enter("cuEventRecord");
    if (result) return leave(result);
    event->recorded = true, event->reached = false, event->pending++;
    enqueue(stream, (struct command){.kind = RECORD, .event = event});
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

/* What is not pinned has been copied, or was read to its end, when the call returns: little of it is taken along, for
 * more NVIDIA's driver may wait. */
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    CUresult result = enter("cuMemcpyHtoDAsync");
    if (result) return leave(result);
    find_allocation(to, bytes, "cuMemcpyHtoDAsync");
    if (captured_by(stream)) violation("a copy to or from the host in a graph");
    counters.copies++;
    struct command copy = {.kind = COPY, .to = (char *)(uintptr_t)to, .from = from, .bytes = bytes};
    bool           taken = !is_pinned(from) && bytes <= TAKEN_MOST;
    if (taken) copy.from = copy.taken = memcpy(malloc(bytes), from, bytes);
    enqueue(stream, copy);
    order_copy();
    return leave(taken || is_pinned(from) ? CUDA_SUCCESS : drain());
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CUresult result = enter("cuMemcpyDtoHAsync");
    if (result) return leave(result);
    find_allocation(from, bytes, "cuMemcpyDtoHAsync");
    if (captured_by(stream)) violation("a copy to or from the host in a graph");
    counters.copies++;
    enqueue(stream, (struct command){.kind = COPY, .to = to, .from = (const char *)(uintptr_t)from, .bytes = bytes});
    return leave(is_pinned(to) ? CUDA_SUCCESS : drain());
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CUresult result = enter("cuMemcpyDtoDAsync");
    if (result) return leave(result);
    const char *source = (const char *)(uintptr_t)from;
    find_allocation(to, bytes, "cuMemcpyDtoDAsync"), find_allocation(from, bytes, "cuMemcpyDtoDAsync");
    enqueue(stream, (struct command){.kind = COPY, .to = (char *)(uintptr_t)to, .from = source, .bytes = bytes});
    order_copy();
    return leave(CUDA_SUCCESS);
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream) {
    CUresult result = enter("cuMemsetD8Async");
    if (result) return leave(result);
    find_allocation(at, bytes, "cuMemsetD8Async");
    enqueue(stream, (struct command){.kind = SET, .to = (char *)(uintptr_t)at, .value = value, .bytes = bytes});
    order_copy();
    return leave(CUDA_SUCCESS);
}
