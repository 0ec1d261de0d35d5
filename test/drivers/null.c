/* A driver that launches nothing and shares nothing: every operation must do without it, visibly, and never on NULL. */
#include "drivers.h"

#include <stdio.h>

static struct gpu gpus[2] = {{.name = "null"}, {.name = "null:1"}};

static void *null_open(uint32_t index) { return fake_open(gpus, index, "null"); }

static void null_describe(void *gpu, char *text, size_t size) {
    snprintf(text, size, "%s, which launches nothing", ((struct gpu *)gpu)->name);
}

static bnb_status null_launch(void *gpu, const struct launch *launch) {
    for (uint32_t i = 0; i < launch->binding_count; i++)
        if (launch->bindings[i].memory) bound(gpu, &launch->bindings[i]);
    return fail(BNB_UNSUPPORTED, "the null driver launches nothing");
}

const struct driver null_driver = {
    .kind = "null",
    .sizes = {.vectors_most = 8, .tiles_wanted = 256, .split_least = 512},
    .open = null_open,
    .describe = null_describe,
    .alloc = fake_alloc,
    .free = fake_free,
    .host = fake_host,
    .cached = fake_cached,
    .room = fake_room,
    .ready = fake_ready,
    .write = fake_write,
    .read = fake_read,
    .launch = null_launch,
    .idle = fake_idle,
    .wait = fake_wait,
};
