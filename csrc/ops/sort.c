/* Positions sorted by the index that stands at each: the launches of a radix sort, and the CPU's by counting. */
#include "sort.h"

#include <stdlib.h>

#include "launch.h"

/* ── On a GPU ───────────────────────────────────────────────────────────────────────────────────────────────────── */

/* What the passes share. */
struct passes {
    const struct sort *sort;
    struct sort_args   args;
    uint32_t           tiles;
    struct buffer     *pairs[2]; /* which passes write by turns */
    struct buffer     *counts, *totals;
};

static bnb_status launch_one(const struct passes *p, struct launch launch) {
    launch.family = "sort";
    launch.args = &p->args;
    launch.args_bytes = sizeof p->args;
    launch.threads = SORT_THREADS;
    return enqueue(p->sort->indices->device, &launch);
}

static bnb_status launch_pass(const struct passes *p, uint32_t pass) {
    const struct buffer *indices = p->sort->indices, *to = p->pairs[pass % 2];
    struct binding       taken = pass ? unused(indices) : reads(indices);
    struct binding       from = pass ? reads(p->pairs[(pass + 1) % 2]) : unused(indices);
    bool                 alone = p->tiles == 1;
    size_t               bytes = p->sort->count * sizeof(uint32_t[2]);
    bnb_status           status = BNB_OK;
    if (!alone)
        status = launch_one(p, (struct launch){.kernel = "sort_count",
                                               .constants = {pass == 0},
                                               .constant_count = 1,
                                               .bindings = {taken, from, writes(p->counts)},
                                               .binding_count = 3,
                                               .groups = {p->tiles, 1, 1},
                                               .bytes_moved = bytes});
    if (!alone && status == BNB_OK)
        status = launch_one(p, (struct launch){.kernel = "sort_scan",
                                               .bindings = {updates(p->counts), writes(p->totals)},
                                               .binding_count = 2,
                                               .groups = {SORT_DIGITS, 1, 1},
                                               .bytes_moved = 2 * p->counts->bytes});
    if (status) return status;
    return launch_one(p, (struct launch){.kernel = "sort_move",
                                         .constants = {pass == 0, alone},
                                         .constant_count = 2,
                                         .bindings = {taken, from, reads_if(p->counts, indices),
                                                      reads_if(p->totals, indices), writes(to)},
                                         .binding_count = 5,
                                         .groups = {p->tiles, 1, 1},
                                         .bytes_moved = 3 * bytes});
}

static bnb_status launch_starts(const struct passes *p, const struct sorted *sorted) {
    return launch_one(p, (struct launch){.kernel = "sort_starts",
                                         .bindings = {reads(sorted->pairs), writes(sorted->starts)},
                                         .binding_count = 2,
                                         .groups = {groups_for(p->sort->rows + 1, SORT_THREADS), 1, 1},
                                         .bytes_moved = sorted->pairs->bytes + sorted->starts->bytes});
}

/* NULL, and no failure recorded, for 0 bytes. */
static struct buffer *room(bnb_device *device, size_t bytes, bnb_status *status) {
    struct buffer *buffer = bytes && *status == BNB_OK ? buffer_new(device, bytes) : NULL;
    if (bytes && !buffer && *status == BNB_OK) *status = bnb_last_status();
    return buffer;
}

bnb_status launch_sort(const struct sort *sort, struct sorted *sorted) {
    *sorted = (struct sorted){};
    if (sort->count >= 1u << 31 || sort->rows >= 1u << 31)
        return fail(BNB_UNSUPPORTED, "2^31 indices, or rows of the table, or more");
    bnb_device   *device = sort->indices->device;
    struct passes p = {.sort = sort, .args = {(uint32_t)sort->count, (uint32_t)sort->rows, (uint32_t)sort->padding, 0}};
    uint32_t      bits = 32 - (uint32_t)__builtin_clz(p.args.rows), count = (uint32_t)ceil_div(bits, SORT_BITS);
    p.tiles = (uint32_t)ceil_div(sort->count, SORT_TILE);

    bnb_status status = BNB_OK;
    size_t     bytes = sort->count * sizeof(uint32_t[2]);
    p.pairs[0] = room(device, bytes, &status);
    p.pairs[1] = room(device, count > 1 ? bytes : 0, &status);
    p.counts = room(device, p.tiles > 1 ? (size_t)p.tiles * SORT_DIGITS * sizeof(uint32_t) : 0, &status);
    p.totals = room(device, p.tiles > 1 ? SORT_DIGITS * sizeof(uint32_t) : 0, &status);
    sorted->starts = room(device, (sort->rows + 1) * sizeof(uint32_t), &status);
    for (uint32_t pass = 0; pass < count && status == BNB_OK; pass++) {
        p.args.shift = pass * SORT_BITS;
        status = launch_pass(&p, pass);
    }
    sorted->pairs = p.pairs[(count + 1) % 2];
    if (status == BNB_OK) status = launch_starts(&p, sorted);
    buffer_release(p.pairs[count % 2]);
    buffer_release(p.counts);
    buffer_release(p.totals);
    if (status == BNB_OK) return BNB_OK;
    sorted_release(sorted);
    *sorted = (struct sorted){};
    return status;
}

void sorted_release(const struct sorted *sorted) {
    buffer_release(sorted->pairs);
    buffer_release(sorted->starts);
}

/* ── On the CPU ─────────────────────────────────────────────────────────────────────────────────────────────────── */

uint32_t *sort_indices(const int32_t *indices, size_t count, size_t rows, int32_t padding) {
    uint32_t *starts = calloc(rows + 1 + count, sizeof *starts);
    if (!starts) return NULL;
    uint32_t *order = starts + rows + 1;
    for (size_t i = 0; i < count; i++)
        if (indices[i] != padding) starts[indices[i]]++;
    uint32_t total = 0; /* starts[row] becomes where the row ends, and the last loop fills it from there back */
    for (size_t row = 0; row <= rows; row++) starts[row] = total += starts[row];
    for (size_t i = count; i-- > 0;)
        if (indices[i] != padding) order[--starts[indices[i]]] = (uint32_t)i;
    return starts;
}
