/* What the files of csrc/ share. Nothing here crosses the ABI. */
#ifndef BNB_INTERNAL_H
#define BNB_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "bnb.h"
#include "codebook.h"
#include "error.h"
#include "mapping.h"
#include "cpu/forms.h"
#include "cpu/pool.h"
#include "gpu/driver.h"
#include "cpu/queue.h"

/* ── Handles ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Every handle opens with its tag, so that NULL, a freed handle or one of another kind is refused, not followed. */
enum tag {
    TAG_DEVICE = 0x42444556,
    TAG_TENSOR = 0x4254454e,
    TAG_CODEBOOK = 0x42434f44,
    TAG_QUANTIZED = 0x42515541,
    TAG_CACHE = 0x42434143,
    TAG_RECORDING = 0x42524543
};

struct bnb_device {
    enum tag             tag;
    char                 name[32]; /* its kind, and the place of a further GPU: "cuda:1" */
    const struct driver *driver;   /* NULL on the CPU */
    void                *gpu;      /* what the driver's functions are given */
    struct sizes         sizes;    /* the driver's, unless bnb_device_size has set others */
    char                 description[256];
    _Atomic size_t       bytes, peak, cached, mapped, operations, fallbacks;
};

/* Memory of a device, shared by the handles that are made of it. */
struct buffer {
    _Atomic uint32_t refs;
    bnb_device      *device;
    void            *memory; /* the driver's, or an address on the CPU */
    size_t           bytes;
    size_t           capacity; /* of memory that is a piece; 0 where the memory is part of the buffer's own piece */
    bool             written;  /* by the host: a recording can't write it anew */
    bool             lent;     /* somebody has had its address, and may write what nobody is told of */
    _Atomic uint32_t below;    /* as int32 it is known to hold numbers from 0 to below - 1; 0: nothing is known */
    struct buffer   *whole;    /* of which this is a part, or NULL */
    size_t           offset;   /* in a driver's memory; on the CPU `memory` is a part's own address */
    struct mapping  *mapping;  /* of the file whose bytes these are, or NULL; of a whole only */

    /* On the CPU, of what is no part: */
    _Atomic uint64_t turn;   /* the last in the queue that uses the memory */
    _Atomic uint32_t failed; /* the failure for which it was not written, or 0 */
    struct queued    ending; /* what frees it, when its turn has come */
};

struct bnb_tensor {
    enum tag       tag;
    bnb_dtype      dtype;
    size_t         rows, columns;
    struct buffer *buffer;
};

enum { UPLOADS_MOST = 8 };

struct bnb_codebook {
    enum tag         tag;
    _Atomic uint32_t refs;
    struct codebook  book;
    _Atomic(struct buffer *)
        uploaded[UPLOADS_MOST]; /* struct kernel_codebook of metal/args.h on each GPU that has asked for it */
};

struct bnb_quantized {
    enum tag       tag;
    size_t         rows, columns, block;
    bnb_codebook  *code;
    struct buffer *codes;
    struct buffer *absmax; /* of absmax_dtype: f32, f16 or bf16; or codes, as bytes, where nested_code is set: */
    bnb_dtype      absmax_dtype;
    bnb_codebook  *nested_code;
    struct buffer *nested_absmax;
    bnb_dtype      nested_dtype; /* of nested_absmax and offsets_absmax */
    size_t         nested_block;
    struct buffer *nested_offset;  /* f32, of all nested blocks; or NULL, and each has its own: */
    struct buffer *nested_offsets; /* f32, of each */
    struct buffer *offsets;        /* of each block, as absmax; or NULL */
    bnb_dtype      offsets_dtype;
    struct buffer *offsets_absmax; /* where offsets are codes; else NULL */
};

/* A layer's buffer holds keys [slots, heads, capacity, columns], then values; where they are i8, then a float for each
 * row of the keys and of the values. */
struct bnb_cache {
    enum tag        tag;
    bnb_dtype       dtype;
    bnb_device     *device;
    size_t          slots, heads, capacity, columns, layers;
    struct buffer **layer;
};

/* Memory for a handle, cleared but for its tag; NULL where there is none, with no failure recorded. */
void *handle_new(enum tag tag, size_t size);
bool  handle_claim(const void *handle); /* true for the one who may free it: what opens every free */
void  handle_free(void *handle);

/* The checks that open every entry. Each records its failure, naming the function and the argument. */
bool is_device(const bnb_device *device, const char *function);
bool is_tensor(const bnb_tensor *tensor, const char *function, const char *argument);
bool is_codebook(const bnb_codebook *codebook, const char *function, const char *argument);
bool is_quantized(const bnb_quantized *quantized, const char *function, const char *argument);
bool is_cache(const bnb_cache *cache, const char *function, const char *argument);
bool is_float(bnb_dtype dtype, const char *function, const char *argument);
bool is_shape(size_t rows, size_t columns, const char *function, const char *argument);
bool is_block(const bnb_codebook *code, size_t block, const char *function);
bool on_device(const struct buffer *buffer, const bnb_device *device, const char *function, const char *argument);

/* ── Locks ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* In the order in which one thread may take them. What is behind each stands where it is used. */
enum lock {
    LOCK_OPENING,
    LOCK_MAKING,
    LOCK_GPU,
    LOCK_COUNTING,
    LOCK_KEEPING,
    LOCK_TENSORS,
    LOCK_CODEBOOKS,
    LOCK_QUANTIZED,
    LOCK_CACHES,
    LOCK_RECORDINGS,
    LOCKS
};

void lock(enum lock which);
void unlock(enum lock which);

/* Sees to it, once, that a child of this process can use the CPU: called by whatever comes before all other use. */
void watch_forks(void);

/* Called in a child, with all locks held: what its parent had opened of GPUs is not the child's. */
void forget_gpus(void);

/* ── Memory ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

enum { LOAD_BYTES = 16 }; /* what kernels load at once: memory that they take begins at a multiple */

struct buffer *buffer_new(bnb_device *device, size_t bytes); /* NULL and an error; not cleared */
/* The same for what the host writes: not memory that steps of a recording use, which write to it whenever it runs. */
struct buffer *buffer_for_host(bnb_device *device, size_t bytes);
/* Bytes of a file: their mapping, where `mapped` asks for it and the device can have it, else a copy. */
struct buffer *buffer_of_file(bnb_device *device, const struct file_range *range, size_t element, bool mapped);
bnb_status     buffer_intact(const struct buffer *buffer); /* a failure where its file's bytes could not be had */
struct buffer *buffer_share(struct buffer *buffer);
struct buffer *buffer_part(struct buffer *whole, size_t offset, size_t bytes); /* the same memory, from an offset on */
void           buffer_release(struct buffer *buffer);                          /* NULL is fine */
bnb_status     buffer_write(struct buffer *buffer, const void *from, size_t bytes);
bnb_status     buffer_read(const struct buffer *buffer, void *to, size_t bytes);
bnb_status     buffer_write_at(struct buffer *buffer, size_t offset, const void *from, size_t bytes);
bnb_status     buffer_read_at(const struct buffer *buffer, size_t offset, void *to, size_t bytes);
bnb_status     buffer_clear(struct buffer *buffer);
void          *buffer_host(struct buffer *buffer); /* its address, ready to be read and written; NULL and an error */
bnb_status     buffer_copy(struct buffer *to, const struct buffer *from); /* of the same size, on any devices */

/* What the host knows of memory that holds indices, so that it need not wait for them to check them: buffer_indices
 * writes all of it, as buffer_write does, and looks at what it writes; buffer_forget is called by whoever else writes
 * any of it, or has a launch, a job or a recording write it; and buffer_is_below says whether all that is there is
 * sure to be from 0 to below - 1. Of memory whose address somebody has had nothing is known. */
bnb_status buffer_indices(struct buffer *buffer, const void *from);
void       buffer_forget(const struct buffer *buffer);
bool       buffer_is_below(const struct buffer *buffer, size_t below);

/* On the CPU: what the memory is a part of; whether queued work uses it; and the wait for that, which fails where it is
 * to be read and was not written. */
struct buffer *buffer_base(const struct buffer *buffer);
bool           buffer_is_busy(const struct buffer *buffer);
bnb_status     buffer_settle(const struct buffer *buffer, enum access access);

/* While the calling thread records: memory of that size that the recording has made and nobody else uses any more, or
 * NULL; and the news of memory that was made. */
struct buffer *record_reuse(const bnb_device *device, size_t bytes);
void           record_made(struct buffer *buffer);

size_t      dtype_size(bnb_dtype dtype); /* 0 for what is no dtype */
const char *dtype_name(bnb_dtype dtype);

/* ── Making and viewing handles ─────────────────────────────────────────────────────────────────────────────────── */

bnb_tensor *tensor_new(bnb_device *device, bnb_dtype dtype, size_t rows, size_t columns); /* not cleared */
bnb_tensor *tensor_over(struct buffer *buffer, bnb_dtype dtype, size_t rows, size_t columns);

/* A quantised matrix with its memory, which is yet to be filled. nested_block 0: plain scales. */
bnb_quantized *quantized_new(bnb_device *device, bnb_codebook *code, size_t rows, size_t columns, size_t block,
                             size_t nested_block);
float          quantized_offset(const bnb_quantized *quantized); /* waits for it */
size_t         code_bytes(uint32_t bits, size_t elements);

bnb_codebook *codebook_share(bnb_codebook *codebook);
bnb_codebook *codebook_dynamic_signed(void); /* borrowed */

/* ── Counting ───────────────────────────────────────────────────────────────────────────────────────────────────── */

void count_operation(bnb_device *device);
void count_fallback(bnb_device *device, const char *operation,
                    const char *reason); /* and names it; `operation` stays */

#endif
