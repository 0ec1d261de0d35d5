/* bnb.h: the whole C ABI of bunsandbytes.
 *
 *     bnb_device    *gpu = bnb_device_open("auto");
 *     bnb_codebook  *nf4 = bnb_codebook_named("nf4");
 *     bnb_tensor    *a   = bnb_tensor_from(gpu, BNB_F32, 4096, 4096, weights, 4096ul * 4096 * 4);
 *     bnb_quantized *w   = bnb_quantize(a, nf4, 64, 0, BNB_SCALES_ABSMAX, NULL);
 *     bnb_tensor    *x   = bnb_tensor_from(gpu, BNB_F32, 1, 4096, activations, 4096 * 4);
 *     bnb_tensor    *y   = bnb_matmul_quantized(x, w, NULL, BNB_PRECISION_DEFAULT);
 *     bnb_tensor_read(y, out, 4096 * 4);
 *
 * Six rules hold for every function here.
 *   1. Results are returned. Only bnb_*_read writes into the caller's memory.
 *   2. What makes a thing returns a handle, NULL on failure. What does a thing returns a status.
 *   3. After a failure bnb_last_error() is a sentence that names the argument and the next step, and bnb_last_status()
 *      its code; both belong to the calling thread and stand until its next failure. Nothing aborts or prints.
 *   4. The caller frees every handle that it was given; arguments are borrowed for the call only, and a handle keeps
 *      alive whatever it is made of. Devices are not freed: they live as long as the process.
 *   5. Operations enqueue and return; on the CPU a small one is done in the call, unless queued work uses its memory.
 *      Results, writes, frees and failures of a device come in the order in which they were asked for: memory is given
 *      back after the work that uses it, whenever its handle is freed. What fails after the call that asked for it is
 *      told by the next bnb_device_wait, and by whoever reads what it was to write. These calls wait:
 *      bnb_device_wait for everything; what hands over bytes, an address or a number (bnb_tensor_read, bnb_tensor_host,
 *      bnb_cache_read, bnb_quantized_offset) for the work on that memory; and what looks at values before it answers,
 *      as its comment says. On a GPU also what the processor does for it: an operation that falls back, and whatever
 *      fills or copies memory (new tensors, writes, bnb_tensor_to, _put and _join, a slice that is a copy); Metal waits
 *      for that memory's work and CUDA for all work. Where a GPU has no memory left, or as many launches under way as
 *      it takes, the next one waits for room.
 *   6. Every function may be called from any thread. A handle may be freed by one thread only, once.
 *
 * A matrix is row-major, rows × columns, with at least one element and at most 2^48. Sizes are counted in elements,
 * except where a name says bytes. Blocks run over the flattened matrix: a row need not be a multiple of the block, and
 * the last block may be shorter.
 */
#ifndef BNB_H
#define BNB_H

#include <stddef.h>
#include <stdint.h>

#include "bnb_types.h"

#define BNB_API     __attribute__((visibility("default")))
#define BNB_VERSION "0.1.0"

typedef struct bnb_device    bnb_device;    /* a processor and its memory */
typedef struct bnb_tensor    bnb_tensor;    /* a matrix on a device */
typedef struct bnb_codebook  bnb_codebook;  /* the 2^k values that k-bit codes stand for */
typedef struct bnb_recording bnb_recording; /* operations, to be run again */
typedef struct bnb_quantized bnb_quantized; /* a matrix as k-bit codes, a codebook, and one scale a block */
typedef struct bnb_cache     bnb_cache;     /* the keys and values that a model's attention has seen so far */

/* How a block's scale is found. */
typedef enum bnb_scales {
    BNB_SCALES_ABSMAX = 0,        /* the block's largest magnitude, as bitsandbytes has it */
    BNB_SCALES_LEAST_SQUARES = 1, /* the one that gives the smallest squared error among many that are tried */
} bnb_scales;

/* The parts of a quantised matrix, in the words of bitsandbytes' state dict. */
typedef enum bnb_part {
    BNB_PART_CODES = 0,  /* u8 [1, bytes]: k-bit codes as one string of bits, the first bit of a byte its highest */
    BNB_PART_ABSMAX = 1, /* f32, f16 or bf16 [1, blocks], or codes of them, as u8, where the scales are quantised too */
    BNB_PART_CODE = 2,   /* f32 [1, 2^k]: the codebook */
    BNB_PART_NESTED_ABSMAX = 3,  /* f32, f16 or bf16 [1, blocks / nested block] */
    BNB_PART_NESTED_CODE = 4,    /* f32 [1, 2^j]: their codebook */
    BNB_PART_OFFSETS = 5,        /* f32, f16 or bf16 [1, blocks], or codes of them, as u8, where blocks have offsets */
    BNB_PART_NESTED_OFFSETS = 6, /* f32 [1, blocks / nested block], where these have offsets of their own */
    BNB_PART_OFFSETS_ABSMAX = 7, /* as part 3, where the offsets are quantised too */
} bnb_part;

/* Which rule an optimizer follows. Decay is decoupled in the first two and in Lion (p shrinks before it moves), and is
 * added to the gradient in the others. LAMB is Adam with a trust ratio, LARS is momentum with one: see max_unorm. */
typedef enum bnb_optimizer {
    BNB_OPTIMIZER_ADAM = 0,     /* Kingma and Ba 2015; AdamW, Loshchilov and Hutter 2019 */
    BNB_OPTIMIZER_ADEMAMIX = 1, /* Pagliardini et al. 2024; state1 holds the fast average, then the slow one */
    BNB_OPTIMIZER_MOMENTUM = 2, /* m = beta1 × m + g, p -= lr × m */
    BNB_OPTIMIZER_LION = 3,     /* Chen et al. 2023 */
    BNB_OPTIMIZER_RMSPROP = 4,  /* Tieleman and Hinton 2012; beta1 keeps the mean of squares */
    BNB_OPTIMIZER_ADAGRAD = 5,  /* Duchi et al. 2011 */
} bnb_optimizer;

/* What an optimizer's step is told beside its tensors, in bitsandbytes' words. Members are doubles, each and all, so
 * that an array of doubles is one. */
typedef struct bnb_hyperparameters {
    double lr, beta1, beta2, beta3; /* rate from 0 on, betas in [0, 1) */
    double alpha;                   /* the share of AdEMAMix's slow average */
    double eps, weight_decay;
    double gnorm_scale; /* gradients are multiplied by it */
    double max_unorm; /* above 0: where ‖direction‖ > max_unorm × ‖p‖, the step is scaled down by their quotient; Adam's
                         * direction is m̂ / (√v̂ + eps), of corrected moments, as LAMB's paper has it */
    double skip_zeros; /* not 0: elements whose gradient is zero are left as they are */
    double step;       /* counted from 1, for bias correction */
} bnb_hyperparameters;

/* What an attention is told beside its tensors. Members are doubles, each and all, so that an array of doubles is
 * one. */
typedef struct bnb_attention_options {
    double heads, kv_heads; /* of queries, and of keys and values: query head h uses head h / (heads / kv_heads) */
    double scale;           /* scores are q · k × scale, */
    double softcap;         /* then c × tanh(score / c) where c is above 0 */
    double norm_offset;     /* what the norms of queries and keys add to their weights: 1 for Gemma */
    double norm_eps;
} bnb_attention_options;

typedef enum bnb_counter {
    BNB_COUNTER_BYTES = 0,      /* in use by handles, beside those of mapped files */
    BNB_COUNTER_PEAK = 1,       /* the most that were in use at once */
    BNB_COUNTER_CACHED = 2,     /* freed, and kept for reuse */
    BNB_COUNTER_OPERATIONS = 3, /* run so far, here or on the CPU for this device */
    BNB_COUNTER_FALLBACKS = 4,  /* of those, run on the CPU because the GPU lacks the kernel */
    BNB_COUNTER_MAPPED = 5,     /* bytes of files that are mapped in place of memory */
    BNB_COUNTER_ROOM = 6,       /* bytes that a GPU can still give, about; of a CPU 0 */
} bnb_counter;

/* ── Errors ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

BNB_API bnb_status  bnb_last_status(void);
BNB_API const char *bnb_last_error(void);
BNB_API const char *bnb_version(void);

/* ── Devices ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* The kinds that this library knows, best first: "metal", "cuda", "cpu"; NULL past the last. */
BNB_API const char *bnb_device_kind(uint32_t index);

/* Opens a kind, or "auto": the kind that the environment's BNB_DEVICE names, else the best that opens. A second call
 * gives the same device. UNSUPPORTED where it is absent: the sentence says why. INVALID where BNB_ISA or
 * BNB_NUM_THREADS makes no sense. */
BNB_API bnb_device *bnb_device_open(const char *kind);

/* Kernels that are no part of this library, since they are the same for every processor: CUDA's, the text that
 * scripts/ptx.ts makes. 1 where opening `kind` would come to a GPU that waits for them, else 0. */
BNB_API int32_t bnb_device_lacks_kernels(const char *kind);

/* Hands them over, once for the process and before the first device of that kind is opened; the library keeps a copy.
 * INVALID where they are not whole: then opening the kind says so. */
BNB_API bnb_status bnb_device_take_kernels(const char *kind, const void *kernels, size_t bytes);

BNB_API const char *bnb_device_name(const bnb_device *device);     /* its kind */
BNB_API const char *bnb_device_describe(const bnb_device *device); /* one line for people */

/* Waits until everything enqueued is done; gives the first failure among it. */
BNB_API bnb_status bnb_device_wait(bnb_device *device);

/* 1 where nothing is under way, else 0. Never waits. */
BNB_API int32_t bnb_device_idle(bnb_device *device);

/* Where a GPU's products change from one kernel to the next: csrc/gpu/driver.h says what each means. Results differ in
 * their last bits only. */
typedef enum bnb_size {
    BNB_SIZE_VECTORS_MOST = 0,
    BNB_SIZE_SKINNY_MOST = 1,
    BNB_SIZE_WIDE_VECTORS = 2,
    BNB_SIZE_BYTE_TABLE = 3,
    BNB_SIZE_TILES_WANTED = 4,
    BNB_SIZE_SPLIT_LEAST = 5,
} bnb_size;

/* Sets one, unless the value is negative, and gives what it is now; -1 where it can't. Not while other threads
 * multiply. */
BNB_API double bnb_device_size(bnb_device *device, bnb_size size, double value);

BNB_API double bnb_device_counter(const bnb_device *device, bnb_counter counter);

/* What fell back to the CPU so far, a line for each operation and reason; "" where nothing did. The text belongs to the
 * calling thread until its next call. With BNB_STRICT=1 in the environment a fallback is UNSUPPORTED instead. */
BNB_API const char *bnb_device_fallbacks(bnb_device *device);

/* ── Tensors ────────────────────────────────────────────────────────────────────────────────────────────────────── */

BNB_API bnb_tensor *bnb_tensor_zeros(bnb_device *device, bnb_dtype dtype, size_t rows, size_t columns);

/* Copies `bytes` bytes of host memory: exactly rows × columns elements. */
BNB_API bnb_tensor *bnb_tensor_from(bnb_device *device, bnb_dtype dtype, size_t rows, size_t columns, const void *data,
                                    size_t bytes);

/* Elements of an ordinary file that is open for reading, from byte `offset` on; `path` is for messages only, and the
 * descriptor may be closed afterwards. A copy; with `mapped` the file's own pages in place of memory: on the CPU where
 * offset is a multiple of an element, on Metal where it is one of 16 bytes, and else a copy too. Mapped, the tensor
 * shows what others write into the file, and once the file is cut short whatever reads it on the CPU is INVALID. What
 * is written to the tensor never reaches the file. */
BNB_API bnb_tensor *bnb_tensor_from_file(bnb_device *device, bnb_dtype dtype, size_t rows, size_t columns,
                                         int32_t descriptor, size_t offset, const char *path, int32_t mapped);

/* Writes GGML's blocks, as a GGUF file holds them, out as f32, f16 or bf16; `type` is GGML's number. F32, F16, BF16,
 * Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are read, another is UNSUPPORTED; columns is a multiple of the
 * block. */
BNB_API bnb_tensor *bnb_tensor_from_gguf(bnb_device *device, uint32_t type, size_t rows, size_t columns,
                                         const void *data, size_t bytes, bnb_dtype dtype);

BNB_API bnb_status bnb_tensor_write(bnb_tensor *tensor, const void *data, size_t bytes);
BNB_API bnb_status bnb_tensor_read(const bnb_tensor *tensor, void *data, size_t bytes);

/* Where the elements are for the processor, once all work on them is done: good until the tensor is freed, and for as
 * long as no work is asked for that writes it. UNSUPPORTED where the device does not share its memory, such as CUDA. */
BNB_API void *bnb_tensor_host(bnb_tensor *tensor);

/* A copy on another device, or on the same. */
BNB_API bnb_tensor *bnb_tensor_to(const bnb_tensor *tensor, bnb_device *device);

/* The same elements as rows × columns of another shape; shares the memory. */
BNB_API bnb_tensor *bnb_tensor_reshape(const bnb_tensor *tensor, size_t rows, size_t columns);

/* Rows [first, first + rows). The same memory, where it begins at a multiple of the 16 bytes that kernels load at once;
 * else a copy. */
BNB_API bnb_tensor *bnb_tensor_slice(const bnb_tensor *tensor, size_t first, size_t rows);

/* Copies all of `from` to the rows of `tensor` from `first` on. Both are of one dtype and have the same columns. */
BNB_API bnb_status bnb_tensor_put(bnb_tensor *tensor, size_t first, const bnb_tensor *from);

BNB_API bnb_dtype bnb_tensor_dtype(const bnb_tensor *tensor);
BNB_API size_t    bnb_tensor_rows(const bnb_tensor *tensor);
BNB_API size_t    bnb_tensor_columns(const bnb_tensor *tensor);
BNB_API void      bnb_tensor_free(bnb_tensor *tensor);

/* ── Codebooks ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* "nf4" and "af4" (normal float, QLoRA and AbnormalFloat), "fp4", "dynamic" and "dynamic_unsigned" (8-bit dynamic
 * tree), "int8" (a signed byte over 127); "nf2", "nf3", "nf5" and "nf6" (normal float of other widths). */
BNB_API bnb_codebook *bnb_codebook_named(const char *name);

/* Any codebook of 2^k finite values, k from 2 to 8, in any order. A code is the nearest value's index; between two
 * values that are as near, 8-bit codes take the even index and narrower ones the smaller value, as bitsandbytes
 * does. */
BNB_API bnb_codebook *bnb_codebook_from(const float *values, size_t bytes);

/* bitsandbytes' maps, with 2^total_bits values: upstream fills them up with zeros to 256, which changes no nearest
 * value. See create_dynamic_map, create_linear_map, create_fp8_map, create_normal_map there. A signed linear map has a
 * zero twice if add_zero, and none if not. A normal map's offset is the largest value's quantile; 0 is QLoRA's. */
BNB_API bnb_codebook *bnb_codebook_dynamic(int32_t is_signed, uint32_t max_exponent_bits, uint32_t total_bits);
BNB_API bnb_codebook *bnb_codebook_linear(int32_t is_signed, uint32_t total_bits, int32_t add_zero);
BNB_API bnb_codebook *bnb_codebook_fp8(int32_t is_signed, uint32_t exponent_bits, uint32_t precision_bits,
                                       uint32_t total_bits);
BNB_API bnb_codebook *bnb_codebook_normal(double offset, int32_t use_extra_value, uint32_t total_bits);

BNB_API size_t     bnb_codebook_size(const bnb_codebook *codebook);
BNB_API bnb_status bnb_codebook_read(const bnb_codebook *codebook, float *values, size_t bytes);
BNB_API void       bnb_codebook_free(bnb_codebook *codebook);

/* ── Quantised matrices ─────────────────────────────────────────────────────────────────────────────────────────── */

/* Puts together what bnb_quantized_part takes apart; shares the tensors' memory. 8-bit codes may come as i8: with the
 * codebook "int8" and a block of `columns`, codes and stats of LLM.int8() are a quantised matrix. An element stands for
 * code[c] × scale + offsets[b] in fp32, each rounded; `offsets` are f32, f16 or bf16, one a block, or NULL.
 * `absmax` is f32, f16 or bf16 with a scale a block. Where the scales are quantised, it holds their codes, one string
 * of bits as `codes` is one, and scale[b] is nested_code[absmax[b]] × nested_absmax[g] + offset of the nested block g =
 * b / nested_block, or + nested_offsets[g] where that is not NULL, as of weights that were joined. There offsets may be
 * quantised too: where offsets_absmax is not NULL, `offsets` holds codes as absmax does, and offsets[b] is
 * nested_code[offsets[b]] × offsets_absmax[g]. nested_absmax is f32, f16 or bf16, and offsets_absmax of the same dtype.
 * Else nested_code, nested_absmax, nested_offsets and offsets_absmax are NULL. */
BNB_API bnb_quantized *bnb_quantized_from(const bnb_tensor *codes, size_t rows, size_t columns,
                                          const bnb_codebook *code, size_t block, const bnb_tensor *absmax,
                                          const bnb_tensor *offsets, const bnb_codebook *nested_code,
                                          size_t nested_block, const bnb_tensor *nested_absmax, float offset,
                                          const bnb_tensor *nested_offsets, const bnb_tensor *offsets_absmax);

/* A part as a tensor that shares the memory; INVALID for a nested part where the scales are plain. */
BNB_API bnb_tensor *bnb_quantized_part(const bnb_quantized *quantized, bnb_part part);

BNB_API size_t bnb_quantized_rows(const bnb_quantized *quantized);
BNB_API size_t bnb_quantized_columns(const bnb_quantized *quantized);
BNB_API size_t bnb_quantized_block(const bnb_quantized *quantized);
BNB_API size_t bnb_quantized_nested_block(const bnb_quantized *quantized); /* 0 where the scales are plain */
BNB_API float  bnb_quantized_offset(const bnb_quantized *quantized);
BNB_API void   bnb_quantized_free(bnb_quantized *quantized);

/* ── Operations ─────────────────────────────────────────────────────────────────────────────────────────────────── */

/* x as another float dtype, rounded to nearest even. */
BNB_API bnb_tensor *bnb_cast(const bnb_tensor *x, bnb_dtype dtype);

/* codes[i] = the codebook's nearest value to x[i] / absmax[i / block]; absmax[b] = the block's scale, found as `scales`
 * says. `x` is f32, f16 or bf16. The block is any positive size for 8-bit codes, else a power of two from 16 to 4096.
 * nested_block > 0 quantises the scales too ("double quantisation", QLoRA §3): less their mean, with the signed dynamic
 * map, in blocks of that size; scales of least squares come first, and codes are those for what the scales are then.
 * `importance` weighs the squared error of each column, for scales of least squares only: a float for each column of x,
 * finite and at least 0; NULL where all weigh the same. Such scales are positive, and never give a larger error than
 * the largest magnitude does, but for what quantising the scales adds. A NaN or an infinity in x or `importance` is
 * INVALID, and the sentence says where: for that it waits for the work that makes them, on a GPU when all is enqueued.
 * The CPU's search for least squares goes on after the call, and what uses a weight with nested scales on the CPU waits
 * until their mean is found. */
BNB_API bnb_quantized *bnb_quantize(const bnb_tensor *x, const bnb_codebook *code, size_t block, size_t nested_block,
                                    bnb_scales scales, const bnb_tensor *importance);

/* Integers of 2 to 8 bits with a scale and an offset for each block of a row, as MLX's affine mode has them, code for
 * code.
 * `x` is f32, f16 or bf16, which scales and offsets get too; the block divides its columns. It is done on the CPU, and
 * waits. */
BNB_API bnb_quantized *bnb_quantize_affine(const bnb_tensor *x, uint32_t bits, size_t block);

/* The matrix that `q` stands for: code × scale in fp32, rounded once to `dtype` (f32, f16 or bf16). */
BNB_API bnb_tensor *bnb_dequantize(const bnb_quantized *q, bnb_dtype dtype);

/* y[m, n] = Σk x[m, k] · w[n, k] + bias[1, n], in x's dtype. All are f32, f16 or bf16; `bias` may be NULL. */
BNB_API bnb_tensor *bnb_matmul(const bnb_tensor *x, const bnb_tensor *w, const bnb_tensor *bias,
                               bnb_precision precision);

/* The same product with a quantised w[n, k], which is never written out whole. */
BNB_API bnb_tensor *bnb_matmul_quantized(const bnb_tensor *x, const bnb_quantized *w, const bnb_tensor *bias,
                                         bnb_precision precision);

/* The gradient of that product with respect to x: with dy[m, n] of y, dx[m, k] = Σn dy[m, n] · w[n, k], in dy's
 * dtype. */
BNB_API bnb_tensor *bnb_matmul_backward(const bnb_tensor *dy, const bnb_tensor *w);

/* The same with a quantised w[n, k], which is never written out whole. */
BNB_API bnb_tensor *bnb_matmul_quantized_backward(const bnb_tensor *dy, const bnb_quantized *w);

/* The gradient with respect to a dense w: dw[n, k] = Σm dy[m, n] · x[m, k], summed in fp32 and rounded once to
 * `dtype`. */
BNB_API bnb_tensor *bnb_matmul_backward_weight(const bnb_tensor *dy, const bnb_tensor *x, bnb_dtype dtype);

/* y[i, :] = w[indices[i], :] in `dtype`, a row for each of the i32 indices, whatever their shape. An index that is no
 * row of w is INVALID, and the sentence says where: for that it waits for the work that makes the indices, but where
 * the host is known to have written such as are rows. */
BNB_API bnb_tensor *bnb_embedding(const bnb_tensor *indices, const bnb_tensor *w, bnb_dtype dtype);

/* The same with a quantised w, of which only these rows are dequantised. */
BNB_API bnb_tensor *bnb_embedding_quantized(const bnb_tensor *indices, const bnb_quantized *w, bnb_dtype dtype);

/* The gradient with respect to a dense w of `rows` rows: dw[r, :] = the sum of dy[i, :] where indices[i] = r, in fp32
 * and in order, rounded once to `dtype`. The row `padding` gets zeros; -1: there is none. Looks at the indices, and
 * waits, as bnb_embedding. */
BNB_API bnb_tensor *bnb_embedding_backward(const bnb_tensor *dy, const bnb_tensor *indices, size_t rows,
                                           int32_t padding, bnb_dtype dtype);

/* Each row of x less its mean, by the square root of its variance + eps, times weight[1, n], plus bias[1, n]; in x's
 * dtype (Ba et al. 2016). */
BNB_API bnb_tensor *bnb_layer_norm(const bnb_tensor *x, const bnb_tensor *weight, const bnb_tensor *bias, float eps);

/* Its gradient with respect to x, in dy's dtype. */
BNB_API bnb_tensor *bnb_layer_norm_backward(const bnb_tensor *dy, const bnb_tensor *x, const bnb_tensor *weight,
                                            float eps);

/* Its gradient with respect to the weight, f32 [1, n]. That of the bias is the sum of dy's rows. */
BNB_API bnb_tensor *bnb_layer_norm_backward_weight(const bnb_tensor *dy, const bnb_tensor *x, float eps);

/* y = a + scale · b in a's dtype, product and sum each rounded to fp32; a may be NULL: y = scale · b in b's dtype. */
BNB_API bnb_tensor *bnb_add(const bnb_tensor *a, const bnb_tensor *b, float scale);

/* y = a · b, element by element, in a's dtype. */
BNB_API bnb_tensor *bnb_mul(const bnb_tensor *a, const bnb_tensor *b);

/* y = e to the x, in x's dtype, within 2 ulp of fp32 and rounded once. */
BNB_API bnb_tensor *bnb_exp(const bnb_tensor *x);

/* y = 1 / (1 + e to the -x), in x's dtype, within 4 ulp of fp32 where it is at least 2^-126, and rounded once. */
BNB_API bnb_tensor *bnb_sigmoid(const bnb_tensor *x);

/* y[c, r] = x[r, c], of any dtype. */
BNB_API bnb_tensor *bnb_transpose(const bnb_tensor *x);

/* Each row's powers of e over their sum, in x's dtype. A row with a NaN, or an infinity above all else, is NaN. */
BNB_API bnb_tensor *bnb_softmax(const bnb_tensor *x);

/* LLM.int8() (Dettmers et al. 2022) stands for x[r, c] by code[r, c] · stats[r] / 127, stats being the row's largest
 * magnitude; columns that hold an outlier, a magnitude of at least a threshold, are left to floating point. A threshold
 * of 0 means that there is none; it is finite and not negative. */

/* The columns of x that hold an outlier, ascending: i32 [1, columns], filled up with -1. The threshold is positive. */
BNB_API bnb_tensor *bnb_int8_outliers(const bnb_tensor *x, float threshold);

/* The largest magnitude of each row of x, f32 [1, rows], or with by_column of each column, f32 [1, columns]; outliers
 * do not count. A NaN or an infinity that does is one here. */
BNB_API bnb_tensor *bnb_int8_stats(const bnb_tensor *x, float threshold, int32_t by_column);

/* x · (1 / stats · 127), rounded to nearest even, as i8, with the stats of x's rows or columns. Zeros stand for
 * outliers, for the columns that `outliers` lists as above (or NULL), and for rows (columns) whose stats are at most
 * 1e-36. Stats that are not finite are INVALID, and the sentence says where x isn't: for that it waits for the work
 * that makes them, on a GPU when all is enqueued. */
BNB_API bnb_tensor *bnb_int8_vectorwise_quant(const bnb_tensor *x, const bnb_tensor *stats, float threshold,
                                              const bnb_tensor *outliers, int32_t by_column);

/* codes · stats / 127, with the stats of the rows, in fp32, rounded once to `dtype` (f32, f16 or bf16). */
BNB_API bnb_tensor *bnb_int8_vectorwise_dequant(const bnb_tensor *codes, const bnb_tensor *stats, bnb_dtype dtype);

/* sums[m, n] = Σk a[m, k] · b[n, k] of i8 matrices, exactly, as i32. More than 131071 columns, whose sum could leave 32
 * bits, are UNSUPPORTED, here and below: split them and add. */
BNB_API bnb_tensor *bnb_int8_linear_matmul(const bnb_tensor *a, const bnb_tensor *b);

/* What such sums stand for: sums · row_stats · column_stats / 127² + bias, in fp32, rounded once to `dtype`. Stats are
 * f32 with an element for each row and each column of the sums; `bias` is a float row, or NULL. */
BNB_API bnb_tensor *bnb_int8_mm_dequant(const bnb_tensor *sums, const bnb_tensor *row_stats,
                                        const bnb_tensor *column_stats, const bnb_tensor *bias, bnb_dtype dtype);

/* Both at once, which never writes the sums out: a[m, k] with m row_stats, b[n, k] with n column_stats. */
BNB_API bnb_tensor *bnb_int8_scaled_mm(const bnb_tensor *a, const bnb_tensor *b, const bnb_tensor *row_stats,
                                       const bnb_tensor *column_stats, const bnb_tensor *bias, bnb_dtype dtype);

/* The same for an x[m, k] of which a[m, k] are the codes, in x's dtype: the columns that `outliers` lists (or NULL) are
 * added in floating point, x times what b stands for there. */
BNB_API bnb_tensor *bnb_int8_mixed_scaled_mm(const bnb_tensor *x, const bnb_tensor *a, const bnb_tensor *b,
                                             const bnb_tensor *row_stats, const bnb_tensor *column_stats,
                                             const bnb_tensor *outliers, const bnb_tensor *bias);

/* LLM.int8() from end to end: y[m, n] = x[m, k] · wᵀ + bias in x's dtype, with the codes of w[n, k] and the stats of
 * its rows. Rows of x that hold a NaN or an infinity give no finite number. */
BNB_API bnb_tensor *bnb_int8_matmul(const bnb_tensor *x, const bnb_tensor *w, const bnb_tensor *stats, float threshold,
                                    const bnb_tensor *bias);

/* ── Whole models ───────────────────────────────────────────────────────────────────────────────────────────────── */

/* y = x · (offset + weight) / √(mean(x²) + eps), the mean over each run of d columns (Zhang and Sennrich 2019); weight
 * is [1, d], and d divides x's columns: a norm of each head, where it is smaller. Where `residual` is not NULL, x
 * becomes x + scale · residual first, in place. Each is f32, f16 or bf16; y has x's dtype, and is rounded once. */
BNB_API bnb_tensor *bnb_rms_norm(bnb_tensor *x, const bnb_tensor *residual, float scale, const bnb_tensor *weight,
                                 float offset, float eps);

/* y = f(x) · up. `up` has x's shape; or, where it is NULL and `gated` is not 0, it is the second half of x's columns,
 * and y[m, columns / 2] is made of the first; else y = f(x). All are of one float dtype. */
BNB_API bnb_tensor *bnb_activate(const bnb_tensor *x, const bnb_tensor *up, int32_t gated, bnb_activation activation);

/* The keys and values of `layers` layers, for `slots` sequences of up to `capacity` tokens each: a head's row is
 * `columns`
 * floats as f32 or f16, or as i8 with a scale a row. Nothing in it is set: who attends says how much of a slot
 * counts. */
BNB_API bnb_cache *bnb_cache_new(bnb_device *device, bnb_dtype dtype, size_t layers, size_t slots, size_t heads,
                                 size_t capacity, size_t columns);

/* Makes room for other numbers of slots and tokens; what there is room for stays. It is copied in the call, which
 * waits for the work on it. */
BNB_API bnb_status bnb_cache_resize(bnb_cache *cache, size_t slots, size_t capacity);

/* Copies the first `length` tokens of a slot to or from the caller's memory, bnb_cache_row_bytes for each token: layer
 * by layer the keys, then the values, head by head; where the rows are i8, the layer's scales follow in the same
 * order. */
BNB_API bnb_status bnb_cache_read(const bnb_cache *cache, size_t slot, size_t length, void *data, size_t bytes);
BNB_API bnb_status bnb_cache_write(bnb_cache *cache, size_t slot, size_t length, const void *data, size_t bytes);
BNB_API size_t     bnb_cache_row_bytes(const bnb_cache *cache); /* of all layers, for one token */
BNB_API void       bnb_cache_free(bnb_cache *cache);

/* Attention (Vaswani et al. 2017; grouped, Ainslie et al. 2023) of m rows that may belong to several sequences:
 * y[m, heads · d] = softmax(cap(scale · q · kᵀ) + bias) · v, for each head.
 *
 * q is [m, heads · d], k and v [m, kv_heads · d]; or k and v are NULL, and q [m, (heads + 2 kv_heads) · d] holds all
 * three.
 * `rows`, i32 [m, 4], says for each row: its slot in the cache; its position; and the keys that it sees, from the first
 * to before the last. Keys are counted by their position in the slot. Without a cache (NULL) they are the rows
 * themselves, counted from 0, and the slot says nothing. A row that sees no key is zeros. Before any row attends, all
 * rows' keys and values go to their places in layer `layer` of the cache.
 * `pages`, i32 [texts, n], has each text's keys lie in several slots of the cache, which texts may share: rows name a
 * text, whose key t is key t % capacity of slot pages[text, t / capacity]. The capacity is a power of two then. NULL: a
 * text is a slot.
 * `rope`, f32 [positions, r], rotates the first r columns of each head of q and k, element i with i + r / 2 (Su et al.
 * 2021): a row holds the cosines of its position's r / 2 angles, then their sines. NULL: nothing is rotated.
 * `q_norm` and `k_norm`, [1, d], normalise each head before that, as bnb_rms_norm does. NULL: neither.
 * `bias`, f32 [heads, 2 w - 1], is added to the score of a key that lies t after the row, at column t + w - 1; beyond
 * its ends the ends stand. NULL: none.
 * A row whose slot, position or keys lie outside the cache or the table, or a page that is no slot, is INVALID on the
 * CPU, as soon as the work is done. On a GPU nobody looks at rows before the kernel does: such a row's result is zeros
 * and nothing else is touched, and for a page that is no slot another stands. */
BNB_API bnb_tensor *bnb_attention(const bnb_attention_options *options, const bnb_tensor *q, const bnb_tensor *k,
                                  const bnb_tensor *v, const bnb_tensor *rows, const bnb_tensor *rope,
                                  const bnb_tensor *q_norm, const bnb_tensor *k_norm, const bnb_tensor *bias,
                                  bnb_cache *cache, uint32_t layer, const bnb_tensor *pages);

/* Of each row of x the `count` largest elements, largest first, the lower index first where two are as large, NaN last:
 * i32 [rows, 2 · count], their indices, then the bits of their values as f32. */
BNB_API bnb_tensor *bnb_topk(const bnb_tensor *x, size_t count);

/* Which experts a mixture sends each row to (Shazeer et al. 2017): as bnb_topk of x, with the softmax over all of a row
 * in place of its values; where `normalised` is not 0, divided by their sum. */
BNB_API bnb_tensor *bnb_route(const bnb_tensor *x, size_t count, int32_t normalised);

/* y[rows[i], :] += weights[i] · x[i, :], in place and in the order of i. rows is i32 and weights f32, both [1, x's
 * rows]. */
BNB_API bnb_status bnb_scatter_add(bnb_tensor *y, const bnb_tensor *x, const bnb_tensor *rows,
                                   const bnb_tensor *weights);

/* The rows of a, then those of b, as one matrix; of one dtype and as many columns each. */
BNB_API bnb_tensor *bnb_tensor_join(const bnb_tensor *a, const bnb_tensor *b);

/* The same of quantised matrices, whose codes stay as they are; nested scales become plain ones, unless both have one
 * nested codebook, block, dtype and offset, and a's last nested block is whole. INVALID where codebooks, blocks or
 * columns differ; UNSUPPORTED where a's last block or byte would be b's first. Where scales are nested it waits for the
 * work that makes them. */
BNB_API bnb_quantized *bnb_quantized_join(const bnb_quantized *a, const bnb_quantized *b);

/* How far b is from a, both f32, f16 or bf16: f32 [1, 4], being the root mean square of a, that of a - b, the largest
 * |a - b|, and the number of places where either is no finite number, which the first three leave out. */
BNB_API bnb_tensor *bnb_compare(const bnb_tensor *a, const bnb_tensor *b);

/* One step of an optimizer: p[m, n] and its states are updated in place under the gradient g[m, n]; both are f32, f16
 * or bf16. A state is f32, or u8 codes with a scale for each 256 elements: absmax f32, a codebook of 256 values, and
 * each new value's nearest code (Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization). State2 belongs to
 * Adam and AdEMAMix, absmax and code to u8 states, `unorm` (f32 [1, 1], which becomes ‖direction‖) to max_unorm above
 * 0; what does not belong is ignored and may be NULL. AdEMAMix's state1 and absmax1 are twice as large.
 * An element whose gradient is NaN, infinite or beyond 1e18 is left as it is, parameter and states. */
BNB_API bnb_status bnb_optimizer_step(bnb_optimizer kind, const bnb_hyperparameters *hyperparameters, bnb_tensor *p,
                                      const bnb_tensor *g, bnb_tensor *state1, bnb_tensor *absmax1,
                                      const bnb_codebook *code1, bnb_tensor *state2, bnb_tensor *absmax2,
                                      const bnb_codebook *code2, bnb_tensor *unorm);

/* ── Recording ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* What a loop does again and again is recorded once: its checks, allocations and choices are done then, and running it
 * again costs little more than its kernels. From here on what the calling thread asks of the device is done as ever
 * (by the CPU in the call), and recorded too, until bnb_record_end. Shapes stay as they are. What is to change from one
 * run to the next lies in tensors that were made before: it is read from their memory each time, and bnb_tensor_write
 * puts it there. Reads, writes and copies of tensors are not recorded; what looks at values on the CPU is UNSUPPORTED:
 * bnb_embedding_backward, and on the CPU bnb_quantize. What is recorded on a GPU is not checked: an index of
 * bnb_embedding that is no row gives NaNs, and so does the block or, with nested scales, all of what bnb_quantize is
 * given and is not finite; nor are, on any device, the stats of bnb_int8_vectorwise_quant. */
BNB_API bnb_status bnb_record(bnb_device *device);

/* Ends it. NULL where an operation has failed meanwhile. */
BNB_API bnb_recording *bnb_record_end(void);

/* Does it all again, enqueued like an operation: results that were recorded, and are still held as tensors, then hold
 * those of this run. Memory that was written by the host while it was recorded, as by bnb_tensor_from, keeps what it
 * has. One thread at a time. Counts as one operation. */
BNB_API bnb_status bnb_replay(bnb_recording *recording);

/* On the CPU it waits for the last run. */
BNB_API void bnb_recording_free(bnb_recording *recording);

/* ── The collector ──────────────────────────────────────────────────────────────────────────────────────────────── */

/* A garbage collector that is told of external memory calls a function (void *address, void *context) when it drops
 * it. This one frees the handle, of whatever kind, that `context` is. It may be called on any thread. */
BNB_API void *bnb_deallocator(void);

#endif
