/* How an operation runs: launched on its GPU; else visibly on the CPU, on memory that it asks for by intent; else
 * refused. */
#ifndef BNB_RUN_H
#define BNB_RUN_H

#include "../job.h"

/* ── Memory as the CPU sees it ──────────────────────────────────────────────────────────────────────────────────── */

enum { VIEWS_MOST = 20 };

/* The memory that one run of a CPU form looks at. */
struct host {
    bnb_device   *device;
    bnb_status    status;   /* of the first view that can't be had */
    bool          recorded; /* a recording has taken the views over */
    bool          moved;    /* some address is another's by now: nothing was performed */
    bool          waits;    /* its status is wanted in the call */
    double        work;     /* in products, or in bytes that are moved; 0: as many as its memory has */
    uint32_t      count, codebook_count;
    bnb_codebook *codebooks[CODEBOOKS_MOST];
    struct view   views[VIEWS_MOST];
};

bool is_staged(const struct view *view); /* a copy, which its owner frees */

/* Its address, to be looked at by what `perform` calls and by nobody before: NULL where it can't be had, and then
 * perform calls nothing. Results come uninitialised from host_writes. */
const void *host_reads(struct host *host, const struct buffer *buffer);
void       *host_writes(struct host *host, const struct buffer *buffer);
void       *host_updates(struct host *host, const struct buffer *buffer);

/* The values of a codebook, which lives for as long as the memory. */
const struct codebook *host_codebook(struct host *host, const bnb_codebook *codebook);

struct dense dense_of(struct host *host, const bnb_tensor *tensor);
struct coded coded_of(struct host *host, const bnb_quantized *quantized);

/* The same without codes, for who wants scales or offsets alone; and nobody has waited for the offset of all scales. */
struct coded scales_in(struct host *host, const bnb_quantized *quantized);

/* Calls body(told) where all memory could be had: now, or on the CPU, where it is much work or its memory is in use, in
 * its turn. What is told is plain data, of which only memory and codebooks of `host` outlive the call: what is
 * queued or recorded keeps its bytes, and these. */
bnb_status perform(struct host *host, bnb_status (*body)(const void *told), const void *told, size_t told_bytes);

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

struct operation {
    const char *name; /* for people, where it falls back */
    bnb_device *device;
    bnb_status (*launch)(const void *request);                     /* enqueues; UNSUPPORTED and a reason */
    bnb_status (*on_host)(const void *request, struct host *host); /* makes a job of the request, and performs it */
    const void *request;
};

/* Launches, on a GPU. What that does not serve runs on the CPU: counted and named, with the last failure as its reason;
 * UNSUPPORTED under BNB_STRICT=1. */
bnb_status run(const struct operation *operation);

/* The last part alone: what the CPU does for every device, such as looking for what is not finite. Waits, so that it
 * can't be recorded. */
bnb_status run_on_host(bnb_device *device, bnb_status (*on_host)(const void *request, struct host *host),
                       const void *request);

/* A launch of `launch` above. */
bnb_status enqueue(bnb_device *device, const struct launch *launch);

/* A product as a whole, by the GPU's own kernels: UNSUPPORTED where it has none for the case, and the portable kernels
 * are to be launched. */
bnb_status serve(bnb_device *device, const struct launch *whole);

/* A job that was performed before, on the same memory, which is staged anew where it has to be. On a GPU only. */
bnb_status run_again(bnb_device *device, const struct job *job);

/* Kernels take what is small, a bias or a norm's weight, in fp32: puts a cast in the place of another dtype, and into
 * `made` for the caller to free. NULL stays NULL. False where the cast fails. */
bool as_f32(const bnb_tensor **tensor, bnb_tensor **made);

#endif
