/* Launch; else fall back visibly; else refuse: the one place for it, and the CPU's view of a device's memory. */
#include "run.h"

#include "record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ── Memory as the CPU sees it ──────────────────────────────────────────────────────────────────────────────────── */

/* A copy of what the CPU can't address, with the room past its end that forms may read. */
static void *stage(const struct buffer *buffer, enum access access) {
    void *copy = malloc(buffer->bytes + READ_SLACK);
    if (!copy)
        return refuse(BNB_OUT_OF_MEMORY,
                      "the host has no memory for a copy of %zu bytes of %s; free something and try again",
                      buffer->bytes, buffer->device->name);
    if (!(access & READS) || buffer_read(buffer, copy, buffer->bytes) == BNB_OK) return copy;
    free(copy);
    return NULL;
}

/* On a GPU: waits for the memory's work first. */
static void *address_of(const struct buffer *buffer, enum access access) {
    bnb_device *device = buffer->device;
    if (!device->driver->host(device->gpu, buffer->memory)) return stage(buffer, access);
    if (device->driver->ready(device->gpu, buffer->memory, access)) return NULL;
    return (char *)device->driver->host(device->gpu, buffer->memory) + buffer->offset; /* writing may have moved it */
}

/* As for a tensor that is added to itself. */
static void *again(struct host *host, struct view *view, enum access access) {
    enum access more = access & ~view->access;
    bnb_device *device = view->buffer->device;
    if (more && device->driver && !is_staged(view))
        host->status = device->driver->ready(device->gpu, view->buffer->memory, more);
    else if (more & READS && device->driver)
        host->status = buffer_read(view->buffer, view->address, view->buffer->bytes);
    view->access |= access;
    return view->address;
}

static void *view(struct host *host, const struct buffer *buffer, enum access access) {
    if (host->status) return NULL;
    for (struct view *view = host->views; view < host->views + host->count; view++)
        if (view->buffer == buffer) return again(host, view, access);
    if (host->count == VIEWS_MOST) {
        host->status = fail(BNB_UNSUPPORTED, "an operation of more than %d pieces of memory", VIEWS_MOST);
        return NULL;
    }
    void *address = buffer->device->driver ? address_of(buffer, access) : buffer->memory;
    if (address)
        host->views[host->count++] = (struct view){(struct buffer *)buffer, address, access};
    else
        host->status = bnb_last_status();
    return address;
}

const void *host_reads(struct host *host, const struct buffer *buffer) { return view(host, buffer, READS); }
void       *host_writes(struct host *host, const struct buffer *buffer) { return view(host, buffer, WRITES); }
void       *host_updates(struct host *host, const struct buffer *buffer) { return view(host, buffer, UPDATES); }

const struct codebook *host_codebook(struct host *host, const bnb_codebook *codebook) {
    for (uint32_t i = 0; i < host->codebook_count; i++)
        if (host->codebooks[i] == codebook) return &codebook->book;
    if (host->codebook_count < CODEBOOKS_MOST)
        host->codebooks[host->codebook_count++] = (bnb_codebook *)codebook;
    else
        host->status = fail(BNB_UNSUPPORTED, "an operation with more than %d codebooks", CODEBOOKS_MOST);
    return &codebook->book;
}

struct dense dense_of(struct host *host, const bnb_tensor *tensor) {
    return (struct dense){host_reads(host, tensor->buffer), tensor->dtype, tensor->rows, tensor->columns};
}

struct coded coded_of(struct host *host, const bnb_quantized *q) {
    struct coded coded = scales_in(host, q);
    coded.codes = host_reads(host, q->codes);
    if (q->nested_offset && record_writes(q->nested_offset))
        host->status = fail(BNB_UNSUPPORTED, "the CPU needs the offset of nested scales before the recording that "
                                             "finds it has run: quantise before it");
    else
        coded.offset = quantized_offset(q);
    return coded;
}

struct coded scales_in(struct host *host, const bnb_quantized *q) {
    const void *absmax = host_reads(host, q->absmax);
    return (struct coded){
        .code = host_codebook(host, q->code),
        .rows = q->rows,
        .columns = q->columns,
        .block = q->block,
        .absmax = q->absmax_dtype == BNB_F32 ? absmax : NULL,
        .absmax_halves = q->absmax_dtype == BNB_F16 || q->absmax_dtype == BNB_BF16 ? absmax : NULL,
        .absmax_dtype = q->absmax_dtype,
        .absmax_codes = q->nested_code ? absmax : NULL,
        .nested_code = q->nested_code ? host_codebook(host, q->nested_code) : NULL,
        .nested_absmax = q->nested_code ? host_reads(host, q->nested_absmax) : NULL,
        .nested_offsets = q->nested_offsets ? host_reads(host, q->nested_offsets) : NULL,
        .nested_dtype = q->nested_dtype,
        .nested_block = q->nested_block,
        .offsets = q->offsets ? host_reads(host, q->offsets) : NULL,
        .offsets_dtype = q->offsets_dtype,
        .offsets_absmax = q->offsets_absmax ? host_reads(host, q->offsets_absmax) : NULL,
    };
}

static double work_of(const struct host *host) {
    double bytes = 0;
    for (uint32_t i = 0; i < host->count; i++) bytes += (double)host->views[i].buffer->bytes;
    return host->work ? host->work : bytes;
}

/* On the CPU: small work is done in the call, unless its memory has yet to be left alone by what is queued. */
static bnb_status perform_in_turn(struct host *host, const struct job *job) {
    bool now = host->waits || is_recording(host->device), busy = job_is_busy(job);
    if (!now && (busy || work_of(host) >= cpu_queue_from())) return job_queue(job);
    if (busy) job_settle(job);
    return job_do(job);
}

/* Whether memory that was looked at has another address by now: the pages of a file do once something is to write
 * them. */
static bool has_moved(const bnb_device *device, const struct view *views, uint32_t count) {
    for (const struct view *view = views; device->driver && view < views + count; view++) {
        char *shared = device->driver->host(device->gpu, view->buffer->memory);
        if (shared && shared + view->buffer->offset != view->address) return true;
    }
    return false;
}

bnb_status perform(struct host *host, bnb_status (*body)(const void *told), const void *told, size_t told_bytes) {
    if (host->status) return host->status;
    host->moved = has_moved(host->device, host->views, host->count);
    if (host->moved) return BNB_OK;
    for (const struct view *view = host->views; view < host->views + host->count; view++)
        if (view->access & WRITES) buffer_forget(view->buffer);
    struct job job = {body, told, told_bytes, host->views, host->count, host->codebook_count, host->codebooks};
    bnb_status status = host->device->driver ? body(told) : perform_in_turn(host, &job);
    if (status == BNB_OK && is_recording(host->device)) host->recorded = record_job(host->device, &job, work_of(host));
    return status;
}

/* What the CPU's form has written: not as buffer_write does it, for a form writes it anew whenever it runs. */
static bnb_status put_back(const struct view *view) {
    bnb_device *device = view->buffer->device;
    return device->driver->write(device->gpu, view->buffer->memory, view->buffer->offset, view->address,
                                 view->buffer->bytes);
}

bool is_staged(const struct view *view) {
    const bnb_device *device = view->buffer->device;
    return device->driver && !device->driver->host(device->gpu, view->buffer->memory);
}

/* Copies go back where they were written, and away, unless a recording has taken them over. */
static bnb_status leave(struct host *host, bnb_status status) {
    for (struct view *view = host->views; status == BNB_OK && view < host->views + host->count; view++)
        status = buffer_intact(view->buffer);
    for (struct view *view = host->views; host->device->driver && view < host->views + host->count; view++) {
        if (!is_staged(view)) continue;
        if (status == BNB_OK && view->access & WRITES) status = put_back(view);
        if (!host->recorded) free(view->address);
    }
    return status;
}

bnb_status run_again(bnb_device *device, const struct job *job) {
    const struct driver *driver = device->driver;
    const struct view   *end = job->views + job->view_count;
    bnb_status           status = BNB_OK;
    for (const struct view *view = job->views; view < end && status == BNB_OK; view++) {
        if (!is_staged(view))
            status = driver->ready(device->gpu, view->buffer->memory, view->access);
        else if (view->access & READS)
            status = buffer_read(view->buffer, view->address, view->buffer->bytes);
    }
    if (status == BNB_OK && has_moved(device, job->views, job->view_count))
        status = fail(BNB_INVALID, "replay: a tensor that was mapped to a file has been written since: record again");
    if (status == BNB_OK) status = job->body(job->told);
    for (const struct view *view = job->views; view < end && status == BNB_OK; view++)
        if (is_staged(view) && view->access & WRITES) status = put_back(view);
    return status;
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Counts and names the fallback, with the last failure as its reason. */
static bnb_status fall_back(const struct operation *o) {
    char reason[512];
    snprintf(reason, sizeof reason, "%s", bnb_last_error());
    const char *strict = getenv("BNB_STRICT");
    if (strict && !strcmp(strict, "1"))
        return fail(BNB_UNSUPPORTED, "%s: %s has no kernel for this case (%s), and BNB_STRICT=1 forbids the CPU's",
                    o->name, o->device->name, reason);
    count_fallback(o->device, o->name, reason);
    return BNB_OK;
}

static bnb_status form(bnb_device *device, bnb_status (*on_host)(const void *request, struct host *host),
                       const void *request, bool waits) {
    struct host host;
    bnb_status  status;
    do {
        host.device = device, host.status = BNB_OK, host.waits = waits, host.work = 0;
        host.count = host.codebook_count = 0;
        host.moved = host.recorded = false; /* the views are filled as they come */
        status = leave(&host, on_host(request, &host));
    } while (host.moved && status == BNB_OK); /* at most once: what was moved stays */
    return status;
}

bnb_status run_on_host(bnb_device *device, bnb_status (*on_host)(const void *request, struct host *host),
                       const void *request) {
    bnb_status status = not_recording(device, "this operation");
    return status ? status : form(device, on_host, request, true);
}

bnb_status run(const struct operation *o) {
    bnb_status status = BNB_UNSUPPORTED;
    if (o->device->driver) {
        size_t mark = record_mark(o->device);
        status = o->launch(o->request);
        if (status == BNB_UNSUPPORTED) {
            record_return(o->device, mark);
            bnb_status refused = fall_back(o);
            if (refused)
                status = refused;
            else
                status = form(o->device, o->on_host, o->request, false);
        }
    } else {
        status = form(o->device, o->on_host, o->request, false);
    }
    if (status) record_failure(o->device, status);
    return status;
}

static void forget_results(const struct launch *launch) {
    for (uint32_t i = 0; i < launch->binding_count; i++)
        if (launch->bindings[i].access & WRITES) buffer_forget(launch->bindings[i].owner);
}

bnb_status enqueue(bnb_device *device, const struct launch *launch) {
    forget_results(launch);
    bnb_status status = device->driver->launch(device->gpu, launch);
    if (status == BNB_OK) record_launch(device, launch, false);
    return status;
}

bnb_status serve(bnb_device *device, const struct launch *whole) {
    if (!device->driver->serve) return BNB_UNSUPPORTED;
    forget_results(whole);
    bnb_status status = device->driver->serve(device->gpu, whole);
    if (status == BNB_OK) record_launch(device, whole, true);
    return status;
}
