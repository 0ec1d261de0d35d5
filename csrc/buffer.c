/* Memory of devices: counted, shared, read and written. */
#include <stdlib.h>
#include <string.h>

#include "job.h"
#include "pieces.h"

/* ── Buffers ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static void count_bytes(bnb_device *device, size_t bytes) {
    size_t now = atomic_fetch_add(&device->bytes, bytes) + bytes, peak = device->peak;
    while (now > peak && !atomic_compare_exchange_weak(&device->peak, &peak, now)) {}
}

/* On the CPU, memory too small to be kept is one piece with its buffer: one malloc takes half as long as two
 * allocations, of which one is aligned. */
static struct buffer *joined_new(size_t bytes) {
    struct buffer *buffer = malloc(sizeof *buffer + PIECE_ALIGNMENT + bytes + READ_SLACK);
    if (buffer) buffer->memory = (void *)(ceil_div((uintptr_t)(buffer + 1), PIECE_ALIGNMENT) * PIECE_ALIGNMENT);
    return buffer;
}

struct buffer *buffer_new(bnb_device *device, size_t bytes) {
    struct buffer *again = record_reuse(device, bytes);
    return again ? again : buffer_for_host(device, bytes);
}

struct buffer *buffer_for_host(bnb_device *device, size_t bytes) {
    bool           joined = !device->driver && bytes < PIECE_FROM;
    struct buffer *buffer = joined ? joined_new(bytes) : malloc(sizeof *buffer);
    struct piece   piece = {.capacity = joined ? 0 : bytes};
    if (joined && buffer)
        piece.memory = buffer->memory;
    else if (buffer && device->driver)
        piece.memory = device->driver->alloc(device->gpu, bytes);
    else if (buffer)
        piece = piece_take(device, bytes);
    if (!piece.memory) {
        free(buffer);
        if (buffer && device->driver) return NULL; /* the driver has said how much there is */
        return refuse(BNB_OUT_OF_MEMORY,
                      "%zu bytes can't be had on %s, which holds %zu: free tensors that are no longer used", bytes,
                      device->name, (size_t)device->bytes);
    }
    *buffer = (struct buffer){.refs = 1,
                              .device = device,
                              .memory = piece.memory,
                              .bytes = bytes,
                              .capacity = piece.capacity,
                              .turn = piece.turn};
    count_bytes(device, bytes);
    record_made(buffer);
    return buffer;
}

struct buffer *buffer_share(struct buffer *buffer) {
    buffer->refs++;
    return buffer;
}

struct buffer *buffer_part(struct buffer *whole, size_t offset, size_t bytes) {
    struct buffer *part = malloc(sizeof *part);
    if (!part) return refuse(BNB_OUT_OF_MEMORY, "no memory for a part of a tensor");
    bool shared = whole->device->driver;
    *part = (struct buffer){.refs = 1,
                            .device = whole->device,
                            .bytes = bytes,
                            .whole = buffer_share(whole->whole ? whole->whole : whole)};
    part->memory = shared ? whole->memory : (char *)whole->memory + offset;
    part->offset = shared ? whole->offset + offset : 0;
    return part;
}

struct buffer *buffer_base(const struct buffer *buffer) {
    return buffer->whole ? buffer->whole : (struct buffer *)buffer;
}

bool buffer_is_busy(const struct buffer *buffer) { return !cpu_queue_has_done(buffer_base(buffer)->turn); }

bnb_status buffer_settle(const struct buffer *buffer, enum access access) {
    const struct buffer *base = buffer_base(buffer);
    cpu_queue_wait(base->turn);
    return access & READS && base->failed ? cpu_queue_failure(base->failed) : BNB_OK;
}

/* Frees what nothing refers to any more but turns in the queue, which are done now. */
static void end_buffer(struct queued *ending) {
    struct buffer *buffer = (struct buffer *)((char *)ending - offsetof(struct buffer, ending));
    buffer_release(buffer->whole);
    mapping_release(buffer->mapping);
    free(buffer);
}

void buffer_release(struct buffer *buffer) {
    if (!buffer || --buffer->refs) return;
    bnb_device *device = buffer->device;
    if (buffer->mapping)
        device->mapped -= buffer->bytes;
    else if (!buffer->whole)
        device->bytes -= buffer->bytes;
    if (!buffer->whole && device->driver)
        device->driver->free(device->gpu, buffer->memory);
    else if (!buffer->whole && buffer->capacity)
        piece_leave(device, &(struct piece){buffer->memory, buffer->capacity, buffer->turn});
    buffer->ending.run = end_buffer;
    if (!device->driver && buffer_is_busy(buffer))
        cpu_queue_push(&buffer->ending, NULL, NULL);
    else
        end_buffer(&buffer->ending);
}

/* By the host, all of it or a part: what a recording can't write anew. */
static void mark_written(struct buffer *buffer) {
    buffer->written = buffer_base(buffer)->written = true;
    buffer_forget(buffer);
}

/* ── What indices are below ─────────────────────────────────────────────────────────────────────────────────────── */

void buffer_forget(const struct buffer *buffer) {
    struct buffer *base = buffer_base(buffer);
    if (base->below) base->below = 0;
}

bool buffer_is_below(const struct buffer *buffer, size_t below) {
    uint32_t known = buffer_base(buffer)->below;
    return known && known <= below;
}

/* What was written there is below so much, and what the whole held before, below the other; each may be unknown. */
static void know(struct buffer *buffer, uint32_t below, uint32_t before) {
    struct buffer *base = buffer_base(buffer);
    if (buffer->whole) below = !below || !before ? 0 : below > before ? below : before;
    if (!base->lent) base->below = below;
}

/* One above the largest; 0 where some are negative, which as unsigned numbers are the largest. */
static uint32_t below_all(const char *indices, size_t count) {
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t index;
        memcpy(&index, indices + i * sizeof index, sizeof index);
        if (index > largest) largest = index;
    }
    return largest > INT32_MAX ? 0 : largest + 1;
}

bnb_status buffer_indices(struct buffer *buffer, const void *from) {
    uint32_t   before = buffer_base(buffer)->below;
    bnb_status status = buffer_write(buffer, from, buffer->bytes);
    if (status == BNB_OK) know(buffer, below_all(from, buffer->bytes / sizeof(int32_t)), before);
    return status;
}

/* ── Copies on the CPU ──────────────────────────────────────────────────────────────────────────────────────────── */

struct copy {
    void       *to;
    const void *from; /* NULL: zeros */
    size_t      bytes;
    void       *owned; /* freed when it is done; or NULL */
};

static bnb_status copy_bytes(const void *told) {
    const struct copy *copy = told;
    if (copy->from)
        memcpy(copy->to, copy->from, copy->bytes);
    else
        memset(copy->to, 0, copy->bytes);
    free(copy->owned);
    return BNB_OK;
}

/* Behind the queued work that uses either; else at once. */
static bnb_status copy_in_turn(struct view *views, uint32_t count, const struct copy *copy) {
    struct job job = {.body = copy_bytes,
                      .told = copy,
                      .told_bytes = sizeof *copy,
                      .views = views,
                      .view_count = count};
    return job_is_busy(&job) ? job_queue(&job) : job_do(&job);
}

/* What the caller has is copied where its turn is yet to come, so that nobody waits. */
static bnb_status write_in_turn(struct buffer *buffer, size_t offset, const void *from, size_t bytes) {
    char *to = (char *)buffer->memory + offset;
    void *owned = buffer_is_busy(buffer) ? malloc(bytes) : NULL;
    if (owned)
        memcpy(owned, from, bytes);
    else
        cpu_queue_wait(buffer_base(buffer)->turn);
    enum access access = bytes == buffer->bytes ? WRITES : UNUSED; /* a part does not make good what is lost */
    return copy_in_turn(&(struct view){buffer, to, access}, 1, &(struct copy){to, owned ? owned : from, bytes, owned});
}

/* ── Reading and writing ────────────────────────────────────────────────────────────────────────────────────────── */

bnb_status buffer_write_at(struct buffer *buffer, size_t offset, const void *from, size_t bytes) {
    bnb_device *device = buffer->device;
    mark_written(buffer);
    if (device->driver) return device->driver->write(device->gpu, buffer->memory, buffer->offset + offset, from, bytes);
    return write_in_turn(buffer, offset, from, bytes);
}

bnb_status buffer_read_at(const struct buffer *buffer, size_t offset, void *to, size_t bytes) {
    bnb_device *device = buffer->device;
    if (device->driver) {
        bnb_status status = device->driver->read(device->gpu, buffer->memory, buffer->offset + offset, to, bytes);
        return status ? status : buffer_intact(buffer);
    }
    bnb_status status = buffer_settle(buffer, READS);
    if (status) return status;
    memcpy(to, (const char *)buffer->memory + offset, bytes);
    return buffer_intact(buffer);
}

bnb_status buffer_write(struct buffer *buffer, const void *from, size_t bytes) {
    return buffer_write_at(buffer, 0, from, bytes);
}

bnb_status buffer_read(const struct buffer *buffer, void *to, size_t bytes) {
    return buffer_read_at(buffer, 0, to, bytes);
}

/* Where the CPU can address the memory, which has to be ready: making it so may move it. Or NULL. */
static void *shared(const struct buffer *buffer) {
    bnb_device *device = buffer->device;
    if (!device->driver) return buffer->memory;
    char *whole = device->driver->host(device->gpu, buffer->memory);
    return whole ? whole + buffer->offset : NULL;
}

/* Piece by piece through memory of the host, where the CPU can address neither side; zeros where `from` is NULL. */
static bnb_status copy_by_pieces(struct buffer *to, const struct buffer *from) {
    enum { PIECE = 1 << 20 };
    size_t room = to->bytes < PIECE ? to->bytes : PIECE;
    void  *piece = calloc(1, room);
    if (!piece) return fail(BNB_OUT_OF_MEMORY, "the host has no memory for a copy; free something and try again");
    const struct driver *giver = from ? from->device->driver : NULL, *taker = to->device->driver;
    bnb_status           status = BNB_OK;
    for (size_t at = 0, count; at < to->bytes && status == BNB_OK; at += count) {
        count = to->bytes - at < room ? to->bytes - at : room;
        if (giver) status = giver->read(from->device->gpu, from->memory, from->offset + at, piece, count);
        if (status == BNB_OK) status = taker->write(to->device->gpu, to->memory, to->offset + at, piece, count);
    }
    free(piece);
    return status;
}

static bnb_status make_ready(const struct buffer *buffer, enum access access) {
    bnb_device *device = buffer->device;
    return device->driver ? device->driver->ready(device->gpu, buffer->memory, access) : buffer_settle(buffer, access);
}

void *buffer_host(struct buffer *buffer) {
    if (!shared(buffer))
        return refuse(BNB_UNSUPPORTED, "%s does not share its memory with the processor: take a copy with read()",
                      buffer->device->name);
    buffer_base(buffer)->lent = true;
    buffer_forget(buffer);
    return make_ready(buffer, UPDATES) == BNB_OK && buffer_intact(buffer) == BNB_OK ? shared(buffer) : NULL;
}

/* Where the GPU does it by itself, in the order of its work. */
static bool copies_within(const struct buffer *to, const struct buffer *from) {
    return to->device->driver && to->device->driver->copy && (!from || from->device == to->device);
}

static bnb_status copy_within(struct buffer *to, const struct buffer *from) {
    return to->device->driver->copy(to->device->gpu, to->memory, to->offset, from ? from->memory : NULL,
                                    from ? from->offset : 0, to->bytes);
}

static bnb_status clear(struct buffer *buffer) {
    if (copies_within(buffer, NULL)) return copy_within(buffer, NULL);
    if (!shared(buffer)) return copy_by_pieces(buffer, NULL);
    if (!buffer->device->driver)
        return copy_in_turn(&(struct view){buffer, buffer->memory, WRITES}, 1,
                            &(struct copy){buffer->memory, NULL, buffer->bytes, NULL});
    bnb_status status = make_ready(buffer, WRITES);
    if (status == BNB_OK) memset(shared(buffer), 0, buffer->bytes);
    return status;
}

bnb_status buffer_clear(struct buffer *buffer) {
    uint32_t before = buffer_base(buffer)->below;
    mark_written(buffer);
    bnb_status status = clear(buffer);
    if (status == BNB_OK) know(buffer, 1, before);
    return status;
}

static bnb_status copy(struct buffer *to, const struct buffer *from) {
    if (copies_within(to, from)) return copy_within(to, from);
    bool into = shared(to), out_of = shared(from);
    if (!into && !out_of) return copy_by_pieces(to, from);
    if (!to->device->driver && !from->device->driver)
        return copy_in_turn((struct view[]){{to, to->memory, WRITES}, {(struct buffer *)from, from->memory, READS}}, 2,
                            &(struct copy){to->memory, from->memory, to->bytes, NULL});
    bnb_status status = make_ready(into ? to : from, into ? WRITES : READS);
    if (status) return status;
    if (into) return buffer_read(from, shared(to), to->bytes);
    status = buffer_write(to, shared(from), to->bytes);
    return status ? status : buffer_intact(from);
}

bnb_status buffer_copy(struct buffer *to, const struct buffer *from) {
    uint32_t below = buffer_base(from)->below, before = buffer_base(to)->below;
    mark_written(to);
    bnb_status status = copy(to, from);
    if (status == BNB_OK) know(to, below, before);
    return status;
}

/* ── Bytes of files ─────────────────────────────────────────────────────────────────────────────────────────────── */

static void leave_mapping(void *mapping) { mapping_release(mapping); }

/* On a GPU the kernels' loads ask for it; the CPU's forms load from anywhere, and their loops from whole elements. */
static bool is_aligned(const bnb_device *device, size_t offset, size_t element) {
    return offset % (device->driver ? LOAD_BYTES : element) == 0;
}

/* A buffer whose memory is the file's pages; NULL, with no failure recorded, where the device can't have them. On the
 * CPU the system copies a page that is written; a driver copies all of it, which it is lent to be read. */
static struct buffer *mapped_new(bnb_device *device, const struct file_range *range, size_t element) {
    const struct driver *driver = device->driver;
    if (!is_aligned(device, range->offset, element) || (driver && !driver->adopt)) return NULL;
    struct buffer  *buffer = malloc(sizeof *buffer);
    struct mapping *mapping = buffer ? mapping_new(range, !driver) : NULL;
    void           *memory = mapping ? mapping->pages + mapping->lead : NULL;
    if (memory && driver) {
        memory = driver->adopt(device->gpu, mapping->pages, mapping->page_bytes, leave_mapping, mapping_share(mapping));
        if (!memory) mapping_release(mapping);
    }
    if (!memory) {
        mapping_release(mapping);
        free(buffer);
        return NULL;
    }
    *buffer = (struct buffer){.refs = 1,
                              .device = device,
                              .memory = memory,
                              .bytes = range->bytes,
                              .offset = driver ? mapping->lead : 0,
                              .mapping = mapping};
    device->mapped += range->bytes;
    return buffer;
}

/* Into memory that the CPU can address, or by pieces. */
static bnb_status fill_from_file(struct buffer *buffer, const struct file_range *range) {
    enum { PIECE = 16 << 20 };
    mark_written(buffer);
    void *address = buffer->device->driver || !buffer_is_busy(buffer) ? shared(buffer) : NULL;
    if (address) return file_read(range, 0, address, range->bytes);
    size_t room = range->bytes < PIECE ? range->bytes : PIECE;
    void  *piece = malloc(room);
    if (!piece) return fail(BNB_OUT_OF_MEMORY, "the host has no memory for a copy; free something and try again");
    bnb_status status = BNB_OK;
    for (size_t at = 0, count; at < range->bytes && status == BNB_OK; at += count) {
        count = range->bytes - at < room ? range->bytes - at : room;
        status = file_read(range, at, piece, count);
        if (status == BNB_OK) status = buffer_write_at(buffer, at, piece, count);
    }
    free(piece);
    return status;
}

struct buffer *buffer_of_file(bnb_device *device, const struct file_range *range, size_t element, bool mapped) {
    struct buffer *buffer = mapped ? mapped_new(device, range, element) : NULL;
    if (buffer) return buffer;
    buffer = buffer_for_host(device, range->bytes);
    if (!buffer || fill_from_file(buffer, range) == BNB_OK) return buffer;
    buffer_release(buffer);
    return NULL;
}

bnb_status buffer_intact(const struct buffer *buffer) { return mapping_intact(buffer_base(buffer)->mapping); }
