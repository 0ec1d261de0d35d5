/* Recordings: the launches and jobs of operations that ran once, run again without an allocation or a check.
 *
 * A recording keeps all memory that its steps use. What was made while it was recorded and freed before it ended is
 * given to later results of the same size, so that a model's layers share their memory, unless the host has written to
 * it: that is
 * not written anew when the steps run again. */
#include "record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A launch; or a job of the CPU's where that has a body. */
struct step {
    struct launch launch;
    bool          whole; /* the driver's own kernels served it */
    struct job    job;
    void         *data; /* the launch's arguments, or what the job is told */
};

struct bnb_recording {
    enum tag     tag;
    bnb_device  *device;
    bnb_status   status; /* of the first step that could not be recorded */
    struct step *steps;
    size_t       count, capacity, jobs;
    double       work; /* of all jobs */
    uint64_t     turn; /* of the last run that was queued */
    struct held {
        struct buffer *buffer;
        bool           made;    /* while it was recorded */
        bool           results; /* steps write it */
    }             *held;
    size_t         held_count, held_capacity;
    struct launch *launches; /* of all steps, where the driver has taken them as `graph` */
    void          *graph;
};

static _Thread_local bnb_recording *current;

static bnb_recording *recording_of(const bnb_device *device) {
    return current && current->device == device ? current : NULL;
}

bool is_recording(const bnb_device *device) { return recording_of(device); }

bnb_status not_recording(const bnb_device *device, const char *function) {
    bnb_recording *r = recording_of(device);
    if (!r) return BNB_OK;
    bnb_status status = fail(BNB_UNSUPPORTED,
                             "%s: it looks at its results on the CPU, so it can't be recorded: do it before", function);
    if (!r->status) r->status = status;
    return status;
}

/* ── Memory ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Room for one more; false and a failure of the recording where there is none. */
static bool grow(bnb_recording *r, void **array, size_t count, size_t *capacity, size_t size) {
    if (count < *capacity) return true;
    size_t more = *capacity ? 2 * *capacity : 64;
    void  *grown = malloc(more * size);
    if (!grown) {
        if (!r->status) r->status = fail(BNB_OUT_OF_MEMORY, "no memory for a recording of %zu steps", r->count);
        return false;
    }
    if (count) memcpy(grown, *array, count * size);
    free(*array);
    *array = grown;
    *capacity = more;
    return true;
}

/* Its entry; NULL where there is no memory, and the recording has failed. */
static struct held *hold(bnb_recording *r, struct buffer *buffer) {
    for (size_t i = r->held_count; i-- > 0;)
        if (r->held[i].buffer == buffer) return &r->held[i];
    if (!grow(r, (void **)&r->held, r->held_count, &r->held_capacity, sizeof *r->held)) return NULL;
    r->held[r->held_count] = (struct held){.buffer = buffer_share(buffer)};
    return &r->held[r->held_count++];
}

/* What a step uses. */
static void hold_used(bnb_recording *r, const struct buffer *buffer, enum access access) {
    struct held *held = hold(r, (struct buffer *)buffer);
    if (held && access & WRITES) held->results = true;
}

struct buffer *record_reuse(const bnb_device *device, size_t bytes) {
    bnb_recording *r = recording_of(device);
    for (size_t i = 0; r && i < r->held_count; i++) {
        struct buffer *buffer = r->held[i].buffer;
        if (r->held[i].made && buffer->bytes == bytes && buffer->refs == 1 && !buffer->written)
            return buffer_share(buffer);
    }
    return NULL;
}

void record_made(struct buffer *buffer) {
    bnb_recording *r = recording_of(buffer->device);
    struct held   *held = r ? hold(r, buffer) : NULL;
    if (held) held->made = true;
}

bool record_writes(const struct buffer *buffer) {
    bnb_recording *r = recording_of(buffer->device);
    for (size_t i = 0; r && i < r->held_count; i++)
        if (r->held[i].buffer == buffer) return r->held[i].made && !buffer->written;
    return false;
}

/* ── Steps ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

static void forget_step(struct step *step) {
    for (uint32_t i = 0; i < step->job.view_count; i++)
        if (is_staged(&step->job.views[i])) free(step->job.views[i].address);
    for (uint32_t i = 0; i < step->job.codebook_count; i++) bnb_codebook_free(step->job.codebooks[i]);
    free(step->data);
    free(step->job.views);
    free(step->job.codebooks);
}

/* Appends it, with a copy of what its launch or its job is told, which it takes over; NULL where there is no memory. */
static struct step *new_step(bnb_recording *r, struct step step, const void *told, size_t told_bytes) {
    step.data = malloc(told_bytes + 1);
    if (!step.data && !r->status)
        r->status = fail(BNB_OUT_OF_MEMORY, "no memory for a recording of %zu steps", r->count);
    if (!step.data || !grow(r, (void **)&r->steps, r->count, &r->capacity, sizeof *r->steps)) {
        free(step.data);
        return NULL;
    }
    if (told_bytes) memcpy(step.data, told, told_bytes);
    r->steps[r->count] = step;
    return &r->steps[r->count++];
}

void record_launch(bnb_device *device, const struct launch *launch, bool whole) {
    bnb_recording *r = recording_of(device);
    struct step   *step = NULL;
    if (r) step = new_step(r, (struct step){.launch = *launch, .whole = whole}, launch->args, launch->args_bytes);
    if (!step) return;
    step->launch.args = step->data;
    for (uint32_t i = 0; i < launch->binding_count; i++)
        if (launch->bindings[i].owner) hold_used(r, launch->bindings[i].owner, launch->bindings[i].access);
}

bool record_job(const bnb_device *device, const struct job *job, double work) {
    bnb_recording *r = recording_of(device);
    if (!r) return false;
    struct step made = {.job = *job};
    made.job.views = malloc((job->view_count + 1) * sizeof *job->views);
    made.job.codebooks = malloc((job->codebook_count + 1) * sizeof *job->codebooks);
    struct step *step = NULL;
    if (made.job.views && made.job.codebooks) step = new_step(r, made, job->told, job->told_bytes);
    if (!step) {
        if (!r->status) r->status = fail(BNB_OUT_OF_MEMORY, "no memory for a recording of %zu steps", r->count);
        free(made.job.views), free(made.job.codebooks);
        return false;
    }
    step->job.told = step->data;
    memcpy(step->job.views, job->views, job->view_count * sizeof *job->views);
    for (uint32_t i = 0; i < job->codebook_count; i++) step->job.codebooks[i] = codebook_share(job->codebooks[i]);
    r->jobs++;
    r->work += work;
    for (uint32_t i = 0; i < job->view_count; i++) hold_used(r, job->views[i].buffer, job->views[i].access);
    return true;
}

size_t record_mark(const bnb_device *device) {
    bnb_recording *r = recording_of(device);
    return r ? r->count : 0;
}

void record_return(const bnb_device *device, size_t mark) {
    bnb_recording *r = recording_of(device);
    while (r && r->count > mark) forget_step(&r->steps[--r->count]);
}

void record_failure(const bnb_device *device, bnb_status status) {
    bnb_recording *r = recording_of(device);
    if (r && !r->status) r->status = status;
}

/* ── Recording ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool is_recorded(const bnb_recording *recording, const char *function) {
    if (recording && recording->tag == TAG_RECORDING) return true;
    fail(BNB_INVALID,
         recording ? "%s: recording is not a recording, or was freed" : "%s: recording is NULL, expected a recording",
         function);
    return false;
}

static void dissolve(bnb_recording *r) {
    cpu_queue_wait(r->turn);
    if (r->graph) r->device->driver->forget(r->device->gpu, r->graph);
    while (r->count) forget_step(&r->steps[--r->count]);
    while (r->held_count) buffer_release(r->held[--r->held_count].buffer);
    free(r->launches);
    free(r->steps);
    free(r->held);
    r->launches = NULL, r->steps = NULL, r->held = NULL, r->graph = NULL;
}

bnb_status bnb_record(bnb_device *device) {
    if (!is_device(device, "record")) return BNB_INVALID;
    if (current) return fail(BNB_INVALID, "record: this thread records already: end that first");
    bnb_recording *r = handle_new(TAG_RECORDING, sizeof *r);
    if (!r) return fail(BNB_OUT_OF_MEMORY, "no memory for a recording's handle");
    *r = (bnb_recording){.tag = TAG_RECORDING, .device = device};
    current = r;
    return BNB_OK;
}

/* Has the driver take all launches at once, where it can and there is nothing between them. */
static bnb_status make_graph(bnb_recording *r) {
    const struct driver *driver = r->device->driver;
    if (!driver || !driver->record || r->jobs || !r->count) return BNB_OK;
    r->launches = malloc(r->count * sizeof *r->launches);
    if (!r->launches) return fail(BNB_OUT_OF_MEMORY, "no memory for a recording of %zu steps", r->count);
    for (size_t i = 0; i < r->count; i++) {
        r->launches[i] = r->steps[i].launch;
        if (r->steps[i].whole) r->launches[i].kernel = NULL;
    }
    bnb_status status = driver->record(r->device->gpu, r->launches, r->count, &r->graph);
    return status == BNB_UNSUPPORTED ? BNB_OK : status;
}

bnb_recording *bnb_record_end(void) {
    bnb_recording *r = current;
    if (!r) return refuse(BNB_INVALID, "record_end: this thread records nothing");
    current = NULL;
    if (!r->status) r->status = make_graph(r);
    if (r->status) {
        bnb_status status = r->status;
        char       reason[512];
        snprintf(reason, sizeof reason, "%s", bnb_last_error());
        bnb_recording_free(r);
        return refuse(status, "record_end: an operation failed while it was recorded, the last for this reason: %s",
                      reason);
    }
    return r;
}

void bnb_recording_free(bnb_recording *recording) {
    if (!recording || !is_recorded(recording, "recording_free") || !handle_claim(recording)) return;
    dissolve(recording);
    handle_free(recording);
}

/* ── Running again ──────────────────────────────────────────────────────────────────────────────────────────────── */

/* On the CPU: a run of all jobs, as one turn in the queue. */
struct entry {
    struct queued  queued;
    bnb_recording *recording;
};

static void run_queued(struct queued *queued) {
    const bnb_recording *r = ((struct entry *)queued)->recording;
    for (size_t i = 0; i < r->count; i++) job_do_queued(&r->steps[i].job);
    free(queued);
}

static void note_turn(void *context, uint64_t turn) {
    bnb_recording *r = context;
    r->turn = turn;
    for (size_t i = 0; i < r->held_count; i++) buffer_base(r->held[i].buffer)->turn = turn;
}

static bool is_busy(const bnb_recording *r) {
    for (size_t i = 0; i < r->held_count; i++)
        if (buffer_is_busy(r->held[i].buffer)) return true;
    return false;
}

/* Where it is much work, or work that is queued uses its memory. False where there is no memory for it, or no need. */
static bool is_put_off(bnb_recording *r) {
    if (r->work < cpu_queue_from() && !is_busy(r)) return false;
    struct entry *entry = malloc(sizeof *entry);
    if (entry) {
        *entry = (struct entry){.queued.run = run_queued, .recording = r};
        cpu_queue_push(&entry->queued, note_turn, r);
        return true;
    }
    cpu_queue_wait(cpu_queue_last());
    return false;
}

static bnb_status run_step(bnb_device *device, const struct step *step) {
    if (step->job.body) return device->driver ? run_again(device, &step->job) : job_do(&step->job);
    return (step->whole ? device->driver->serve : device->driver->launch)(device->gpu, &step->launch);
}

bnb_status bnb_replay(bnb_recording *recording) {
    if (!is_recorded(recording, "replay")) return BNB_INVALID;
    if (current) return fail(BNB_INVALID, "replay: this thread is recording: end that first");
    bnb_device *device = recording->device;
    count_operation(device);
    for (size_t i = 0; i < recording->held_count; i++)
        if (recording->held[i].results) buffer_forget(recording->held[i].buffer);
    if (recording->graph) return device->driver->replay(device->gpu, recording->graph);
    if (!device->driver && is_put_off(recording)) return BNB_OK;
    bnb_status status = BNB_OK;
    for (size_t i = 0; i < recording->count && status == BNB_OK; i++) status = run_step(device, &recording->steps[i]);
    for (size_t i = 0; i < recording->held_count && status == BNB_OK; i++)
        status = buffer_intact(recording->held[i].buffer);
    return status;
}
