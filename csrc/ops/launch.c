/* What the operations' launches share; launch.h says what for. */
#include <string.h>

#include "launch.h"

static_assert((int)STORE_F32 == BNB_F32 && (int)STORE_F16 == BNB_F16 && (int)STORE_BF16 == BNB_BF16 &&
                  (int)STORE_I32 == BNB_I32,
              "kernels know dtypes by these numbers");
static_assert((int)CODES_BUCKET_SHIFT == BUCKET_SHIFT && (int)CODES_BUCKET_BASE == BUCKET_BASE,
              "kernels look codes up in the same buckets");
static_assert(sizeof((struct codebook *)0)->start[0] == CODES_STARTS, "kernels look codes up in the same buckets");

static struct buffer *upload(const struct codebook *book, bnb_device *device) {
    struct kernel_codebook copy = {.steps = book->steps, .size = book->size};
    memcpy(copy.values, book->values, sizeof copy.values);
    memcpy(copy.thresholds, book->thresholds, sizeof copy.thresholds);
    memcpy(copy.order, book->order, sizeof copy.order);
    memcpy(copy.start, book->start, sizeof copy.start);
    struct buffer *buffer = buffer_for_host(device, sizeof copy);
    if (!buffer || buffer_write(buffer, &copy, sizeof copy) == BNB_OK) return buffer;
    buffer_release(buffer);
    return NULL;
}

/* The GPU's place among those that have one: its own, or the first that is empty, or past the last. */
static int place_of(bnb_codebook *codebook, const bnb_device *device) {
    int place = 0;
    for (; place < UPLOADS_MOST; place++) {
        const struct buffer *buffer = codebook->uploaded[place];
        if (!buffer || buffer->device == device) break;
    }
    return place;
}

bnb_status bind_codebook(bnb_codebook *codebook, bnb_device *device, struct binding *binding) {
    struct buffer *buffer = NULL, *made = NULL;
    while (!buffer || buffer->device != device) { /* again where another thread's GPU took the place */
        int place = place_of(codebook, device);
        if (place == UPLOADS_MOST) {
            buffer_release(made);
            return fail(BNB_UNSUPPORTED, "the codebook is in use on %d GPUs already", UPLOADS_MOST);
        }
        buffer = codebook->uploaded[place];
        if (buffer) continue;
        if (!made && !(made = upload(&codebook->book, device))) return bnb_last_status();
        if (atomic_compare_exchange_strong(&codebook->uploaded[place], &buffer, made)) buffer = made, made = NULL;
    }
    buffer_release(made); /* another thread was first */
    *binding = reads(buffer);
    return BNB_OK;
}

bnb_status bind_quantized(const bnb_quantized *q, struct binding bindings[5], struct binding offsets[3],
                          struct scale_layout *scales) {
    bnb_device *device = q->codes->device;
    size_t      elements = q->rows * q->columns;
    if (ceil_div(elements, q->block) > UINT32_MAX) return fail(BNB_UNSUPPORTED, "more than 2^32 blocks");
    if (q->block > UINT32_MAX || q->nested_block > UINT32_MAX)
        return fail(BNB_UNSUPPORTED, "a block of more than 2^32 elements");

    *scales = (struct scale_layout){.block = (uint32_t)q->block, .shift = shift_of(q->block)};
    bindings[0] = reads(q->codes);
    bindings[1] = reads(q->absmax);
    bindings[2] = unused(q->absmax);
    bnb_status status = bind_codebook(q->code, device, &bindings[3]);
    bindings[4] = bindings[3];
    bindings[4].access = UNUSED;
    offsets[0] = reads_if(q->offsets, q->absmax);
    offsets[1] = reads_if(q->nested_offsets ? q->nested_offsets : q->nested_offset, q->absmax);
    offsets[2] = reads_if(q->offsets_absmax, q->absmax);
    if (status || !q->nested_code) return status;

    scales->nested_block = (uint32_t)q->nested_block;
    scales->nested_shift = shift_of(q->nested_block);
    scales->nested_bits = q->nested_code->book.bits;
    scales->nested_store = q->nested_dtype;
    bindings[2] = reads(q->nested_absmax);
    return bind_codebook(q->nested_code, device, &bindings[4]);
}

bnb_status bind_operand(struct operand w, struct binding bindings[5], struct binding offsets[3],
                        struct scale_layout *scales) {
    if (w.coded) return bind_quantized(w.coded, bindings, offsets, scales);
    bindings[0] = reads(w.dense->buffer);
    bindings[1] = bindings[2] = bindings[3] = bindings[4] = unused(w.dense->buffer);
    offsets[0] = offsets[1] = offsets[2] = unused(w.dense->buffer);
    return BNB_OK;
}

size_t quantized_bytes(const bnb_quantized *q) {
    return q->codes->bytes + q->absmax->bytes + (q->nested_absmax ? q->nested_absmax->bytes : 0) +
           (q->offsets ? q->offsets->bytes : 0) + (q->offsets_absmax ? q->offsets_absmax->bytes : 0);
}

uint32_t split_of(const struct sizes *sizes, uint32_t depth, size_t tiles) {
    size_t splits = ceil_div(sizes->tiles_wanted, tiles), most = depth / sizes->split_least;
    if (splits > most) splits = most ? most : 1;
    return (uint32_t)(ceil_div(ceil_div(depth, splits), TILE_DEPTH) * TILE_DEPTH);
}

bnb_status launch_sum(const struct buffer *parts, uint32_t splits, const bnb_tensor *bias, const bnb_tensor *y) {
    struct sum_args args = {.m = (uint32_t)y->rows, .n = (uint32_t)y->columns, .splits = splits};
    return enqueue(y->buffer->device,
                   &(struct launch){
                       .family = "matmul_tile",
                       .kernel = "matmul_sum",
                       .constants = {y->dtype, [4] = bias != NULL},
                       .constant_count = 5,
                       .args = &args,
                       .args_bytes = sizeof args,
                       .bindings = {reads(parts), reads_if(bias ? bias->buffer : NULL, parts), writes(y->buffer)},
                       .binding_count = 3,
                       .groups = {(uint32_t)ceil_div(args.n, SUM_THREADS), args.m, 1},
                       .threads = SUM_THREADS,
                       .bytes_moved = parts->bytes + y->buffer->bytes,
                   });
}
