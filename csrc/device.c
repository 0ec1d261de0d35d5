/* Which processors are here, best first, why one is not, and what each has done so far. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* A new GPU is its driver and a row here. */
static bnb_device devices[] = {
    {.tag = TAG_DEVICE, .kind = "metal", .gpu = &metal_driver},
    {.tag = TAG_DEVICE, .kind = "cuda", .absent = "bunsandbytes has no CUDA driver yet: use \"cpu\""},
    {.tag = TAG_DEVICE, .kind = "cpu"},
};
enum { DEVICES = sizeof devices / sizeof *devices };

const char *bnb_device_kind(uint32_t index) { return index < DEVICES ? devices[index].kind : NULL; }

/* ── Opening ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Behind LOCK_OPENING. */
static enum { UNTRIED, OPEN, ABSENT } states[DEVICES];
static char reasons[DEVICES][1024];

static bool try_open(bnb_device *device) {
    if (device->absent) return fail(BNB_UNSUPPORTED, "%s is absent: %s", device->kind, device->absent), false;
    if (device->gpu) {
        if (!device->gpu->open()) return false;
        device->gpu->describe(device->description, sizeof device->description);
    } else {
        snprintf(device->description, sizeof device->description, "%u thread%s, %s kernels", thread_count(),
                 thread_count() == 1 ? "" : "s", cpu_forms()->isa);
    }
    return true;
}

/* Opens a device once; an absent one stays absent, for the reason it had the first time. */
static bnb_device *open_once(bnb_device *device) {
    size_t index = (size_t)(device - devices);
    lock(LOCK_OPENING);
    if (states[index] == UNTRIED) {
        states[index] = try_open(device) ? OPEN : ABSENT;
        if (states[index] == ABSENT) snprintf(reasons[index], sizeof reasons[index], "%s", bnb_last_error());
    }
    bool open = states[index] == OPEN;
    unlock(LOCK_OPENING);
    return open ? device : refuse(BNB_UNSUPPORTED, "%s", reasons[index]);
}

void forget_gpus(void) {
    for (int i = 0; i < DEVICES; i++) {
        if (!devices[i].gpu || states[i] != OPEN) continue;
        states[i] = ABSENT;
        snprintf(reasons[i], sizeof reasons[i],
                 "%s was opened before this process was forked off, and no GPU can be shared so: use \"cpu\", or start a process anew", devices[i].kind);
    }
}

bnb_device *bnb_device_open(const char *kind) {
    if (!kind) return refuse(BNB_INVALID, "device_open: kind is NULL, expected \"auto\", \"metal\", \"cuda\" or \"cpu\"");
    watch_forks();
    const char *wrong = bad_isa() ? bad_isa() : bad_thread_count(); /* the CPU's, which a GPU may fall back to */
    if (wrong) return refuse(BNB_INVALID, "%s", wrong);
    const char *forced = getenv("BNB_DEVICE");
    bool any = !strcmp(kind, "auto");
    if (any && forced && *forced && strcmp(forced, "auto")) kind = forced, any = false;
    bool mps = !strcmp(kind, "mps"); /* torch's word for metal */

    for (bnb_device *device = devices; device < devices + DEVICES; device++) {
        if (!any && strcmp(mps ? "metal" : kind, device->kind)) continue;
        bnb_device *opened = open_once(device);
        if (opened || !any) return opened;
    }
    return refuse(BNB_INVALID, "device_open: kind is \"%s\"%s, expected \"auto\", \"metal\" (or \"mps\"), \"cuda\" or \"cpu\"", kind,
                  kind == forced ? " (from BNB_DEVICE)" : "");
}

const char *bnb_device_name(const bnb_device *device) {
    return is_device(device, "device_name") ? device->kind : NULL;
}

const char *bnb_device_describe(const bnb_device *device) {
    return is_device(device, "device_describe") ? device->description : NULL;
}

bnb_status bnb_device_wait(bnb_device *device) {
    if (!is_device(device, "device_wait")) return BNB_INVALID;
    return device->gpu ? device->gpu->wait() : BNB_OK;
}

int32_t bnb_device_idle(bnb_device *device) {
    return !is_device(device, "device_idle") || !device->gpu || device->gpu->idle();
}

/* ── Counting ───────────────────────────────────────────────────────────────────────────────────────────────────── */

double bnb_device_counter(const bnb_device *device, bnb_counter counter) {
    if (!is_device(device, "device_counter")) return -1;
    switch (counter) {
    case BNB_COUNTER_BYTES: return (double)device->bytes;
    case BNB_COUNTER_PEAK: return (double)device->peak;
    case BNB_COUNTER_CACHED: return (double)(device->gpu ? device->gpu->cached() : device->cached);
    case BNB_COUNTER_OPERATIONS: return (double)device->operations;
    case BNB_COUNTER_FALLBACKS: return (double)device->fallbacks;
    }
    fail(BNB_INVALID, "device_counter: counter is %d, expected 0 to %d", (int)counter, BNB_COUNTER_FALLBACKS);
    return -1;
}

void count_operation(bnb_device *device) { device->operations++; }

/* There are few operations and few reasons, so that a handful of rows serves for the life of the process. Behind
 * LOCK_COUNTING. */
static struct fallback {
    bnb_device *device;
    const char *operation;
    char        reason[512];
    size_t      times;
} fallbacks[64];

static void name_fallback(bnb_device *device, const char *operation, const char *reason) {
    lock(LOCK_COUNTING);
    for (struct fallback *row = fallbacks; row < fallbacks + sizeof fallbacks / sizeof *fallbacks; row++) {
        if (row->times && (row->device != device || strcmp(row->operation, operation) || strcmp(row->reason, reason))) continue;
        *row = (struct fallback){.device = device, .operation = operation, .times = row->times + 1};
        snprintf(row->reason, sizeof row->reason, "%s", reason);
        break;
    }
    unlock(LOCK_COUNTING);
}

bnb_status fall_back(bnb_device *device, const char *operation) {
    if (!device->gpu) return BNB_OK;
    char reason[sizeof fallbacks->reason]; /* the row's length, so that equal reasons compare so */
    snprintf(reason, sizeof reason, "%s", bnb_last_error());
    const char *strict = getenv("BNB_STRICT");
    if (strict && !strcmp(strict, "1"))
        return fail(BNB_UNSUPPORTED, "%s: %s has no kernel for this case (%s), and BNB_STRICT=1 forbids the CPU's", operation,
                    device->kind, reason);
    device->fallbacks++;
    name_fallback(device, operation, reason);
    return device->gpu->wait();
}

const char *bnb_device_fallbacks(bnb_device *device) {
    static _Thread_local char text[8192];
    if (!is_device(device, "device_fallbacks")) return NULL;
    size_t length = 0;
    *text = 0;
    lock(LOCK_COUNTING);
    for (struct fallback *row = fallbacks; row < fallbacks + sizeof fallbacks / sizeof *fallbacks && row->times; row++)
        if (row->device == device && length < sizeof text)
            length += (size_t)snprintf(text + length, sizeof text - length, "%s: %s (%zu times)\n", row->operation, row->reason, row->times);
    unlock(LOCK_COUNTING);
    return text;
}
