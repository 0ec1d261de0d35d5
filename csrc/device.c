/* Which processors are here, best first, why one is not, and what each has done so far. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* A new GPU is its driver and a row here, best first; the CPU has none. */
static const struct kind {
    const char          *name;
    const struct driver *driver;
} kinds[] = {
    {.name = "metal", .driver = &metal_driver},
    {.name = "cuda", .driver = &cuda_driver},
    {.name = "cpu"},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

const char *bnb_device_kind(uint32_t index) { return index < KINDS ? kinds[index].name : NULL; }

/* ── Opening ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* What was asked for so far; behind LOCK_OPENING. An absent device stays absent, for the reason it had the first
 * time. */
static struct entry {
    bnb_device    device;
    bool          absent;
    char          reason[1024];
    struct entry *next;
} *entries;

static bool try_open(bnb_device *device, const struct kind *kind, uint32_t index) {
    device->tag = TAG_DEVICE;
    if (kind->driver) {
        device->driver = kind->driver;
        device->gpu = kind->driver->open(index);
        if (!device->gpu) return false;
        device->sizes = kind->driver->sizes;
        if (kind->driver->choose) kind->driver->choose(device->gpu, &device->sizes);
        kind->driver->describe(device->gpu, device->description, sizeof device->description);
    } else {
        if (index)
            return fail(BNB_UNSUPPORTED, "%s is absent: all processors are one device, \"cpu\"", device->name), false;
        snprintf(device->description, sizeof device->description, "%u thread%s, %s kernels", thread_count(),
                 thread_count() == 1 ? "" : "s", cpu_forms()->isa);
    }
    return true;
}

static bnb_device *open_once(const struct kind *kind, uint32_t index) {
    char name[sizeof((bnb_device *)0)->name];
    snprintf(name, sizeof name, index ? "%s:%u" : "%s", kind->name, index);
    lock(LOCK_OPENING);
    struct entry *entry = entries;
    while (entry && strcmp(entry->device.name, name)) entry = entry->next;
    if (!entry && (entry = calloc(1, sizeof *entry))) {
        memcpy(entry->device.name, name, sizeof name);
        entry->absent = !try_open(&entry->device, kind, index);
        if (entry->absent) snprintf(entry->reason, sizeof entry->reason, "%s", bnb_last_error());
        entry->next = entries;
        entries = entry;
    }
    unlock(LOCK_OPENING);
    if (!entry) return refuse(BNB_OUT_OF_MEMORY, "no memory for a device's handle");
    return entry->absent ? refuse(BNB_UNSUPPORTED, "%s", entry->reason) : &entry->device;
}

void forget_gpus(void) {
    for (struct entry *entry = entries; entry; entry = entry->next) {
        if (!entry->device.driver || entry->absent) continue;
        entry->absent = true;
        snprintf(entry->reason, sizeof entry->reason,
                 "%s was opened before this process was forked off, and no GPU can be shared so: use \"cpu\", or start "
                 "a process anew",
                 entry->device.name);
    }
}

/* A kind that the library in BNB_DRIVER_LIBRARY brings, as the tests' own does: its bnb_drivers gives them, NULL past
 * the last. `row` is the caller's. */
static const struct kind *find_further(const char *name, size_t length, struct kind *row) {
    const char *path = getenv("BNB_DRIVER_LIBRARY");
    void       *library = path && *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    void       *symbol = library ? dlsym(library, "bnb_drivers") : NULL;
    const struct driver *const *(*drivers)(bnb_status (*)(bnb_status, const char *, ...));
    if (!symbol) return NULL;
    memcpy(&drivers, &symbol, sizeof drivers);
    for (const struct driver *const *driver = drivers(fail); *driver; driver++) {
        if (strlen((*driver)->kind) != length || memcmp((*driver)->kind, name, length)) continue;
        *row = (struct kind){.name = (*driver)->kind, .driver = *driver};
        return row;
    }
    return NULL;
}

/* "cuda", "cuda:0" and "cuda:1": the kind, and the place among its devices; NULL where it is neither. */
static const struct kind *parse(const char *name, uint32_t *index, struct kind *row) {
    if (!strcmp(name, "mps")) name = "metal"; /* torch's word */
    size_t length = strcspn(name, ":");
    *index = 0;
    if (name[length]) {
        size_t digits = strspn(name + length + 1, "0123456789");
        if (!digits || digits > 3 || name[length + 1 + digits]) return NULL;
        *index = (uint32_t)strtoul(name + length + 1, NULL, 10);
    }
    for (const struct kind *kind = kinds; kind < kinds + KINDS; kind++)
        if (strlen(kind->name) == length && !memcmp(kind->name, name, length)) return kind;
    return find_further(name, length, row);
}

/* What is asked for: by BNB_DEVICE, where the caller leaves it open. */
static const char *wanted_by(const char *name) {
    const char *forced = getenv("BNB_DEVICE");
    return !strcmp(name, "auto") && forced && *forced ? forced : name;
}

bnb_device *bnb_device_open(const char *name) {
    if (!name)
        return refuse(BNB_INVALID, "device_open: kind is NULL, expected \"auto\", \"metal\", \"cuda\" or \"cpu\"");
    watch_forks();
    const char *wrong = bad_isa(); /* the CPU's, which a GPU may fall back to */
    if (!wrong) wrong = bad_thread_count();
    if (!wrong) wrong = bad_queue_from();
    if (wrong) return refuse(BNB_INVALID, "%s", wrong);
    const char *wanted = wanted_by(name);

    for (const struct kind *kind = kinds; !strcmp(wanted, "auto"); kind++) {
        bnb_device *opened = open_once(kind, 0);
        if (opened || kind == kinds + KINDS - 1) return opened;
    }
    struct kind        row;
    uint32_t           index;
    const struct kind *kind = parse(wanted, &index, &row);
    if (kind) return open_once(kind, index);
    return refuse(BNB_INVALID,
                  "device_open: kind is \"%.64s\"%s, expected \"auto\", \"metal\" (or \"mps\"), \"cuda\" or \"cpu\", "
                  "or \"cuda:1\" for a second GPU",
                  wanted, wanted == name ? "" : " (from BNB_DEVICE)");
}

int32_t bnb_device_lacks_kernels(const char *name) {
    if (!name) return fail(BNB_INVALID, "device_lacks_kernels: kind is NULL, expected such as \"cuda\""), 0;
    struct kind        row;
    uint32_t           index;
    const char        *wanted = wanted_by(name);
    const struct kind *named = strcmp(wanted, "auto") ? parse(wanted, &index, &row) : NULL;
    for (const struct kind *kind = kinds; kind < kinds + KINDS; kind++)
        if ((named == kind || !strcmp(wanted, "auto")) && kind->driver && kind->driver->lacks && kind->driver->lacks())
            return 1;
    return 0;
}

/* No text of kernels is nearly as long: ours has some ten million bytes. */
enum { KERNELS_MOST = 1 << 28 };

bnb_status bnb_device_take_kernels(const char *name, const void *kernels, size_t bytes) {
    if (!name || !kernels)
        return fail(BNB_INVALID, "device_take_kernels: %s is NULL, expected a kind, and its kernels",
                    name ? "kernels" : "kind");
    if (!bytes || bytes > KERNELS_MOST)
        return fail(BNB_INVALID, "device_take_kernels: bytes is %zu, expected 1 to 2^28", bytes);
    struct kind        row;
    uint32_t           index;
    const char        *wanted = wanted_by(name);
    const struct kind *kind = parse(wanted, &index, &row);
    for (const struct kind *each = kinds; !strcmp(wanted, "auto") && !kind && each < kinds + KINDS; each++)
        if (each->driver && each->driver->take) kind = each;
    if (!kind || !kind->driver || !kind->driver->take)
        return fail(BNB_INVALID, "device_take_kernels: kind is \"%.64s\", which takes none", name);
    return kind->driver->take(kernels, bytes);
}

const char *bnb_device_name(const bnb_device *device) { return is_device(device, "device_name") ? device->name : NULL; }

const char *bnb_device_describe(const bnb_device *device) {
    return is_device(device, "device_describe") ? device->description : NULL;
}

bnb_status bnb_device_wait(bnb_device *device) {
    if (!is_device(device, "device_wait")) return BNB_INVALID;
    if (device->driver) return device->driver->wait(device->gpu);
    cpu_queue_wait(cpu_queue_last());
    return cpu_queue_take_failure();
}

int32_t bnb_device_idle(bnb_device *device) {
    if (!is_device(device, "device_idle")) return 1;
    return device->driver ? device->driver->idle(device->gpu) : cpu_queue_has_done(cpu_queue_last());
}

enum { SIZES = sizeof(struct sizes) / sizeof(uint32_t) };
static_assert(SIZES == BNB_SIZE_SPLIT_LEAST + 1, "enum bnb_size names the members in their order");

double bnb_device_size(bnb_device *device, bnb_size size, double value) {
    if (!is_device(device, "device_size")) return -1;
    if ((unsigned)size >= SIZES) {
        fail(BNB_INVALID, "device_size: size is %d, expected 0 to %d", (int)size, SIZES - 1);
        return -1;
    }
    if (!device->driver) {
        fail(BNB_UNSUPPORTED, "device_size: %s has no such sizes, only a GPU has", device->name);
        return -1;
    }
    uint32_t *at = (uint32_t *)&device->sizes + size;
    /* Work is divided by these two. */
    uint32_t least = size == BNB_SIZE_TILES_WANTED || size == BNB_SIZE_SPLIT_LEAST;
    if (value >= 0 && (value < least || value > 1 << 20 || value != (double)(uint32_t)value)) {
        fail(BNB_INVALID, "device_size: value is %g, expected a whole number from %u to 2^20, or a negative one to ask",
             value, least);
        return -1;
    }
    if (value >= 0) *at = (uint32_t)value;
    return *at;
}

/* ── Counting ───────────────────────────────────────────────────────────────────────────────────────────────────── */

double bnb_device_counter(const bnb_device *device, bnb_counter counter) {
    if (!is_device(device, "device_counter")) return -1;
    switch (counter) {
    case BNB_COUNTER_BYTES: return (double)device->bytes;
    case BNB_COUNTER_PEAK: return (double)device->peak;
    case BNB_COUNTER_CACHED: return (double)(device->driver ? device->driver->cached(device->gpu) : device->cached);
    case BNB_COUNTER_OPERATIONS: return (double)device->operations;
    case BNB_COUNTER_FALLBACKS: return (double)device->fallbacks;
    case BNB_COUNTER_MAPPED: return (double)device->mapped;
    case BNB_COUNTER_ROOM: return device->driver ? (double)device->driver->room(device->gpu) : 0;
    }
    fail(BNB_INVALID, "device_counter: counter is %d, expected 0 to %d", (int)counter, BNB_COUNTER_ROOM);
    return -1;
}

void count_operation(bnb_device *device) { device->operations++; }

/* There are few operations and few reasons, so that a handful of rows serves for the life of the process. */
static struct fallback {
    bnb_device *device;
    const char *operation;
    char        reason[512];
    size_t      times;
} fallbacks[64];

void count_fallback(bnb_device *device, const char *operation, const char *given) {
    char reason[sizeof fallbacks->reason]; /* the row's length, so that equal reasons compare so */
    snprintf(reason, sizeof reason, "%s", given);
    device->fallbacks++;
    lock(LOCK_COUNTING);
    for (struct fallback *row = fallbacks; row < fallbacks + sizeof fallbacks / sizeof *fallbacks; row++) {
        if (row->times && (row->device != device || strcmp(row->operation, operation) || strcmp(row->reason, reason)))
            continue;
        *row = (struct fallback){.device = device, .operation = operation, .times = row->times + 1};
        memcpy(row->reason, reason, sizeof reason);
        break;
    }
    unlock(LOCK_COUNTING);
}

const char *bnb_device_fallbacks(bnb_device *device) {
    static _Thread_local char text[8192];
    if (!is_device(device, "device_fallbacks")) return NULL;
    size_t length = 0;
    *text = 0;
    lock(LOCK_COUNTING);
    for (struct fallback *row = fallbacks; row < fallbacks + sizeof fallbacks / sizeof *fallbacks && row->times; row++)
        if (row->device == device && length < sizeof text)
            length += (size_t)snprintf(text + length, sizeof text - length, "%s: %s (%zu times)\n", row->operation,
                                       row->reason, row->times);
    unlock(LOCK_COUNTING);
    return text;
}
