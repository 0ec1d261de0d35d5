/* Attention's launches: what prepares queries, keys and values, what attends, and what merges parts. */
#include "attention.h"

#include "launch.h"

static struct attention_args args_of(const struct attention_request *r) {
    return (struct attention_args){
        .rows = (uint32_t)r->q->rows,
        .heads = (uint32_t)r->heads,
        .kv_heads = (uint32_t)r->kv_heads,
        .d = (uint32_t)r->d,
        .q_columns = (uint32_t)r->q->columns,
        .k_columns = (uint32_t)r->k->columns,
        .v_columns = (uint32_t)r->v->columns,
        .k_first = r->joined ? (uint32_t)(r->heads * r->d) : 0,
        .v_first = r->joined ? (uint32_t)((r->heads + r->kv_heads) * r->d) : 0,
        .rotated = r->rope ? (uint32_t)r->rope->columns : 0,
        .positions = r->rope ? (uint32_t)r->rope->rows : 0,
        .slots = (uint32_t)r->slots,
        .capacity = (uint32_t)r->capacity,
        .texts = (uint32_t)r->texts,
        .reach = (uint32_t)r->reach,
        .pages = r->pages ? (uint32_t)r->pages->columns : 0,
        .page_bits = (uint32_t)__builtin_ctzll(r->capacity),
        .span = r->bias ? (uint32_t)(r->bias->columns + 1) / 2 : 0,
        .parts = 1,
        .scale = (float)r->options.scale,
        .softcap = (float)r->options.softcap,
        .norm_offset = (float)r->options.norm_offset,
        .norm_eps = (float)r->options.norm_eps,
    };
}

static struct binding at_offset(struct binding binding, size_t offset) {
    binding.offset = offset;
    return binding;
}

/* Keys, values and their scales out of one buffer; places that are not there are the buffer's start, and unused. */
static void bind_heads(const struct attention_request *r, enum access access, struct binding bindings[4]) {
    size_t         rows = r->slots * r->kv_heads * r->capacity, bytes = rows * r->d * dtype_size(r->store);
    struct binding kept = {r->kept->memory, 0, access, r->kept}, none = unused(r->kept);
    bool           scaled = r->store == BNB_I8;
    bindings[0] = kept, bindings[1] = at_offset(kept, bytes);
    bindings[2] = scaled ? at_offset(kept, 2 * bytes) : none;
    bindings[3] = scaled ? at_offset(kept, 2 * bytes + rows * sizeof(float)) : none;
}

static bnb_status launch_prepare(const struct attention_request *r, struct launch launch) {
    const struct buffer *q = r->q->buffer;
    launch.kernel = "attention_prepare";
    launch.bindings[0] = reads(q), launch.bindings[1] = reads(r->k->buffer), launch.bindings[2] = reads(r->v->buffer);
    launch.bindings[3] = reads(r->rows->buffer);
    launch.bindings[4] = reads_if(r->rope ? r->rope->buffer : NULL, q);
    launch.bindings[5] = reads_if(r->q_norm ? r->q_norm->buffer : NULL, q);
    launch.bindings[6] = reads_if(r->k_norm ? r->k_norm->buffer : NULL, q);
    launch.bindings[7] = updates(r->queries); /* rows that are not sound are left as they are */
    bind_heads(r, UPDATES, launch.bindings + 8);
    launch.bindings[12] = reads_if(r->pages ? r->pages->buffer : NULL, q);
    launch.binding_count = 13;
    launch.groups[0] = (uint32_t)ceil_div(r->heads + 2 * r->kv_heads, PREPARE_THREADS / 32);
    launch.groups[1] = (uint32_t)r->q->rows, launch.groups[2] = 1;
    launch.threads = PREPARE_THREADS;
    launch.bytes_moved = 2 * q->bytes;
    return enqueue(q->device, &launch);
}

static bnb_status launch_merge(const struct attention_request *r, struct launch launch, struct buffer *partial) {
    launch.kernel = "attention_merge";
    launch.bindings[0] = reads(partial), launch.bindings[1] = writes(r->y->buffer);
    launch.binding_count = 2;
    launch.groups[0] = (uint32_t)(r->q->rows * r->heads), launch.groups[1] = launch.groups[2] = 1;
    launch.threads = MERGE_THREADS;
    launch.bytes_moved = partial->bytes;
    return enqueue(r->q->buffer->device, &launch);
}

/* The kernel whose lanes hold as many columns as a head has for each. */
static const char *kernel_for(size_t d) {
    return d <= 64 ? "attention_2" : d <= 128 ? "attention_4" : d <= 256 ? "attention_8" : "attention_32";
}

/* Where there are too few heads of rows to fill a GPU, each one's keys are split, as far as there may be so many. */
enum { PART_KEYS = 128, PARTS_MOST = MERGE_THREADS };

static uint32_t parts_of(const struct attention_request *r) {
    size_t units = r->q->rows * r->heads, wanted = ceil_div(r->q->buffer->device->sizes.tiles_wanted, units);
    size_t most = r->reach / PART_KEYS < PARTS_MOST ? r->reach / PART_KEYS : PARTS_MOST;
    return (uint32_t)(wanted < most ? wanted : most ? most : 1);
}

/* What attends to the prepared queries: with everything but the kernel's name and grid. */
static void bind(const struct attention_request *r, struct launch *launch) {
    launch->bindings[0] = reads(r->queries), launch->bindings[1] = reads(r->rows->buffer);
    bind_heads(r, READS, launch->bindings + 2);
    launch->bindings[6] = reads_if(r->bias ? r->bias->buffer : NULL, r->queries);
    launch->bindings[7] = writes(r->y->buffer);
    launch->bindings[8] = reads_if(r->pages ? r->pages->buffer : NULL, r->queries);
    launch->binding_count = 9;
    launch->bytes_moved = r->kept->bytes;
}

static bnb_status launch_parts(const struct attention_request *r, struct launch launch, struct attention_args *args) {
    bnb_device    *device = r->q->buffer->device;
    struct buffer *partial = NULL;
    args->parts = parts_of(r);
    if (args->parts > 1) {
        partial = buffer_new(device, (size_t)args->parts * args->rows * args->heads * (args->d + 2) * sizeof(float));
        if (!partial) return BNB_OUT_OF_MEMORY;
        launch.constants[6] = true;
        launch.bindings[7] = writes(partial);
    }
    launch.kernel = kernel_for(r->d);
    launch.groups[0] = args->heads, launch.groups[1] = args->rows, launch.groups[2] = args->parts;
    launch.threads = ATTEND_THREADS;
    bnb_status status = enqueue(device, &launch);
    if (partial && status == BNB_OK) status = launch_merge(r, launch, partial);
    buffer_release(partial); /* the driver keeps it until the work is done */
    return status;
}

bnb_status attention_launch(const void *request) {
    const struct attention_request *r = request;
    if (r->q->rows * r->heads > INT32_MAX || r->q->columns > INT32_MAX || r->slots > INT32_MAX ||
        r->texts > INT32_MAX || r->reach > INT32_MAX)
        return fail(BNB_UNSUPPORTED, "a side of 2^31 elements or more");
    struct attention_args args = args_of(r);
    struct launch         launch = {
        .family = "attention",
        .constants = {r->q->dtype, r->store, r->cache != NULL, r->rope != NULL, r->q_norm != NULL, r->bias != NULL,
                      false, r->pages != NULL}, /* in parts: not yet */
        .constant_count = 8,
        .args = &args,
        .args_bytes = sizeof args,
    };
    bnb_status status = launch_prepare(r, launch);
    if (status) return status;
    bind(r, &launch);
    status = serve(r->q->buffer->device, &launch);
    return status == BNB_UNSUPPORTED ? launch_parts(r, launch, &args) : status;
}
