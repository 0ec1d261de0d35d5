/* Memory of devices: counted, shared, and on the CPU kept for reuse. */
#define _DEFAULT_SOURCE /* madvise */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

/* ── Host memory ────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Fresh memory of the operating system costs a page fault every 4 KB: for a 64 MB result eight times the work of the
 * kernel that fills it. So large pieces are kept, up to a limit, and given to the next that fits well. */
enum { KEEP_FROM = 64 << 10, KEPT = 32, ALIGNMENT = 64, HUGE_PAGE = 2 << 20 };
static const size_t keep_bytes = (size_t)256 << 20;

/* Behind LOCK_KEEPING. */
static struct kept {
    void  *memory;
    size_t capacity;
} kept[KEPT];
static size_t kept_count, kept_total;

/* The newest kept piece that holds `bytes` and wastes less than a quarter; NULL where there is none. */
static void *take_kept(bnb_device *device, size_t bytes, size_t *capacity) {
    void *memory = NULL;
    lock(LOCK_KEEPING);
    for (size_t i = kept_count; i-- > 0;) {
        if (kept[i].capacity < bytes || kept[i].capacity - bytes > bytes / 4) continue;
        memory = kept[i].memory;
        *capacity = kept[i].capacity;
        memmove(kept + i, kept + i + 1, (--kept_count - i) * sizeof *kept);
        device->cached = kept_total -= *capacity;
        break;
    }
    unlock(LOCK_KEEPING);
    return memory;
}

/* Keeps a piece; what no longer fits under the limit goes, oldest first. */
static void keep(bnb_device *device, void *memory, size_t capacity) {
    void  *gone[KEPT];
    size_t gone_count = 0;
    lock(LOCK_KEEPING);
    while (kept_count && (kept_count == KEPT || kept_total + capacity > keep_bytes)) {
        gone[gone_count++] = kept[0].memory;
        kept_total -= kept[0].capacity;
        memmove(kept, kept + 1, --kept_count * sizeof *kept);
    }
    kept[kept_count++] = (struct kept){memory, capacity};
    device->cached = kept_total += capacity;
    unlock(LOCK_KEEPING);
    while (gone_count) free(gone[--gone_count]);
}

/* Memory from the operating system, in huge pages where it is large and the system has them on request: a page of 4 KB
 * holds 128 rows' scales, and each costs a look into the page tables when a weight is read from memory. */
static void *fresh(size_t bytes) {
    size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : ALIGNMENT;
    void  *memory = aligned_alloc(alignment, ceil_div(bytes, alignment) * alignment);
#ifdef MADV_HUGEPAGE
    if (memory && alignment == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

static void *host_alloc(bnb_device *device, size_t bytes, size_t *capacity) {
    void *memory = take_kept(device, bytes, capacity);
    if (memory) return memory;
    *capacity = bytes;
    return fresh(bytes + READ_SLACK);
}

static void host_free(bnb_device *device, void *memory, size_t capacity) {
    if (capacity <= keep_bytes)
        keep(device, memory, capacity);
    else
        free(memory);
}

/* ── Buffers ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static void count_bytes(bnb_device *device, size_t bytes) {
    size_t now = atomic_fetch_add(&device->bytes, bytes) + bytes, peak = device->peak;
    while (now > peak && !atomic_compare_exchange_weak(&device->peak, &peak, now)) {}
}

/* On the CPU, memory too small to be kept is one piece with its buffer: one malloc takes half as long as two
 * allocations, of which one is aligned. */
static struct buffer *joined_new(size_t bytes) {
    struct buffer *buffer = malloc(sizeof *buffer + ALIGNMENT + bytes + READ_SLACK);
    if (buffer) buffer->memory = (void *)(ceil_div((uintptr_t)(buffer + 1), ALIGNMENT) * ALIGNMENT);
    return buffer;
}

struct buffer *buffer_new(bnb_device *device, size_t bytes) {
    struct buffer *again = record_reuse(device, bytes);
    if (again) return again;
    bool           joined = !device->driver && bytes < KEEP_FROM;
    struct buffer *buffer = joined ? joined_new(bytes) : malloc(sizeof *buffer);
    size_t         capacity = joined ? 0 : bytes;
    void          *memory = NULL;
    if (joined && buffer)
        memory = buffer->memory;
    else if (buffer)
        memory = device->driver ? device->driver->alloc(device->gpu, bytes) : host_alloc(device, bytes, &capacity);
    if (!memory) {
        free(buffer);
        if (buffer && device->driver) return NULL; /* the driver has said how much there is */
        return refuse(BNB_OUT_OF_MEMORY,
                      "%zu bytes can't be had on %s, which holds %zu: free tensors that are no longer used", bytes,
                      device->name, (size_t)device->bytes);
    }
    *buffer = (struct buffer){.refs = 1, .device = device, .memory = memory, .bytes = bytes, .capacity = capacity};
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

void buffer_release(struct buffer *buffer) {
    if (!buffer || --buffer->refs) return;
    if (buffer->whole) {
        buffer_release(buffer->whole);
        free(buffer);
        return;
    }
    if (buffer->mapping)
        buffer->device->mapped -= buffer->bytes;
    else
        buffer->device->bytes -= buffer->bytes;
    if (buffer->device->driver)
        buffer->device->driver->free(buffer->device->gpu, buffer->memory);
    else if (buffer->capacity)
        host_free(buffer->device, buffer->memory, buffer->capacity);
    mapping_release(buffer->mapping);
    free(buffer);
}

/* By the host, all of it or a part: what a recording can't write anew. */
static void mark_written(struct buffer *buffer) {
    buffer->written = (buffer->whole ? buffer->whole : buffer)->written = true;
}

bnb_status buffer_write_at(struct buffer *buffer, size_t offset, const void *from, size_t bytes) {
    bnb_device *device = buffer->device;
    mark_written(buffer);
    if (device->driver) return device->driver->write(device->gpu, buffer->memory, buffer->offset + offset, from, bytes);
    memcpy((char *)buffer->memory + offset, from, bytes);
    return BNB_OK;
}

bnb_status buffer_read_at(const struct buffer *buffer, size_t offset, void *to, size_t bytes) {
    bnb_device *device = buffer->device;
    if (device->driver) {
        bnb_status status = device->driver->read(device->gpu, buffer->memory, buffer->offset + offset, to, bytes);
        return status ? status : buffer_intact(buffer);
    }
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
    return device->driver ? device->driver->ready(device->gpu, buffer->memory, access) : BNB_OK;
}

void *buffer_host(struct buffer *buffer) {
    if (!shared(buffer))
        return refuse(BNB_UNSUPPORTED, "%s does not share its memory with the processor: take a copy with read()",
                      buffer->device->name);
    return make_ready(buffer, UPDATES) == BNB_OK && buffer_intact(buffer) == BNB_OK ? shared(buffer) : NULL;
}

bnb_status buffer_clear(struct buffer *buffer) {
    mark_written(buffer);
    if (!shared(buffer)) return copy_by_pieces(buffer, NULL);
    bnb_status status = make_ready(buffer, WRITES);
    if (status == BNB_OK) memset(shared(buffer), 0, buffer->bytes);
    return status;
}

bnb_status buffer_copy(struct buffer *to, const struct buffer *from) {
    mark_written(to);
    bool into = shared(to), out_of = shared(from);
    if (!into && !out_of) return copy_by_pieces(to, from);
    bnb_status status = make_ready(into ? to : from, into ? WRITES : READS);
    if (status) return status;
    if (into) return buffer_read(from, shared(to), to->bytes);
    status = buffer_write(to, shared(from), to->bytes);
    return status ? status : buffer_intact(from);
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
    void *address = shared(buffer);
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
    buffer = buffer_new(device, range->bytes);
    if (!buffer || fill_from_file(buffer, range) == BNB_OK) return buffer;
    buffer_release(buffer);
    return NULL;
}

bnb_status buffer_intact(const struct buffer *buffer) {
    return mapping_intact((buffer->whole ? buffer->whole : buffer)->mapping);
}
