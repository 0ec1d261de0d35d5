/* Command buffers: operations gather in a batch, which is committed when it is full or waited for; all run in order. */
#define _GNU_SOURCE /* clock_gettime */

#include "metal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A queue gives 64 command buffers before it blocks; and 32 of them are more than enough to keep a GPU busy. */
enum { PENDING_MAX = 32, SPIN_NANOSECONDS = 200000 };

struct batch {
    id             buffer;
    uint64_t       number;
    struct kernel *kernel; /* the one that ran, when profiling */
    size_t         bytes;
};

static struct {
    id           queue, encoder; /* the encoder is nil while no batch is open */
    struct batch open;
    uint64_t     phase; /* of launches between two barriers, which may run at once */
    uint32_t     operations, operations_max;
    size_t       bytes_max;
    struct batch pending[PENDING_MAX]; /* a ring of what was committed */
    uint32_t     first, count;
    uint64_t     completed;
    bool         broken;       /* a batch has failed: the next goes to a new queue */
    bool         untold;       /* nobody has been told yet, */
    char         reason[1024]; /* what Metal said of it: of the first that nobody was told of, or else the last */
} work;

/* MLX's limits, by the size of the chip. */
static void choose_limits(void) {
    bool large = strstr(metal.name, "Max") || strstr(metal.name, "Ultra");
    work.operations_max = metal.profiling ? 1 : large ? 50 : 40;
    work.bytes_max = (large ? 50 : 40) * (size_t)1000000;
}

static void print_profile(void) {
    void *pool = metal_enter();
    queue_drain();
    kernels_profile();
    metal_leave(pool);
}

bool queue_open(void) {
    work.queue = MTLDevice_newCommandQueue(metal.device);
    if (!work.queue) return fail(BNB_UNSUPPORTED, "Metal is absent: %s gave no command queue", metal.name), false;
    residency_attach(work.queue);
    label_queue(work.queue);
    choose_limits();
    if (metal.profiling) {
        atexit(print_profile);
#ifdef __linux__
        at_quick_exit(print_profile); /* so Bun ends a process there */
#endif
    }
    return true;
}

static void commit(void) {
    if (!work.encoder) return;
    MTLComputeCommandEncoder_endEncoding(work.encoder);
    NSObject_release(work.encoder);
    work.encoder = NULL;
    residency_settle();
    MTLCommandBuffer_commit(work.open.buffer);
    work.pending[(work.first + work.count++) % PENDING_MAX] = work.open;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * (int64_t)1000000000 + time.tv_nsec;
}

/* Looks for a while before it blocks: a thread that sleeps wakes up later than a short kernel ends. */
static void wait_for_oldest(void) {
    id oldest = NSObject_retain(work.pending[work.first].buffer);
    metal_unlock();
    for (int64_t end = now() + SPIN_NANOSECONDS; MTLCommandBuffer_status(oldest) < MTL_COMMAND_BUFFER_COMPLETED;)
        if (now() > end) {
            MTLCommandBuffer_waitUntilCompleted(oldest);
            break;
        }
    metal_lock();
    NSObject_release(oldest);
    queue_retire();
}

/* After a failure Metal may refuse all that the queue is given. */
static void renew_queue(void) {
    queue_drain();
    id queue = MTLDevice_newCommandQueue(metal.device);
    if (!queue) return; /* perhaps the next time */
    NSObject_release(work.queue);
    residency_attach(queue);
    label_queue(queue);
    work.queue = queue;
    work.broken = false;
}

id queue_encoder(uint64_t *batch) {
    while (!work.encoder && work.count == PENDING_MAX) wait_for_oldest();
    if (!work.encoder && work.broken) renew_queue();
    if (!work.encoder) {
        /* The memory that a batch binds is kept by us until it is done, so that Metal need not retain it too. */
        id buffer = MTLCommandQueue_commandBufferWithUnretainedReferences(work.queue);
        id encoder = buffer
                         ? MTLCommandBuffer_computeCommandEncoderWithDispatchType(buffer, MTL_DISPATCH_TYPE_CONCURRENT)
                         : NULL;
        if (!encoder) return refuse(BNB_DEVICE_LOST, "Metal gave no command buffer on %s; try again", metal.name);
        work.encoder = NSObject_retain(encoder);
        work.open = (struct batch){.buffer = NSObject_retain(buffer), .number = work.open.number + 1};
        label_batch(work.open.buffer, work.encoder, work.open.number);
        work.operations = 0;
        work.phase++; /* Metal itself orders what command buffers do to a buffer */
    }
    *batch = work.open.number;
    return work.encoder;
}

void queue_barrier(void) {
    MTLComputeCommandEncoder_memoryBarrierWithScope(work.encoder, MTL_BARRIER_SCOPE_BUFFERS);
    work.phase++;
}

uint64_t queue_phase(void) { return work.phase; }

void queue_encoded(struct kernel *kernel, size_t bytes_moved) {
    work.open.kernel = kernel;
    work.open.bytes += bytes_moved;
    if (++work.operations >= work.operations_max || work.open.bytes >= work.bytes_max) commit();
}

static void close_batch(const struct batch *batch) {
    work.completed = batch->number;
    if (MTLCommandBuffer_status(batch->buffer) == MTL_COMMAND_BUFFER_ERROR) {
        if (!work.untold)
            snprintf(work.reason, sizeof work.reason, "%s", objc_error(MTLCommandBuffer_error(batch->buffer)));
        work.untold = work.broken = true;
        memory_lose(batch->number);
    } else if (metal.profiling) {
        struct profile *profile = &batch->kernel->profile;
        profile->runs++;
        profile->seconds += MTLCommandBuffer_GPUEndTime(batch->buffer) - MTLCommandBuffer_GPUStartTime(batch->buffer);
        profile->bytes += (double)batch->bytes;
    }
    NSObject_release(batch->buffer);
}

void queue_retire(void) {
    while (work.count && MTLCommandBuffer_status(work.pending[work.first].buffer) >= MTL_COMMAND_BUFFER_COMPLETED) {
        close_batch(&work.pending[work.first]);
        work.first = (work.first + 1) % PENDING_MAX;
        work.count--;
    }
}

uint64_t queue_completed(void) { return work.completed; }

void queue_drain(void) {
    commit();
    while (work.count) wait_for_oldest();
}

bnb_status queue_tell_lost(void) {
    queue_drain(); /* what was enqueued behind it has failed too, and is told with it */
    work.untold = false;
    return fail(
        BNB_DEVICE_LOST,
        "the GPU failed at work that was enqueued before: %s. What it was to compute is lost; the device can be "
        "used again",
        work.reason);
}

void queue_wait(uint64_t batch) {
    if (work.encoder && batch == work.open.number) commit();
    while (work.count && work.completed < batch) wait_for_oldest();
}

bnb_status queue_wait_all(void) {
    queue_wait(work.open.number);
    return work.untold ? queue_tell_lost() : BNB_OK;
}

bool queue_idle(void) {
    if (work.count < PENDING_MAX) commit();
    queue_retire();
    return !work.count && !work.encoder;
}
