/* The last failure of each thread, and the checks that open every entry. */
#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

static _Thread_local bnb_status last_status;
static _Thread_local char       last_error[2048];

bnb_status fail(bnb_status status, const char *sentence, ...) {
    va_list values;
    va_start(values, sentence);
    vsnprintf(last_error, sizeof last_error, sentence, values);
    va_end(values);
    return last_status = status;
}

bnb_status  bnb_last_status(void) { return last_status; }
const char *bnb_last_error(void) { return last_error; }
const char *bnb_version(void) { return BNB_VERSION; }

static bool has_tag(const enum tag *handle, enum tag tag, const char *kind, const char *function,
                    const char *argument) {
    if (handle && *handle == tag) return true;
    if (!handle)
        fail(BNB_INVALID, "%s: %s is NULL, expected a %s", function, argument, kind);
    else
        fail(BNB_INVALID, "%s: %s is not a %s, or was freed", function, argument, kind);
    return false;
}

bool is_device(const bnb_device *device, const char *function) {
    return has_tag((const enum tag *)device, TAG_DEVICE, "device", function, "device");
}

bool is_tensor(const bnb_tensor *tensor, const char *function, const char *argument) {
    return has_tag((const enum tag *)tensor, TAG_TENSOR, "tensor", function, argument);
}

bool is_codebook(const bnb_codebook *codebook, const char *function, const char *argument) {
    return has_tag((const enum tag *)codebook, TAG_CODEBOOK, "codebook", function, argument);
}

bool is_quantized(const bnb_quantized *quantized, const char *function, const char *argument) {
    return has_tag((const enum tag *)quantized, TAG_QUANTIZED, "quantised matrix", function, argument);
}

bool is_cache(const bnb_cache *cache, const char *function, const char *argument) {
    return has_tag((const enum tag *)cache, TAG_CACHE, "cache", function, argument);
}

bool is_float(bnb_dtype dtype, const char *function, const char *argument) {
    if (dtype == BNB_F32 || dtype == BNB_F16 || dtype == BNB_BF16) return true;
    fail(BNB_INVALID, "%s: %s is %s, expected float32, float16 or bfloat16", function, argument, dtype_name(dtype));
    return false;
}

bool is_shape(size_t rows, size_t columns, const char *function, const char *argument) {
    const size_t most = (size_t)1 << 48;
    if (!rows || !columns) {
        fail(BNB_INVALID, "%s: %s is [%zu, %zu], expected at least one element", function, argument, rows, columns);
        return false;
    }
    if (rows > most || columns > most || rows > most / columns) {
        fail(BNB_INVALID, "%s: %s is [%zu, %zu], more than 2^48 elements", function, argument, rows, columns);
        return false;
    }
    return true;
}

bool is_block(const bnb_codebook *code, size_t block, const char *function) {
    bool power = block && !(block & (block - 1));
    if (code->book.bits == 8 ? block > 0 : power && block >= 16 && block <= 4096) return true;
    if (code->book.bits == 8)
        fail(BNB_INVALID, "%s: blocksize is 0, expected a positive number", function);
    else
        fail(BNB_INVALID, "%s: blocksize is %zu, expected a power of two from 16 to 4096 for %u-bit codes", function,
             block, code->book.bits);
    return false;
}

bool on_device(const struct buffer *buffer, const bnb_device *device, const char *function, const char *argument) {
    if (buffer->device == device) return true;
    fail(BNB_INVALID, "%s: %s is on %s, expected it on %s: move it there first", function, argument,
         buffer->device->name, device->name);
    return false;
}
