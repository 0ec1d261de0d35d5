/* The CPU's forms of the operations: what each is given, and the table that one instruction set fills.
 *
 * A form computes; the operation in csrc/ops/ has checked its arguments, and holds the plain loop that serves where a
 * table has NULL. A form may read up to READ_SLACK bytes past the end of a matrix, or of its scales, never
 * write there. */
#ifndef BNB_CPU_FORMS_H
#define BNB_CPU_FORMS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weight.h"

#include "../../metal/args.h"

enum { READ_SLACK = 64, NESTED_BLOCK = 256 };

static inline size_t ceil_div(size_t n, size_t by) { return n / by + (n % by != 0); }

/* The factor that brings a block into [-1, 1]. Below 1e-38 the reciprocal would overflow: upstream clamps there. */
static inline float inverse_of(float absmax) { return __builtin_fabsf(absmax) > 1e-38f ? 1 / absmax : 1e38f; }

struct quantize_job {
    struct dense           x;
    const struct codebook *code;
    size_t                 block;
    uint8_t               *codes;
    float                 *absmax; /* a NaN or an infinity in a block must make its absmax one of the two */
    bool                   given;  /* absmax holds the scales already; quantised and back, one may be below zero */
};

/* Finds the scale of each block that the rule of metal/scales_rule.h does. */
struct scales_job {
    struct dense           x;
    const struct codebook *code;
    size_t                 block;
    const float           *importance; /* of the columns; NULL: all are alike */
    struct scales_args     args;
    float                 *absmax; /* a NaN or an infinity in a block must make its absmax one of the two */
};

struct dequantize_job {
    struct coded q;
    void        *y;
    bnb_dtype    dtype;
};

struct unary_job {
    struct dense x;
    void        *y;
    bnb_dtype    dtype; /* of y */
    uint32_t     kind;  /* UNARY_… */
    float        scale;
};

struct binary_job {
    struct dense a, b;
    void        *y;    /* in a's dtype */
    uint32_t     kind; /* BINARY_… */
    float        scale;
};

struct softmax_job {
    struct dense x;
    void        *y; /* in x's dtype */
};

/* y[m, n] = Σk x[m, k] · w[n, k] + bias[n], in x's dtype. */
struct matmul_job {
    struct dense  x;
    struct weight w;
    const float  *bias;      /* or NULL */
    bnb_precision precision; /* never DEFAULT */
    void         *y;
};

/* y[m, k] = Σn a[m, n] · w[n, k]. */
struct matmul_backward_job {
    struct dense  a;
    bool          transposed; /* a is stored as a[n, m] */
    struct weight w;
    void         *y;
    bnb_dtype     dtype;
};

/* y[i, :] = the row indices[i] of the table w. */
struct embedding_job {
    const int32_t *indices;
    size_t         count; /* of indices */
    struct weight  w;
    void          *y;
    bnb_dtype      dtype;
};

/* Runs of d elements; x += scale · residual first where there is one. */
struct rms_norm_job {
    void        *x;
    bnb_dtype    dtype;    /* of x and y */
    struct dense residual; /* data is NULL where there is none */
    float        scale;
    const float *weight; /* [d] */
    size_t       runs, d;
    float        offset, eps;
    void        *y;
};

/* y[m, columns] = f(x) · up, all of x's dtype. */
struct activate_job {
    struct dense   x, up;    /* up.data is NULL where there is none */
    size_t         up_first; /* the column of `up` that belongs to the first of x */
    size_t         columns;
    bnb_activation kind;
    void          *y;
};

/* Keys and values of one layer: rows of d elements, f32, f16 or i8 with a scale a row, at
 * (slot × heads + head) × capacity + position. */
struct stored_heads {
    const void  *data;
    const float *scales; /* of i8 */
};

struct attention_job {
    size_t              rows, heads, kv_heads, d;
    const int32_t      *at;      /* [rows, ROW_FIELDS] */
    const float        *queries; /* [rows, heads · d], normalised, rotated, and times the scale */
    struct stored_heads keys, values;
    bnb_dtype           store;
    size_t              capacity;
    const int32_t      *pages; /* [texts, page_count]: the slots that a text's keys lie in; NULL: a text is a slot */
    size_t              page_count;
    float               softcap;
    const float        *bias; /* [heads, 2 · span - 1], or NULL */
    size_t              span;
    bool                indexed; /* a row's own key is at its position, else at its number */
    void               *y;
    bnb_dtype           dtype;
};

/* Where a row's own key lies among those that it may see. */
static inline int32_t own_key(const struct attention_job *job, size_t row) {
    return job->indexed ? job->at[row * ROW_FIELDS + ROW_POSITION] : (int32_t)row;
}

/* The text whose keys a row sees. */
static inline size_t text_of(const struct attention_job *job, size_t row) {
    return job->indexed ? (size_t)job->at[row * ROW_FIELDS + ROW_SLOT] : 0;
}

/* Where the row of a text's key lies among those of its kind; `run` says for how many keys the rows lie together. */
static inline size_t key_place(const struct attention_job *job, size_t text, size_t kv_head, size_t key, size_t *run) {
    size_t slot = text, at = key;
    if (job->pages) {
        slot = (size_t)job->pages[text * job->page_count + key / job->capacity];
        at = key % job->capacity;
    }
    *run = job->capacity - at;
    return (slot * job->kv_heads + kv_head) * job->capacity + at;
}

/* What the bias adds to a key `distance` after the row. */
static inline float bias_at(const struct attention_job *job, size_t head, int64_t distance) {
    int64_t most = (int64_t)job->span - 1;
    distance = distance < -most ? -most : distance > most ? most : distance;
    return job->bias[head * (2 * job->span - 1) + (size_t)(distance + most)];
}

/* One state of an optimizer, updated in place: floats, or codes with a scale for each OPTIMIZER_BLOCK of them. */
struct optimizer_state {
    float                 *values; /* NULL where there are codes */
    uint8_t               *codes;
    float                 *absmax;
    const struct codebook *code;
};

struct squares {
    float p, direction;
};

/* One step of `count` elements, in place. Blocks are of OPTIMIZER_BLOCK elements, whatever the states are. */
struct optimizer_job {
    uint32_t               kind; /* RULE_… */
    struct optimizer_rule  rule;
    size_t                 count;
    void                  *p;
    const void            *g;
    bnb_dtype              p_dtype, g_dtype;
    bool                   coded; /* the states are codes, all of them */
    struct optimizer_state first, second, slow;
    float                  rate;    /* the rule's, times the trust ratio */
    struct squares        *squares; /* where not NULL: a block's sums of squares go here, and nothing is updated */
};

/* ── LLM.int8() (Dettmers et al. 2022): x ≈ code × stats / 127, where stats is the largest magnitude of x's row
 * ─────── */

/* Sets flags[c] to -1 where column c holds a magnitude of at least `threshold`; the others come in as 0. */
struct int8_outliers_job {
    struct dense     x;
    float            threshold;
    _Atomic int32_t *flags; /* several threads may set the same */
};

/* The one step that sets flags: of a row's columns [first, last). */
static inline void flag_outliers(const struct int8_outliers_job *job, size_t row, size_t first, size_t last) {
    for (size_t c = first; c < last; c++)
        if (__builtin_fabsf(element_of(&job->x, row * job->x.columns + c)) >= job->threshold)
            atomic_store_explicit(&job->flags[c], -1, memory_order_relaxed);
}

struct int8_quantize_job {
    struct dense x;
    float        threshold; /* magnitudes of at least this become zeros and don't count for stats; NaN: there is none */
    const int32_t *outliers; /* columns that become zeros */
    size_t         outlier_count;
    bool           finds; /* whether stats are to be found; else they are given */
    float         *stats; /* a NaN or an infinity in a row, unless the threshold takes it, shows in its stats */
    int8_t        *codes; /* NULL: only stats are wanted */
};

struct int8_dequantize_job {
    const int8_t *codes;
    size_t        rows, columns;
    const float  *stats; /* of the rows */
    void         *y;
    bnb_dtype     dtype;
};

/* What becomes of the sums of a row of products: int8_value, plus what outliers add, plus bias. */
struct int8_output {
    size_t       columns;
    const float *row_stats;    /* NULL: the int32 sums are the output, */
    const float *column_stats; /* and nothing here but `columns` and `y` is set */
    const float *bias;         /* or NULL */
    void        *y;
    bnb_dtype    dtype;
};

struct int8_mm_dequant_job {
    const int32_t     *sums;
    size_t             rows;
    struct int8_output to;
};

/* sums[m, n] = Σk a[m, k] · b[n, k], modulo 2^32. Columns of x that `outliers` lists are added in floating point, with
 * b's codes × stats / 127; a's codes are zeros there. */
struct int8_matmul_job {
    const int8_t      *a, *b;
    size_t             rows, columns; /* of a: m and k */
    struct dense       x;
    const int32_t     *outliers;
    size_t             outlier_count;
    struct int8_output to;
};

/* The factor from a row's elements to its codes, in upstream's two roundings. A row whose factor would overflow becomes
 * zeros, and so does one whose stats is no number. */
static inline float int8_factor(float stats) { return stats > 1e-36f ? 1 / stats * 127 : 0; }

/* Adding and taking off 1.5 · 2^23 rounds to the nearest integer, ties to even. NaN becomes 127. */
static inline int8_t int8_code(float x, float factor, float threshold) {
    float code = x * factor;
    if (__builtin_fabsf(x) >= threshold) return 0;
    code = code < 127 ? code : 127;
    code = code > -127 ? code : -127;
    return (int8_t)(code + 0x1.8p23f - 0x1.8p23f);
}

/* 1 / 127², as on upstream's GPUs; its CPU code has lost a digit, and is off by 2e-5 of it. */
static const float INT8_UNIT = 6.2000124e-5f;

static inline float int8_value(int32_t sum, float row_stats, float column_stats) {
    return (float)sum * (row_stats * column_stats) * INT8_UNIT;
}

/* Upstream's constant for 1 / 127. */
static inline float int8_weight(int8_t code, float stats) { return (float)code * stats * 7.874015718698502e-3f; }

struct cpu_forms {
    const char *isa;
    void (*quantize)(const void *quantize_job, size_t first_block, size_t last_block);
    void (*scales)(const void *scales_job, size_t first_block, size_t last_block);
    void (*dequantize)(const void *dequantize_job, size_t first_block, size_t last_block);
    void (*cast)(const void *unary_job, size_t first, size_t last); /* UNARY_COPY, between any dtypes */
    void (*unary)(const void *unary_job, size_t first, size_t last);
    void (*binary)(const void *binary_job, size_t first, size_t last);
    void (*softmax)(const void *softmax_job, size_t first, size_t last); /* rows */
    void (*optimizer)(const void *optimizer_job, size_t first_block, size_t last_block);
    void (*embedding)(const void *embedding_job, size_t first, size_t last);
    void (*rms_norm)(const void *rms_norm_job, size_t first_run, size_t last_run);
    void (*activate)(const void *activate_job, size_t first_row, size_t last_row);
    bnb_status (*attention)(
        const struct attention_job *job); /* heads of up to 512 columns; only scratch memory can fail it */
    bnb_status (*matmul)(const struct matmul_job *job); /* takes every case; only scratch memory can fail it */
    bnb_status (*matmul_backward)(const struct matmul_backward_job *job); /* the same */
    void (*int8_outliers)(const void *int8_outliers_job, size_t first_row, size_t last_row);
    void (*int8_quantize)(const void *int8_quantize_job, size_t first_row, size_t last_row);
    void (*int8_dequantize)(const void *int8_dequantize_job, size_t first_row, size_t last_row);
    void (*int8_mm_dequant)(const void *int8_mm_dequant_job, size_t first_row, size_t last_row);
    bnb_status (*int8_matmul)(const struct int8_matmul_job *job); /* only scratch memory can fail it */
};

/* The best table that this processor can run, or the one that BNB_ISA names where it can run that: `isa` tells which.
 * "plain" is the table of NULLs. */
const struct cpu_forms *cpu_forms(void);

/* The table of that name, or the best where it is NULL; NULL where there is none or this processor can't run it. */
const struct cpu_forms *cpu_forms_named(const char *isa);

/* What is wrong with BNB_ISA, as a sentence; NULL if nothing is. */
const char *bad_isa(void);

#endif
