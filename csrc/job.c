/* Doing a job of the CPU's now or in its turn, and what becomes of its results where it fails. */
#include "job.h"

#include <stdlib.h>
#include <string.h>

bool job_is_busy(const struct job *job) {
    for (uint32_t i = 0; i < job->view_count; i++)
        if (buffer_is_busy(job->views[i].buffer)) return true;
    return false;
}

void job_settle(const struct job *job) {
    for (uint32_t i = 0; i < job->view_count; i++) cpu_queue_wait(buffer_base(job->views[i].buffer)->turn);
}

/* The failure for which something that it reads was not written, or 0. */
static uint32_t lost(const struct job *job) {
    for (const struct view *view = job->views; view < job->views + job->view_count; view++) {
        uint32_t failed = view->access & READS ? buffer_base(view->buffer)->failed : 0;
        if (failed) return failed;
    }
    return 0;
}

/* What is written whole is good again. */
static void mark(const struct job *job, uint32_t failed) {
    for (const struct view *view = job->views; view < job->views + job->view_count; view++) {
        struct buffer *base = buffer_base(view->buffer);
        bool           whole = view->access == WRITES && view->buffer == base;
        if (view->access & WRITES && (failed || (whole && base->failed))) base->failed = failed;
    }
}

/* Bytes of files may have gone while it looked at them. */
static bnb_status do_body(const struct job *job) {
    bnb_status status = job->body(job->told);
    for (uint32_t i = 0; i < job->view_count && status == BNB_OK; i++)
        if (job->views[i].access & READS) status = buffer_intact(job->views[i].buffer);
    return status;
}

bnb_status job_do(const struct job *job) {
    uint32_t   failed = lost(job);
    bnb_status status = failed ? cpu_queue_failure(failed) : do_body(job);
    if (status == BNB_OK) mark(job, 0);
    return status;
}

void job_do_queued(const struct job *job) {
    uint32_t failed = lost(job);
    if (!failed && do_body(job) != BNB_OK) failed = cpu_queue_failed();
    mark(job, failed);
}

/* ── In the queue ───────────────────────────────────────────────────────────────────────────────────────────────── */

struct entry {
    struct queued queued;
    struct job    job; /* of copies, which lie behind it */
};

static void run(struct queued *queued) {
    struct entry *entry = (struct entry *)queued;
    job_do_queued(&entry->job);
    for (uint32_t i = 0; i < entry->job.codebook_count; i++) bnb_codebook_free(entry->job.codebooks[i]);
    free(entry);
}

static void note_turn(void *context, uint64_t turn) {
    const struct job *job = context;
    for (uint32_t i = 0; i < job->view_count; i++) buffer_base(job->views[i].buffer)->turn = turn;
}

static size_t aligned(size_t bytes) { return ceil_div(bytes, _Alignof(max_align_t)) * _Alignof(max_align_t); }

/* NULL where there is no memory. */
static struct entry *entry_of(const struct job *job) {
    size_t views = job->view_count * sizeof *job->views, codebooks = job->codebook_count * sizeof(void *);
    char  *memory = malloc(aligned(sizeof(struct entry)) + aligned(job->told_bytes) + aligned(views) + codebooks);
    if (!memory) return NULL;
    struct entry *entry = (struct entry *)memory;
    char         *told = memory + aligned(sizeof *entry), *seen = told + aligned(job->told_bytes);
    *entry = (struct entry){.queued.run = run, .job = *job};
    entry->job.told = memcpy(told, job->told, job->told_bytes);
    entry->job.views = memcpy(seen, job->views, views);
    entry->job.codebooks = (bnb_codebook **)(seen + aligned(views));
    for (uint32_t i = 0; i < job->codebook_count; i++) entry->job.codebooks[i] = codebook_share(job->codebooks[i]);
    return entry;
}

bnb_status job_queue(const struct job *job) {
    struct entry *entry = entry_of(job);
    if (!entry) {
        job_settle(job);
        return job_do(job);
    }
    cpu_queue_push(&entry->queued, note_turn, (void *)job);
    return BNB_OK;
}
