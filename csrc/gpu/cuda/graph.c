/* Launches that are enqueued again and again as one CUDA graph: they are captured once, on a stream of the capture's
 * own, and the driver then starts them all by one call.
 *
 * What the capturing thread launches, allocates and frees meanwhile goes into the graph; other threads' work does
 * not. */
#include "cuda.h"

#include <stdlib.h>

struct graph {
    CUgraphExec          executable;
    const struct launch *launches;
    size_t               count;
};

/* What the calling thread captures. */
static _Thread_local struct capture {
    struct gpu *gpu; /* NULL while it captures nothing */
    CUstream    stream;
    uint64_t    number; /* of this capture, from 1 on */
} capture;

CUstream cuda_stream(const struct gpu *gpu) { return capture.gpu == gpu ? capture.stream : gpu->stream; }
uint64_t cuda_capture(const struct gpu *gpu) { return capture.gpu == gpu ? capture.number : 0; }

/* Launches whose kernel is NULL are what serve served. */
static bnb_status launch_all(struct gpu *gpu, const struct launch *launches, size_t count) {
    bnb_status status = BNB_OK;
    for (size_t i = 0; i < count && status == BNB_OK; i++)
        status = (launches[i].kernel ? cuda_launch : cuda_serve)(gpu, &launches[i]);
    return status;
}

static bnb_status begin(struct gpu *gpu) {
    if (!cuda_enter(gpu)) return bnb_last_status();
    if (!gpu->scratch && !(gpu->scratch = cuda_alloc_within(gpu, SCRATCH_BYTES))) return bnb_last_status();
    CUstream stream = NULL;
    CUresult result = libcuda.cuStreamCreate(&stream, STREAM_NON_BLOCKING);
    if (result == CUDA_SUCCESS) result = libcuda.cuStreamBeginCapture_v2(stream, CAPTURE_RELAXED);
    if (result == CUDA_SUCCESS) {
        capture = (struct capture){gpu, stream, ++gpu->captures};
        return BNB_OK;
    }
    if (stream) libcuda.cuStreamDestroy_v2(stream);
    return cuda_failed(gpu, result, "the capture of a graph");
}

/* Ends the capture; what had failed before stays its failure. */
static bnb_status end(struct gpu *gpu, bnb_status status, CUgraph *graph) {
    CUstream stream = capture.stream;
    capture = (struct capture){};
    if (!cuda_enter(gpu)) return bnb_last_status();
    CUresult result = libcuda.cuStreamEndCapture(stream, graph);
    libcuda.cuStreamDestroy_v2(stream);
    if (status != BNB_OK || result == CUDA_SUCCESS) return status;
    return cuda_failed(gpu, result, "the capture of a graph");
}

static bnb_status instantiate(struct gpu *gpu, CUgraph captured, CUgraphExec *executable) {
    if (!cuda_enter(gpu)) return bnb_last_status();
    CUresult result = libcuda.cuGraphInstantiateWithFlags(executable, captured, 0);
    return result == CUDA_SUCCESS ? BNB_OK : cuda_failed(gpu, result, "the making of a graph");
}

/* A profile has the times of kernels one by one. */
bnb_status cuda_record(void *on, const struct launch *launches, size_t count, void **graph) {
    struct gpu *gpu = on;
    if (cuda_profiling) return fail(BNB_UNSUPPORTED, "BNB_PROFILE=1 times kernels one by one");
    struct graph *made = malloc(sizeof *made);
    if (!made) return fail(BNB_OUT_OF_MEMORY, "the host has no memory left");
    *made = (struct graph){.launches = launches, .count = count};
    CUgraph    captured = NULL;
    bnb_status status = begin(gpu);
    cuda_leave();
    if (status == BNB_OK) {
        status = launch_all(gpu, launches, count);
        status = end(gpu, status, &captured);
        cuda_leave();
    }
    if (status == BNB_OK) {
        status = instantiate(gpu, captured, &made->executable);
        cuda_leave();
    }
    if (captured) libcuda.cuGraphDestroy(captured);
    if (status == BNB_OK)
        *graph = made;
    else
        free(made);
    return status;
}

bnb_status cuda_replay(void *on, void *replayed) {
    struct gpu         *gpu = on;
    const struct graph *graph = replayed;
    bnb_status          status = cuda_enter(gpu) ? BNB_OK : bnb_last_status();
    if (status == BNB_OK) {
        cuda_note_graph(gpu, graph->launches, graph->count);
        CUresult result = libcuda.cuGraphLaunch(graph->executable, gpu->stream);
        if (result != CUDA_SUCCESS) status = cuda_failed(gpu, result, "a graph");
    }
    cuda_leave();
    return status;
}

void cuda_forget(void *on, void *forgotten) {
    struct graph *graph = forgotten;
    if (cuda_enter(on)) libcuda.cuGraphExecDestroy(graph->executable); /* at once, or after its last run */
    cuda_leave();
    free(graph);
}
