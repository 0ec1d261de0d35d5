// What the host hands to kernels: a struct for each, read by C and Metal alike. Includers bring uint32_t and uint8_t.
#ifndef BNB_ARGS_H
#define BNB_ARGS_H

// How a matrix is stored, as kernels are told by their function constants: enum bnb_dtype, or codes of k bits, which is
// STORE_CODE + k for k from 2 to 8.
enum {
    STORE_F32 = 0,
    STORE_F16 = 1,
    STORE_BF16 = 2,
    STORE_I8 = 3,
    STORE_I32 = 5,
    STORE_CODE = 16,
    STORE_CODE4 = 20,
    STORE_CODE8 = 24
};

// How the scales of blocks are stored: floats of a dtype; bytes that are codes of a nested codebook, with an f32 scale
// a nested block and an offset for all, as bitsandbytes has it; codes of any width, with a scale of any dtype; or those
// with an offset for each nested block.
enum { SCALES_F32 = 0, SCALES_NESTED = 1, SCALES_F16 = 2, SCALES_BF16 = 3, SCALES_JOINED = 4, SCALES_CODED = 5 };

// The offsets of blocks, which are added to what is scaled: none, floats of a dtype, or codes as the scales' own are,
// with a scale of their own a nested block.
enum { OFFSETS_NONE = 0, OFFSETS_F32 = 1, OFFSETS_F16 = 2, OFFSETS_BF16 = 3, OFFSETS_CODED = 4 };

// Which weights take the wide loads: none; where rows and blocks are multiples of VECTOR_CHUNK and blocks are powers of
// two; where rows are such multiples and each has one scale, which makes shift 31.
enum { WHOLE_NOT = 0, WHOLE_BLOCKS = 1, WHOLE_ROWS = 2 };

// The shapes that host and kernels must agree on. A count of threads is a threadgroup's.
enum {
    ELEMENTWISE_THREADS = 256, // 8 elements a thread
    DEQUANTIZE_THREADS = 256,  // 8 elements a thread
    DEQUANTIZE4_SPAN = 1024,   // elements that a simdgroup takes at once
    QUANTIZE_THREADS = 512,    // 8 elements a thread: every block that is a power of two from 8 to 4096 divides the
    QUANTIZE_TILE = 4096,      // elements of a threadgroup
    VECTOR_THREADS = 128,      // 4 simdgroups
    VECTOR_COLUMNS = 16,       // columns of y a threadgroup, 4 a simdgroup
    VECTOR_CHUNK = 16,         // weights a load: rows and blocks that are multiples of it take the wide loads
    TILE_THREADS = 128,        // 4 simdgroups, two by two
    TILE_DEPTH = 32,           // a split of k is a multiple of it
    SUM_THREADS = 256,
    EMBEDDING_THREADS = 256,  // 8 elements a thread
    LAYER_NORM_THREADS = 256, // a row
    RMS_NORM_THREADS = 256,   // a run
    SOFTMAX_THREADS = 256,    // a row
    TRANSPOSE_THREADS = 256,  // elements by turns
    ACTIVATE_THREADS = 256,   // elements by turns
    TOPK_THREADS = 256,       // a row
    SCATTER_THREADS = 256,    // a column each
    PREPARE_THREADS = 128,    // 4 simdgroups, each at one head of a row
    ATTEND_THREADS = 128,     // 4 simdgroups at the keys of one head of a row, 32 keys each at a time
    ATTEND_MOST = 1024,       // columns of a head
    MERGE_THREADS = 64,       // parts of a head of a row, then its columns by turns
    SORT_THREADS = 256,       // a digit each,
    SORT_BITS = 8,            // which has so many bits
    SORT_DIGITS = 256,        //
    SORT_TILE = 2048,         // elements of a threadgroup
    COMPARE_THREADS = 256,    // 8 elements a thread
    FINITE_THREADS = 256,     // 4 elements a thread
    NESTED_THREADS = 256,     // 4 scales a thread, and one at each part
    COMPARE_SUMS_BYTES = 16,  // what a threadgroup leaves
    INT8_THREADS = 256,       // 8 simdgroups: at a row, or at 32 columns
    INT8_KEPT_MOST = 4,       // times 8 columns of a row that a thread keeps between its two looks at them
    OPTIMIZER_THREADS = 256,  // 8 simdgroups, each at one block of the states
    OPTIMIZER_BLOCK = 256,    // elements that share a scale of 8-bit states
    SCALES_THREADS = 256,     // 8 simdgroups, each at one block
};

// csrc/codebook.h explains the parts. A magnitude's bucket is its bits >> CODES_BUCKET_SHIFT, less CODES_BUCKET_BASE.
enum { CODES_BUCKET_SHIFT = 17, CODES_BUCKET_BASE = (127 - 24) * 64, CODES_STARTS = 1540 };

struct kernel_codebook {
    float    values[256];
    float    thresholds[256];
    uint8_t  order[256];
    uint8_t  start[2 * CODES_STARTS]; // of the positive, then of the negative buckets
    uint32_t steps, size;
};
static_assert(sizeof(struct kernel_codebook) == 5392, "host and kernels must lay out struct kernel_codebook alike");

// What is done to each element; metal/elementwise_rule.h has the arithmetic.
enum { UNARY_COPY = 0, UNARY_SCALE = 1, UNARY_EXP = 2, UNARY_SIGMOID = 3 };
enum { BINARY_ADD = 0, BINARY_MULTIPLY = 1 };

// A count of 64 bits is two words.
struct elementwise_args {
    uint32_t count_low, count_high;
    float    scale;
};
static_assert(sizeof(struct elementwise_args) == 12, "host and kernels must lay out struct elementwise_args alike");

struct quantize_args {
    uint32_t count_low, count_high; // elements
    uint32_t block, shift;          // block = 1 << shift, or shift is 32 where no power of two is meant
};
static_assert(sizeof(struct quantize_args) == 16, "host and kernels must lay out struct quantize_args alike");

// The search for scales: metal/scales_rule.h.
struct scales_args {
    uint32_t count_low, count_high; // elements
    uint32_t block, columns;
    float    first, ratio; // the scales to try: first × the largest magnitude, and each ratio × the one before
};
static_assert(sizeof(struct scales_args) == 24, "host and kernels must lay out struct scales_args alike");

// Where an element's scale is. Scales are counted in 32 bits: 2^32 of them belong to 64 GB of codes at least.
struct scale_layout {
    uint32_t block, shift; // as above
    uint32_t nested_block, nested_shift;
    uint32_t nested_bits, nested_store; // of the nested codes, and how nested blocks' scales are stored
};
static_assert(sizeof(struct scale_layout) == 24, "host and kernels must lay out struct scale_layout alike");

struct dequantize_args {
    uint32_t            count_low, count_high;
    struct scale_layout scales;
};
static_assert(sizeof(struct dequantize_args) == 32, "host and kernels must lay out struct dequantize_args alike");

// y[m, n] = Σk x[m, k] · w[n, k] + bias[n], or backward y[m, k] = Σn a[m, n] · w[n, k]; every size is below 2^31.
struct matmul_args {
    uint32_t            m, n, k;
    uint32_t            split; // the part of the sum that a tile takes: all of it, or a multiple of TILE_DEPTH
    struct scale_layout scales;
};
static_assert(sizeof(struct matmul_args) == 40, "host and kernels must lay out struct matmul_args alike");

// y[m, n] = Σs partial[s, m, n] + bias[n]
struct sum_args {
    uint32_t m, n, splits;
};
static_assert(sizeof(struct sum_args) == 12, "host and kernels must lay out struct sum_args alike");

// Of x; fewer than 2^31 elements.
struct transpose_args {
    uint32_t rows, columns;
};
static_assert(sizeof(struct transpose_args) == 8, "host and kernels must lay out struct transpose_args alike");

struct softmax_args {
    uint32_t columns;
};
static_assert(sizeof(struct softmax_args) == 4, "host and kernels must lay out struct softmax_args alike");

// Rows of y, or of a table's gradient.
struct embedding_args {
    uint32_t            rows_low, rows_high, columns;
    uint32_t            table_rows; // of which an index is one
    struct scale_layout scales;
};
static_assert(sizeof(struct embedding_args) == 40, "host and kernels must lay out struct embedding_args alike");

// Indices, of which those from 0 to rows - 1 but for padding are sorted; shift is where a pass's digit begins.
struct sort_args {
    uint32_t count, rows, padding, shift;
};
static_assert(sizeof(struct sort_args) == 16, "host and kernels must lay out struct sort_args alike");

struct layer_norm_args {
    uint32_t rows, columns;
    float    eps;
};
static_assert(sizeof(struct layer_norm_args) == 12, "host and kernels must lay out struct layer_norm_args alike");

// Runs of d elements: x += scale · residual, y = x · (offset + weight) / √(mean(x²) + eps).
struct rms_norm_args {
    uint32_t d;
    float    scale, offset, eps;
};
static_assert(sizeof(struct rms_norm_args) == 16, "host and kernels must lay out struct rms_norm_args alike");

// enum bnb_activation, and what it is a gate for: nothing, another tensor, or the second half of x's columns.
enum { ACTIVATION_SILU = 0, ACTIVATION_GELU = 1, ACTIVATION_GELU_TANH = 2, ACTIVATION_TANH = 3 };
enum { GATE_NONE = 0, GATE_OTHER = 1, GATE_HALVES = 2 };

// y[rows, columns] = f(x) · up
struct activate_args {
    uint32_t count_low, count_high; // elements of y
    uint32_t columns;               // of y
};
static_assert(sizeof(struct activate_args) == 12, "host and kernels must lay out struct activate_args alike");

struct topk_args {
    uint32_t columns, count;
    uint32_t part, parts; // columns of a part of a row, where rows are gone through in parts
};
static_assert(sizeof(struct topk_args) == 16, "host and kernels must lay out struct topk_args alike");

// y[to[i], :] += weights[i] · x[i, :]
struct scatter_add_args {
    uint32_t rows, columns, most; // of x, of both, and of y's rows
};
static_assert(sizeof(struct scatter_add_args) == 12, "host and kernels must lay out struct scatter_add_args alike");

// What each row of attention says of itself: bnb_attention's `rows`.
enum { ROW_SLOT = 0, ROW_POSITION = 1, ROW_FIRST = 2, ROW_LAST = 3, ROW_FIELDS = 4 };

struct attention_args {
    uint32_t rows, heads, kv_heads, d;
    uint32_t q_columns, k_columns, v_columns; // of the matrices that they lie in,
    uint32_t k_first, v_first;                // and where in a row of those they begin
    uint32_t rotated, positions;              // columns and rows of the table of angles
    uint32_t slots, capacity;                 // of the cache, or 1 and the rows
    uint32_t texts, reach;                    // what rows may name: texts, and keys of each
    uint32_t pages, page_bits;                // of a text, or none; and the capacity's logarithm
    uint32_t span;                            // the bias has 2 · span - 1 columns
    uint32_t parts;                           // that each head's keys are split into
    float    scale, softcap, norm_offset, norm_eps;
};
static_assert(sizeof(struct attention_args) == 92, "host and kernels must lay out struct attention_args alike");

struct compare_args {
    uint32_t count_low, count_high;
    uint32_t parts; // the threadgroups that left sums
};
static_assert(sizeof(struct compare_args) == 12, "host and kernels must lay out struct compare_args alike");

// Numbers of fp32.
struct finite_args {
    uint32_t count;
};
static_assert(sizeof(struct finite_args) == 4, "host and kernels must lay out struct finite_args alike");

// Scales, which threadgroups have looked at in `parts`, NESTED_THREADS at most; `block` of their codes share a scale.
struct nested_args {
    uint32_t count, parts, block;
};
static_assert(sizeof(struct nested_args) == 12, "host and kernels must lay out struct nested_args alike");

// Which rule an optimizer follows: enum bnb_optimizer.
enum { RULE_ADAM = 0, RULE_ADEMAMIX = 1, RULE_MOMENTUM = 2, RULE_LION = 3, RULE_RMSPROP = 4, RULE_ADAGRAD = 5 };

// What a launch of the optimizer does: a step, sums for the trust ratio, or a step under that ratio.
enum { TRUST_NONE = 0, TRUST_MEASURE = 1, TRUST_APPLY = 2 };

// One step's hyperparameters as metal/optimizer_rule.h takes them, worked out in double precision.
struct optimizer_rule {
    float keep_first, take_first; // an average becomes keep × itself + take × what it averages
    float keep_second, take_second;
    float keep_slow, take_slow;
    float mix_first, mix_slow; // AdEMAMix's numerator: mix_first × first + mix_slow × slow
    float eps;                 // added to the square root of the second moment
    float rate;                // p moves by rate × direction: negative
    float shrink;              // decoupled decay: p becomes shrink × p
    float decay;               // coupled decay: decay × p is added to the gradient
    float gradient_scale;
    float least, most; // magnitudes of gradients that count
};
static_assert(sizeof(struct optimizer_rule) == 60, "host and kernels must lay out struct optimizer_rule alike");

struct optimizer_args {
    uint32_t count_low, count_high; // elements of the parameter
    uint32_t parts;                 // threadgroups that leave sums of squares
    float    max_unorm;
    float    correction; // a direction is this times longer than the rule's: Adam's moments are averages from zero
    struct optimizer_rule rule;
};
static_assert(sizeof(struct optimizer_args) == 80, "host and kernels must lay out struct optimizer_args alike");

struct int8_quantize_args {
    uint32_t rows, columns;
    float    threshold;
};
static_assert(sizeof(struct int8_quantize_args) == 12, "host and kernels must lay out struct int8_quantize_args alike");

struct int8_matmul_args {
    uint32_t m, n, k;
};
static_assert(sizeof(struct int8_matmul_args) == 12, "host and kernels must lay out struct int8_matmul_args alike");

#endif
