/* Scales that are quantised in turn: their mean, and what readers see of their codes; the launches and the plain
 * loops. */
#include "nested.h"

#include "../../metal/nested_rule.h"
#include "launch.h"

struct request {
    const struct buffer *scales, *largest;
    const bnb_quantized *q;
};

/* Of scales. */
static uint32_t count_of(const struct request *r) { return (uint32_t)(r->scales->bytes / sizeof(float)); }

static struct launch launch_of(const struct request *r, const char *kernel, const struct nested_args *args) {
    return (struct launch){
        .family = "nested",
        .kernel = kernel,
        .args = args,
        .args_bytes = sizeof *args,
        .groups = {(uint32_t)ceil_div(args->count, 4 * NESTED_THREADS), 1, 1},
        .threads = NESTED_THREADS,
        .bytes_moved = 2 * r->scales->bytes,
    };
}

/* ── The mean ───────────────────────────────────────────────────────────────────────────────────────────────────── */

struct centre_job {
    float   *scales;
    uint32_t count;
    float   *offset;
};

static bnb_status centre(const void *argument) {
    const struct centre_job *job = argument;
    uint32_t                 largest = 0;
    for (uint32_t b = 0; b < job->count; b++) {
        uint32_t magnitude = float_bits(job->scales[b]) & 0x7fffffff;
        if (magnitude > largest) largest = magnitude;
    }
    uint64_t low = 0, high = 0;
    for (uint32_t b = 0; b < job->count; b++) {
        uint64_t units = units_of(float_bits(job->scales[b]), largest);
        low += (uint32_t)units, high += units >> 32;
    }
    float mean = *job->offset = bits_float(mean_of_units(high, low, job->count, largest));
    for (uint32_t b = 0; b < job->count; b++) job->scales[b] -= mean;
    return BNB_OK;
}

static bnb_status centre_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct centre_job     job = {host_updates(host, r->scales), count_of(r), host_writes(host, r->q->nested_offset)};
    return perform(host, centre, &job, sizeof job);
}

static bnb_status launch_centre(const void *request) {
    const struct request *r = request;
    bnb_device           *device = r->scales->device;
    if (!r->largest) return BNB_UNSUPPORTED; /* nor could they be found */
    struct nested_args args = {count_of(r), (uint32_t)(r->largest->bytes / sizeof(uint32_t)), 0};
    struct buffer     *sums = buffer_new(device, args.parts * sizeof(uint64_t[2]));
    if (!sums) return bnb_last_status();
    struct launch launch = launch_of(r, "nested_sum", &args);
    launch.groups[0] = args.parts;
    launch.bindings[0] = reads(r->scales);
    launch.bindings[1] = reads(r->largest);
    launch.bindings[2] = writes(sums);
    launch.binding_count = 3;
    bnb_status status = enqueue(device, &launch);
    launch.kernel = "nested_centre";
    launch.bindings[0] = updates(r->scales);
    launch.bindings[2] = reads(sums);
    launch.bindings[3] = writes(r->q->nested_offset);
    launch.binding_count = 4;
    if (status == BNB_OK) status = enqueue(device, &launch);
    buffer_release(sums); /* the driver keeps it until the work is done */
    return status;
}

bnb_status centre_scales(const struct buffer *scales, const struct buffer *largest, const bnb_quantized *q) {
    struct request request = {scales, largest, q};
    if (scales->bytes / sizeof(float) > UINT32_MAX)
        return fail(BNB_UNSUPPORTED, "quantize: nested scales of 2^32 blocks or more");
    return run(&(struct operation){"nested_scales", scales->device, launch_centre, centre_on_host, &request});
}

/* ── What readers see ───────────────────────────────────────────────────────────────────────────────────────────── */

struct read_job {
    struct coded q;
    const float *offset; /* of its scales */
    float       *scales;
    uint32_t     count;
};

static bnb_status read_all(const void *argument) {
    const struct read_job *job = argument;
    struct coded           q = job->q;
    q.offset = *job->offset;
    for (uint32_t b = 0; b < job->count; b++) job->scales[b] = scale_of(&q, b);
    return BNB_OK;
}

static bnb_status read_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct read_job job = {scales_in(host, r->q), host_reads(host, r->q->nested_offset), host_writes(host, r->scales),
                           count_of(r)};
    return perform(host, read_all, &job, sizeof job);
}

static bnb_status launch_read(const void *request) {
    const struct request *r = request;
    const bnb_quantized  *q = r->q;
    if (count_of(r) > UINT32_MAX / 2 || q->nested_block > UINT32_MAX)
        return fail(BNB_UNSUPPORTED, "2^31 blocks, or a nested block of 2^32 of them");
    struct nested_args args = {count_of(r), 0, (uint32_t)q->nested_block};
    struct launch      launch = launch_of(r, "nested_scales", &args);
    launch.groups[0] = groups_for(args.count, 4 * NESTED_THREADS);
    launch.bindings[0] = reads(q->absmax);
    launch.bindings[1] = reads(q->nested_absmax);
    launch.bindings[3] = reads(q->nested_offset);
    launch.bindings[4] = writes(r->scales);
    launch.binding_count = 5;
    bnb_status status = bind_codebook(q->nested_code, r->scales->device, &launch.bindings[2]);
    return status ? status : enqueue(r->scales->device, &launch);
}

bnb_status read_scales(const bnb_quantized *q, const struct buffer *scales) {
    struct request request = {scales, NULL, q};
    return run(&(struct operation){"nested_scales", scales->device, launch_read, read_on_host, &request});
}
