/* What a GPU says of numbers before anybody looks at them; finite.h says what for. */
#include "finite.h"

#include "launch.h"

enum { PARTS_MOST = NESTED_THREADS };

static bnb_status launch(const struct buffer *floats, struct buffer *largest) {
    struct finite_args args = {(uint32_t)(floats->bytes / sizeof(float))};
    return enqueue(floats->device, &(struct launch){
                                       .family = "finite",
                                       .kernel = "finite",
                                       .args = &args,
                                       .args_bytes = sizeof args,
                                       .bindings = {reads(floats), writes(largest)},
                                       .binding_count = 2,
                                       .groups = {(uint32_t)(largest->bytes / sizeof(uint32_t)), 1, 1},
                                       .threads = FINITE_THREADS,
                                       .bytes_moved = floats->bytes,
                                   });
}

bnb_status find_largest(const struct buffer *floats, struct buffer **largest) {
    bnb_device *device = floats->device;
    size_t      count = floats->bytes / sizeof(float), parts = ceil_div(count, 4 * FINITE_THREADS);
    *largest = NULL;
    if (!device->driver) return BNB_OK;
    if (count > UINT32_MAX / 2) return fail(BNB_UNSUPPORTED, "2^31 blocks or more"), BNB_OK;
    *largest = buffer_new(device, (parts < PARTS_MOST ? parts : PARTS_MOST) * sizeof(uint32_t));
    if (!*largest) return BNB_OUT_OF_MEMORY;
    bnb_status status = launch(floats, *largest);
    if (status == BNB_OK) return BNB_OK;
    buffer_release(*largest);
    *largest = NULL;
    return status == BNB_UNSUPPORTED ? BNB_OK : status;
}

bool are_finite(const struct buffer *largest) {
    uint32_t bits[PARTS_MOST];
    if (!largest || buffer_read(largest, bits, largest->bytes)) return false;
    for (size_t i = 0; i < largest->bytes / sizeof *bits; i++)
        if (bits[i] >= 0x7f800000) return false;
    return true;
}
