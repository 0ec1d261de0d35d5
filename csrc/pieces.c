/* The CPU's large memory, of which what is freed is kept for reuse. */
#define _DEFAULT_SOURCE /* madvise */
#include "pieces.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Fresh memory of the operating system costs a page fault every 4 KB: for a 64 MB result eight times the work of the
 * kernel that fills it. So large pieces are kept, up to a limit, and given to the next that fits well. */
enum { KEPT = 32, HUGE_PAGE = 2 << 20 };
static const size_t keep_bytes = (size_t)256 << 20;

/* Behind LOCK_KEEPING. */
static struct piece kept[KEPT];
static size_t       kept_count, kept_total;

/* What is behind a piece, out of everybody's reach, so that to free it later takes no memory. */
struct piece_end {
    struct queued ending;
    void         *memory;
};

static struct piece_end *end_of(const struct piece *piece) {
    size_t at = ceil_div(piece->capacity + READ_SLACK, PIECE_ALIGNMENT) * PIECE_ALIGNMENT;
    return (struct piece_end *)((char *)piece->memory + at);
}

static void end_piece(struct queued *ending) { free(((struct piece_end *)ending)->memory); }

/* Gives a piece back to the system, once nothing uses it. */
static void give_back(const struct piece *piece) {
    if (cpu_queue_has_done(piece->turn)) {
        free(piece->memory);
        return;
    }
    struct piece_end *end = end_of(piece);
    *end = (struct piece_end){.ending.run = end_piece, .memory = piece->memory};
    cpu_queue_push(&end->ending, NULL, NULL);
}

/* The newest kept piece that holds `bytes` and wastes less than a quarter, one that nothing uses any more if there is
 * one; memory NULL where there is none. */
static struct piece take_kept(bnb_device *device, size_t bytes) {
    struct piece piece = {};
    size_t       found = KEPT;
    lock(LOCK_KEEPING);
    for (size_t i = kept_count; i-- > 0;) {
        if (kept[i].capacity < bytes || kept[i].capacity - bytes > bytes / 4) continue;
        if (found == KEPT) found = i;
        if (!cpu_queue_has_done(kept[i].turn)) continue;
        found = i;
        break;
    }
    if (found < KEPT) {
        piece = kept[found];
        memmove(kept + found, kept + found + 1, (--kept_count - found) * sizeof *kept);
        device->cached = kept_total -= piece.capacity;
    }
    unlock(LOCK_KEEPING);
    return piece;
}

/* Keeps a piece; what no longer fits under the limit goes, oldest first. */
static void keep(bnb_device *device, const struct piece *piece) {
    struct piece gone[KEPT];
    size_t       gone_count = 0;
    lock(LOCK_KEEPING);
    while (kept_count && (kept_count == KEPT || kept_total + piece->capacity > keep_bytes)) {
        gone[gone_count++] = kept[0];
        kept_total -= kept[0].capacity;
        memmove(kept, kept + 1, --kept_count * sizeof *kept);
    }
    kept[kept_count++] = *piece;
    device->cached = kept_total += piece->capacity;
    unlock(LOCK_KEEPING);
    while (gone_count) give_back(&gone[--gone_count]);
}

/* Memory from the operating system, in huge pages where it is large and the system has them on request: a page of 4 KB
 * holds 128 rows' scales, and each costs a look into the page tables when a weight is read from memory. */
static void *fresh(size_t bytes) {
    size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : PIECE_ALIGNMENT;
    void  *memory = aligned_alloc(alignment, ceil_div(bytes, alignment) * alignment);
#ifdef MADV_HUGEPAGE
    if (memory && alignment == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

struct piece piece_take(bnb_device *device, size_t bytes) {
    struct piece piece = take_kept(device, bytes);
    if (piece.memory) return piece;
    piece.capacity = bytes;
    piece.memory = fresh(bytes + READ_SLACK + PIECE_ALIGNMENT + sizeof(struct piece_end));
    return piece;
}

void piece_leave(bnb_device *device, const struct piece *piece) {
    if (piece->capacity <= keep_bytes)
        keep(device, piece);
    else
        give_back(piece);
}
