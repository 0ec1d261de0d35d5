/* Caches of keys and values: making, growing, saving and restoring them. What goes in is attention's matter. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* Capacities are multiples of this, so that every part of a layer's buffer is as aligned as the buffer. */
enum { CAPACITY_STEP = 16 };

/* Where the pieces of a layer's buffer lie: the rows of keys and of values, then, of i8, their scales. */
struct layout {
    size_t row_bytes, rows; /* of a head; of the keys, over all slots, heads and tokens */
};

static struct layout layout_of(const bnb_cache *cache) {
    return (struct layout){cache->columns * dtype_size(cache->dtype), cache->slots * cache->heads * cache->capacity};
}

static size_t scale_bytes(const bnb_cache *cache) { return cache->dtype == BNB_I8 ? sizeof(float) : 0; }

static size_t layer_bytes(const bnb_cache *cache) {
    struct layout layout = layout_of(cache);
    return 2 * layout.rows * (layout.row_bytes + scale_bytes(cache));
}

static bool is_room(const bnb_cache *cache, const char *function) {
    size_t sides[] = {cache->slots, cache->heads, cache->capacity, cache->columns}, elements = 2;
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
        if (!sides[i] || sides[i] > ((size_t)1 << 40) / elements) {
            fail(BNB_INVALID,
                 "%s: %zu slots of %zu heads, %zu tokens and %zu columns, expected at least one of each and at most "
                 "2^40 elements a layer",
                 function, cache->slots, cache->heads, cache->capacity, cache->columns);
            return false;
        }
        elements *= sides[i];
    }
    return true;
}

/* Every layer's memory, or none. */
static struct buffer **layers_new(const bnb_cache *cache) {
    struct buffer **layers = calloc(cache->layers, sizeof(struct buffer *));
    if (!layers) return refuse(BNB_OUT_OF_MEMORY, "no memory for a cache's handle");
    for (size_t i = 0; i < cache->layers; i++) {
        if ((layers[i] = buffer_new(cache->device, layer_bytes(cache)))) continue;
        while (i-- > 0) buffer_release(layers[i]);
        free(layers);
        return NULL;
    }
    return layers;
}

static void layers_free(const bnb_cache *cache, struct buffer **layers) {
    for (size_t i = 0; i < cache->layers; i++) buffer_release(layers[i]);
    free(layers);
}

static size_t rounded(size_t capacity) { return ceil_div(capacity, CAPACITY_STEP) * CAPACITY_STEP; }

bnb_cache *bnb_cache_new(bnb_device *device, bnb_dtype dtype, size_t layers, size_t slots, size_t heads,
                         size_t capacity, size_t columns) {
    if (!is_device(device, "cache_new")) return NULL;
    if (dtype != BNB_F32 && dtype != BNB_F16 && dtype != BNB_I8)
        return refuse(BNB_INVALID, "cache_new: dtype is %s, expected float32, float16 or int8", dtype_name(dtype));
    if (!layers || layers > 1 << 16)
        return refuse(BNB_INVALID, "cache_new: layers is %zu, expected 1 to %d", layers, 1 << 16);
    bnb_cache made = {.tag = TAG_CACHE,
                      .dtype = dtype,
                      .device = device,
                      .slots = slots,
                      .heads = heads,
                      .capacity = capacity,
                      .columns = columns,
                      .layers = layers};
    if (!is_room(&made, "cache_new")) return NULL;
    made.capacity = rounded(capacity);
    if (!(made.layer = layers_new(&made))) return NULL;
    bnb_cache *cache = handle_new(TAG_CACHE, sizeof *cache);
    if (cache) {
        *cache = made;
        return cache;
    }
    layers_free(&made, made.layer);
    return refuse(BNB_OUT_OF_MEMORY, "no memory for a cache's handle");
}

void bnb_cache_free(bnb_cache *cache) {
    if (!cache || !is_cache(cache, "cache_free", "cache")) return;
    layers_free(cache, cache->layer);
    handle_free(cache);
}

size_t bnb_cache_row_bytes(const bnb_cache *cache) {
    if (!is_cache(cache, "cache_row_bytes", "cache")) return 0;
    return cache->layers * 2 * cache->heads * (layout_of(cache).row_bytes + scale_bytes(cache));
}

/* Calls `each` with every run of `length` tokens of a slot that lies together: where in its layer's buffer, and its
 * bytes.
 * Runs come in the order in which a cache is saved. */
static bnb_status each_run(const bnb_cache *cache, size_t slot, size_t length,
                           bnb_status (*each)(struct buffer *layer, size_t offset, size_t bytes, void *context),
                           void *context) {
    struct layout layout = layout_of(cache);
    for (size_t i = 0; i < cache->layers; i++)
        for (size_t part = 0; part < (cache->dtype == BNB_I8 ? 4 : 2); part++)
            for (size_t head = 0; head < cache->heads; head++) {
                bool       scales = part >= 2;
                size_t     size = scales ? sizeof(float) : layout.row_bytes;
                size_t     start = scales ? 2 * layout.rows * layout.row_bytes : 0;
                size_t     row = part % 2 * layout.rows + (slot * cache->heads + head) * cache->capacity;
                bnb_status status = each(cache->layer[i], start + row * size, length * size, context);
                if (status != BNB_OK) return status;
            }
    return BNB_OK;
}

static bnb_status read_run(struct buffer *layer, size_t offset, size_t bytes, void *context) {
    char     **to = context;
    bnb_status status = buffer_read_at(layer, offset, *to, bytes);
    *to += bytes;
    return status;
}

static bnb_status write_run(struct buffer *layer, size_t offset, size_t bytes, void *context) {
    const char **from = context;
    bnb_status   status = buffer_write_at(layer, offset, *from, bytes);
    *from += bytes;
    return status;
}

static bool is_span(const bnb_cache *cache, size_t slot, size_t length, const void *data, size_t bytes,
                    const char *function) {
    if (!is_cache(cache, function, "cache")) return false;
    if (slot >= cache->slots || length > cache->capacity)
        return fail(BNB_INVALID, "%s: %zu tokens of slot %zu, expected at most %zu tokens of slot 0 to %zu", function,
                    length, slot, cache->capacity, cache->slots - 1),
               false;
    if (!data) return fail(BNB_INVALID, "%s: data is NULL", function), false;
    if (bytes == length * bnb_cache_row_bytes(cache)) return true;
    fail(BNB_INVALID, "%s: data has %zu bytes, expected %zu, %zu for each of %zu tokens", function, bytes,
         length * bnb_cache_row_bytes(cache), bnb_cache_row_bytes(cache), length);
    return false;
}

bnb_status bnb_cache_read(const bnb_cache *cache, size_t slot, size_t length, void *data, size_t bytes) {
    if (!is_span(cache, slot, length, data, bytes, "cache_read")) return BNB_INVALID;
    return length ? each_run(cache, slot, length, read_run, &data) : BNB_OK;
}

bnb_status bnb_cache_write(bnb_cache *cache, size_t slot, size_t length, const void *data, size_t bytes) {
    if (!is_span(cache, slot, length, data, bytes, "cache_write")) return BNB_INVALID;
    return length ? each_run(cache, slot, length, write_run, &data) : BNB_OK;
}

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

static bnb_status copy_slots(const bnb_cache *from, bnb_cache *to, void *data) {
    size_t     length = least(from->capacity, to->capacity), bytes = length * bnb_cache_row_bytes(from);
    bnb_status status = BNB_OK;
    for (size_t slot = 0; slot < least(from->slots, to->slots) && status == BNB_OK; slot++) {
        status = bnb_cache_read(from, slot, length, data, bytes);
        if (status == BNB_OK) status = bnb_cache_write(to, slot, length, data, bytes);
    }
    return status;
}

/* Slots of one capacity lie together: a layer's keys, values and scales each go over in one piece. */
static bnb_status copy_layers(const bnb_cache *from, bnb_cache *to, void *data) {
    struct layout old = layout_of(from), new = layout_of(to);
    size_t        rows = least(old.rows, new.rows);
    for (size_t i = 0; i < from->layers; i++)
        for (size_t part = 0; part < (from->dtype == BNB_I8 ? 4 : 2); part++) {
            bool       scales = part >= 2;
            size_t     size = scales ? sizeof(float) : old.row_bytes, bytes = rows * size;
            size_t     from_scales = scales ? 2 * old.rows * old.row_bytes : 0;
            size_t     to_scales = scales ? 2 * new.rows * new.row_bytes : 0;
            bnb_status status = buffer_read_at(from->layer[i], from_scales + part % 2 * old.rows * size, data, bytes);
            if (status == BNB_OK)
                status = buffer_write_at(to->layer[i], to_scales + part % 2 * new.rows * size, data, bytes);
            if (status != BNB_OK) return status;
        }
    return BNB_OK;
}

/* Through the host, so that no driver needs a way to copy. */
static bnb_status copy_cache(const bnb_cache *from, bnb_cache *to) {
    bool          together = from->capacity == to->capacity;
    struct layout layout = layout_of(from->slots < to->slots ? from : to);
    size_t        bytes =
        together ? layout.rows * layout.row_bytes : least(from->capacity, to->capacity) * bnb_cache_row_bytes(from);
    if (together && bytes < layout.rows * sizeof(float)) bytes = layout.rows * sizeof(float); /* of scales */
    void *data = malloc(bytes);
    if (!data)
        return fail(BNB_OUT_OF_MEMORY, "cache_resize: no memory for %zu bytes on the way; free something and try again",
                    bytes);
    bnb_status status = together ? copy_layers(from, to, data) : copy_slots(from, to, data);
    free(data);
    return status;
}

bnb_status bnb_cache_resize(bnb_cache *cache, size_t slots, size_t capacity) {
    if (!is_cache(cache, "cache_resize", "cache")) return BNB_INVALID;
    bnb_cache resized = *cache;
    resized.slots = slots, resized.capacity = capacity;
    if (!is_room(&resized, "cache_resize")) return BNB_INVALID;
    resized.capacity = rounded(capacity);
    if (!(resized.layer = layers_new(&resized))) return bnb_last_status();
    bnb_status status = copy_cache(cache, &resized);
    bnb_cache  old = *cache;
    if (status == BNB_OK) *cache = resized;
    layers_free(cache, status == BNB_OK ? old.layer : resized.layer);
    return status;
}
