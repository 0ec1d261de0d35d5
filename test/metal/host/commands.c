/* The fake queue, command buffers and encoders.
 *
 * Of a concurrent encoder, what stands between two barriers runs last things first: who forgets a barrier reads too
 * early. What is committed runs when it is waited for, or when its status was asked for often enough: so a host that
 * reads
 * results without waiting sees poison. Command buffers of a queue run in the order in which they were committed. */
#include "fake.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../runtime/simulator.h"

enum { BINDINGS = 31, UNCOMPLETED_MAX = 64 };

struct queue {
    struct objc_object     object;
    struct command_buffer *first, *last; /* committed, and not yet run */
    _Atomic long           uncompleted;
    bool                   broken; /* by a failure: Metal then refuses what comes after it */
    bool                   kept;   /* a residency set is attached: what runs must be in it */
};

struct bound {
    struct device_buffer *buffer;
    size_t                offset;
    void                 *bytes; /* a copy, of setBytes */
    size_t                count;
};

struct dispatch {
    struct pipeline_state *pipeline;
    struct bound           bound[BINDINGS];
    MTLSize                grid, group;
    uint32_t               segment; /* of those that may run at once */
    bool                   kept;    /* by a queue with a residency set */
    size_t                 shared;  /* of threadgroup memory at index 0 */
    struct dispatch       *next;
};

struct command_buffer {
    struct objc_object     object;
    struct queue          *queue;
    struct command_buffer *next;
    struct dispatch       *dispatches, **end;
    bool                   encoding, committed, doomed;
    _Atomic NSUInteger     status;
    _Atomic long           polls;
    char                  *error;
    double                 start, stop;
};

struct encoder {
    struct objc_object     object;
    struct command_buffer *buffer;
    struct pipeline_state *pipeline;
    struct bound           bound[BINDINGS];
    size_t                 shared;
    bool                   ended, concurrent;
    uint32_t               groups; /* that are pushed and not popped */
    uint32_t               segment;
};

static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER;

/* ── Queues and command buffers ─────────────────────────────────────────────────────────────────────────────────── */

id fake_MTLDevice_newCommandQueue(id, SEL) {
    if (strikes(&faults.fail_queue)) return NULL;
    struct queue *queue = object_new(MTLCommandQueue, sizeof *queue);
    return &queue->object;
}

id fake_MTLCommandQueue_commandBufferWithUnretainedReferences(id self, SEL) {
    struct queue *queue = (struct queue *)self;
    if (++queue->uncompleted > UNCOMPLETED_MAX)
        violation("commandBuffer: %d are under way, Metal blocks", UNCOMPLETED_MAX);
    struct command_buffer *buffer = object_new(MTLCommandBuffer, sizeof *buffer);
    buffer->queue = keep(queue);
    buffer->end = &buffer->dispatches;
    return autorelease(buffer);
}

void destroy_command_buffer(id object) {
    struct command_buffer *buffer = (struct command_buffer *)object;
    if (buffer->committed && buffer->status < MTL_COMMAND_BUFFER_COMPLETED)
        violation("a command buffer was freed while Metal still runs it"); /* Metal retains it: a bug of the fake */
    if (!buffer->committed) buffer->queue->uncompleted--;
    drop(buffer->queue);
    free(buffer->error);
}

void fake_MTLCommandBuffer_commit(id self, SEL) {
    struct command_buffer *buffer = (struct command_buffer *)self;
    if (buffer->encoding) violation("commit: an encoder of the command buffer is still open");
    if (buffer->committed) violation("commit: the command buffer was committed before");
    counters.commits++;
    buffer->committed = true;
    buffer->doomed = strikes(&faults.fail_commit);
    keep(buffer);
    pthread_mutex_lock(&running);
    *(buffer->queue->first ? &buffer->queue->last->next : &buffer->queue->first) = buffer;
    buffer->queue->last = buffer;
    pthread_mutex_unlock(&running);
}

/* ── Residency ──────────────────────────────────────────────────────────────────────────────────────────────────── */

struct residency_set {
    struct objc_object     object;
    struct device_buffer **buffers;
    size_t                 count;
};

id fake_MTLDevice_newResidencySetWithDescriptor_error(id, SEL, id descriptor, id *) {
    expect(descriptor, MTLResidencySetDescriptor, "newResidencySetWithDescriptor:");
    return object_new(MTLResidencySet, sizeof(struct residency_set));
}

void destroy_residency_set(id set) { free(((struct residency_set *)set)->buffers); }

void fake_MTLResidencySet_addAllocation(id self, SEL, id given) {
    struct residency_set *set = (struct residency_set *)self;
    struct device_buffer *buffer = expect(given, MTLBuffer, "addAllocation:");
    if (buffer->in_set) violation("addAllocation: the buffer is in the set already");
    set->buffers = realloc(set->buffers, (set->count + 1) * sizeof *set->buffers);
    if (!set->buffers) violation("the host has no memory left");
    set->buffers[set->count++] = buffer;
    buffer->in_set = true;
}

void fake_MTLResidencySet_removeAllocation(id self, SEL, id given) {
    struct residency_set *set = (struct residency_set *)self;
    struct device_buffer *buffer = expect(given, MTLBuffer, "removeAllocation:");
    if (!buffer->in_set) violation("removeAllocation: the buffer is not in the set");
    size_t at = 0;
    while (set->buffers[at] != buffer) at++;
    set->buffers[at] = set->buffers[--set->count];
    buffer->in_set = buffer->resident = false;
}

void fake_MTLResidencySet_commit(id self, SEL) {
    struct residency_set *set = (struct residency_set *)self;
    for (size_t i = 0; i < set->count; i++) set->buffers[i]->resident = true;
}

void fake_MTLResidencySet_requestResidency(id, SEL) { counters.residency_requests++; }

void fake_MTLCommandQueue_addResidencySet(id self, SEL, id set) {
    expect(set, MTLResidencySet, "addResidencySet:");
    ((struct queue *)self)->kept = true;
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static int bind(sim_launch *launch, const struct dispatch *dispatch) {
    int status = 0;
    for (uint32_t i = 0; i < BINDINGS && !status; i++) {
        const struct bound *bound = &dispatch->bound[i];
        if (bound->bytes) status = sim_launch_bytes(launch, i, bound->bytes, bound->count);
        if (!bound->buffer) continue;
        if (dispatch->kept && !bound->buffer->resident)
            violation("%s: the buffer at %u is not in the residency set as it was last committed",
                      sim_kernel_name(dispatch->pipeline->kernel), i);
        if (bound->buffer->object.references <= 0)
            violation("%s: the buffer at %u was freed before the command buffer that uses it was done",
                      sim_kernel_name(dispatch->pipeline->kernel), i);
        if (bound->buffer->lent && !is_mapped(bound->buffer->memory, bound->buffer->bytes))
            violation("%s: the pages of the buffer at %u were given back before the work that uses them was done",
                      sim_kernel_name(dispatch->pipeline->kernel), i);
        status = sim_launch_buffer(launch, i, (char *)bound->buffer->memory + bound->offset,
                                   bound->buffer->bytes - bound->offset, 0);
    }
    if (dispatch->shared && !status) status = sim_launch_threadgroup(launch, 0, dispatch->shared);
    const struct constants *constants = &dispatch->pipeline->constants;
    for (uint32_t i = 0; i < 32 && !status; i++)
        if (constants->defined >> i & 1)
            status = sim_launch_constant(launch, i, &constants->values[i], sizeof(uint32_t));
    return status;
}

/* NULL, or what the kernel did wrong: a line each. */
static const char *run(const struct dispatch *dispatch) {
    static char text[4096];
    sim_launch *launch = sim_launch_new(dispatch->pipeline->kernel);
    const char *seed = getenv("BNB_SIM_SEED"), *flush = getenv("BNB_SIM_FLUSH");
    int         errors = !launch ? -1 : bind(launch, dispatch);
    if (!errors)
        errors = sim_run(launch, (uint32_t)dispatch->grid.width, (uint32_t)dispatch->grid.height,
                         (uint32_t)dispatch->grid.depth, (uint32_t)dispatch->group.width,
                         (uint32_t)dispatch->group.height, (uint32_t)dispatch->group.depth,
                         seed ? (uint32_t)atol(seed) : 0, flush && !strcmp(flush, "0") ? 0 : SIM_RUN_FLUSH);
    counters.runs++;
    sim_launch_free(launch);
    if (!errors) return NULL;
    snprintf(text, sizeof text, "%s", sim_errors());
    for (size_t length = strlen(text); length && text[length - 1] == '\n';) text[--length] = 0;
    return text;
}

/* Puts the dispatches of each segment into the opposite order. */
static struct dispatch *turn_segments(struct dispatch *first) {
    struct dispatch *turned = NULL, **end = &turned;
    while (first) {
        struct dispatch *segment = NULL, *last = first;
        for (uint32_t number = first->segment; first && first->segment == number;) {
            struct dispatch *next = first->next;
            first->next = segment;
            segment = first;
            first = next;
        }
        *end = segment;
        end = &last->next;
    }
    return turned;
}

static void run_all(struct command_buffer *buffer) {
    const char *error = NULL;
    buffer->start = now();
    if (buffer->queue->broken)
        error = "Ignored (for causing prior/excessive GPU errors) "
                "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)";
    else if (buffer->doomed)
        error = "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)";
    for (struct dispatch *dispatch = turn_segments(buffer->dispatches), *next; dispatch; dispatch = next) {
        if (!error) error = run(dispatch);
        for (uint32_t i = 0; i < BINDINGS; i++) free(dispatch->bound[i].bytes);
        drop(dispatch->pipeline);
        next = dispatch->next;
        free(dispatch);
    }
    buffer->dispatches = NULL;
    buffer->stop = now();
    if (error) {
        buffer->error = strdup(error);
        buffer->queue->broken = true;
    }
    buffer->queue->uncompleted--;
    buffer->status = error ? MTL_COMMAND_BUFFER_ERROR : MTL_COMMAND_BUFFER_COMPLETED;
}

static void run_until(struct command_buffer *buffer) {
    pthread_mutex_lock(&running);
    while (buffer->status < MTL_COMMAND_BUFFER_COMPLETED) {
        struct command_buffer *first = buffer->queue->first;
        buffer->queue->first = first->next;
        run_all(first);
        drop(first);
    }
    pthread_mutex_unlock(&running);
}

void fake_MTLCommandBuffer_waitUntilCompleted(id self, SEL) {
    struct command_buffer *buffer = (struct command_buffer *)self;
    if (!buffer->committed) violation("waitUntilCompleted: the command buffer was not committed");
    counters.blocking_waits++;
    const struct timespec least = {faults.wait_milliseconds / 1000, faults.wait_milliseconds % 1000 * 1000000};
    nanosleep(&least, NULL);
    run_until(buffer);
}

NSUInteger fake_MTLCommandBuffer_status(id self, SEL) {
    struct command_buffer *buffer = (struct command_buffer *)self;
    if (buffer->committed && buffer->status < MTL_COMMAND_BUFFER_COMPLETED && ++buffer->polls > faults.polls)
        run_until(buffer);
    return buffer->status;
}

id fake_MTLCommandBuffer_error(id self, SEL) {
    id error = NULL;
    if (((struct command_buffer *)self)->error) give_error(&error, ((struct command_buffer *)self)->error);
    return error;
}

double fake_MTLCommandBuffer_GPUStartTime(id self, SEL) { return ((struct command_buffer *)self)->start; }
double fake_MTLCommandBuffer_GPUEndTime(id self, SEL) { return ((struct command_buffer *)self)->stop; }

/* ── Encoders ───────────────────────────────────────────────────────────────────────────────────────────────────── */

id fake_MTLCommandBuffer_computeCommandEncoderWithDispatchType(id self, SEL, NSUInteger type) {
    struct command_buffer *buffer = (struct command_buffer *)self;
    if (buffer->committed) violation("computeCommandEncoder: the command buffer was committed");
    if (buffer->encoding) violation("computeCommandEncoder: another encoder of the command buffer is open");
    if (type > MTL_DISPATCH_TYPE_CONCURRENT) violation("computeCommandEncoder: %lu is no dispatch type", type);
    buffer->encoding = true;
    struct encoder *encoder = object_new(MTLComputeCommandEncoder, sizeof *encoder);
    encoder->buffer = keep(buffer);
    encoder->concurrent = type == MTL_DISPATCH_TYPE_CONCURRENT;
    return autorelease(encoder);
}

static struct encoder *open_encoder(id self, const char *method) {
    struct encoder *encoder = (struct encoder *)self;
    if (encoder->ended) violation("%s: after endEncoding", method);
    return encoder;
}

void destroy_encoder(id object) {
    struct encoder *encoder = (struct encoder *)object;
    if (!encoder->ended) violation("an encoder was freed without endEncoding");
    drop(encoder->buffer);
}

void fake_MTLComputeCommandEncoder_pushDebugGroup(id self, SEL, id name) {
    open_encoder(self, "pushDebugGroup:")->groups++;
    capture_line("group", text_of(expect(name, NSString, "pushDebugGroup:")));
}

void fake_MTLComputeCommandEncoder_popDebugGroup(id self, SEL) {
    if (!open_encoder(self, "popDebugGroup")->groups--) violation("popDebugGroup: no group is open");
}

void fake_MTLComputeCommandEncoder_setComputePipelineState(id self, SEL, id pipeline) {
    open_encoder(self, "setComputePipelineState:")->pipeline =
        expect(pipeline, MTLComputePipelineState, "setComputePipelineState:");
}

static struct bound *slot(id self, NSUInteger index, const char *method) {
    struct encoder *encoder = open_encoder(self, method);
    if (index >= BINDINGS) violation("%s: index %lu, of 31", method, index);
    free(encoder->bound[index].bytes);
    encoder->bound[index] = (struct bound){};
    return &encoder->bound[index];
}

void fake_MTLComputeCommandEncoder_setBuffer_offset_atIndex(id self, SEL, id given, NSUInteger offset,
                                                            NSUInteger index) {
    struct bound *bound = slot(self, index, "setBuffer:");
    if (!given) return;
    struct device_buffer *buffer = expect(given, MTLBuffer, "setBuffer:");
    if (offset >= buffer->bytes) violation("setBuffer: offset %lu in a buffer of %zu bytes", offset, buffer->bytes);
    *bound = (struct bound){.buffer = buffer, .offset = offset};
}

void fake_MTLComputeCommandEncoder_setBytes_length_atIndex(id self, SEL, const void *bytes, NSUInteger length,
                                                           NSUInteger index) {
    if (!length || length > MTL_SET_BYTES_MAX) violation("setBytes: %lu bytes, expected 1 to 4096", length);
    struct bound *bound = slot(self, index, "setBytes:");
    *bound = (struct bound){.bytes = malloc(length), .count = length};
    if (!bound->bytes) violation("the host has no memory left");
    memcpy(bound->bytes, bytes, length);
}

void fake_MTLComputeCommandEncoder_setThreadgroupMemoryLength_atIndex(id self, SEL, NSUInteger length,
                                                                      NSUInteger index) {
    struct encoder *encoder = open_encoder(self, "setThreadgroupMemoryLength:");
    if (index || !length || length % 16 || length > SIM_MAX_THREADGROUP_BYTES)
        violation("setThreadgroupMemoryLength: %lu bytes at index %lu, expected a multiple of 16 up to 32768 at 0",
                  length, index);
    encoder->shared = length;
}

static void check_dispatch(const struct encoder *encoder, MTLSize grid, MTLSize group) {
    if (!encoder->pipeline) violation("dispatchThreadgroups: no pipeline is set");
    const sim_kernel *kernel = encoder->pipeline->kernel;
    const char       *name = sim_kernel_name(kernel);
    NSUInteger        threads = group.width * group.height * group.depth;
    if (!threads || threads > sim_kernel_max_threads(kernel))
        violation("%s: %lu threads in a threadgroup, of %u", name, threads, sim_kernel_max_threads(kernel));
    if (!grid.width || !grid.height || !grid.depth || (grid.width | grid.height | grid.depth) >> 32)
        violation("%s: a grid of %lu x %lu x %lu threadgroups", name, grid.width, grid.height, grid.depth);
    for (uint32_t i = 0; i < BINDINGS; i++)
        if (sim_kernel_buffers(kernel) >> i & 1 && !encoder->bound[i].buffer && !encoder->bound[i].bytes)
            violation("%s: nothing was bound at buffer %u for this dispatch", name, i);
    if (sim_kernel_threadgroup_arguments(kernel) & 1 && !encoder->shared)
        violation("%s: no threadgroup memory was given for this dispatch", name);
}

/* Metal keeps what was bound for the next dispatch; the fake forgets it, so that nobody leans on another's bindings. */
void fake_MTLComputeCommandEncoder_dispatchThreadgroups_threadsPerThreadgroup(id self, SEL, MTLSize grid,
                                                                              MTLSize group) {
    struct encoder *encoder = open_encoder(self, "dispatchThreadgroups:");
    check_dispatch(encoder, grid, group);
    struct dispatch *dispatch = malloc(sizeof *dispatch);
    if (!dispatch) violation("the host has no memory left");
    *dispatch =
        (struct dispatch){.pipeline = keep(encoder->pipeline), .grid = grid, .group = group, .shared = encoder->shared};
    memcpy(dispatch->bound, encoder->bound, sizeof dispatch->bound);
    memset(encoder->bound, 0, sizeof encoder->bound);
    encoder->shared = 0;
    dispatch->segment = encoder->segment;
    dispatch->kept = encoder->buffer->queue->kept;
    if (!encoder->concurrent) encoder->segment++;
    *encoder->buffer->end = dispatch;
    encoder->buffer->end = &dispatch->next;
    counters.dispatches++;
}

void fake_MTLComputeCommandEncoder_memoryBarrierWithScope(id self, SEL, NSUInteger scope) {
    struct encoder *encoder = open_encoder(self, "memoryBarrierWithScope:");
    if (scope != MTL_BARRIER_SCOPE_BUFFERS) violation("memoryBarrierWithScope: %lu, expected that of buffers", scope);
    encoder->segment++;
    counters.barriers++;
}

void fake_MTLComputeCommandEncoder_endEncoding(id self, SEL) {
    struct encoder *encoder = open_encoder(self, "endEncoding");
    if (encoder->groups) violation("endEncoding: %u debug groups are open", encoder->groups);
    encoder->ended = true;
    encoder->buffer->encoding = false;
    for (uint32_t i = 0; i < BINDINGS; i++) free(encoder->bound[i].bytes);
}
