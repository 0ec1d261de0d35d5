/* Attention of a block of rows at a time: all its queries that share a head of keys go over them together, tile by
 * tile, with a running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022), so that keys and values are read
 * and widened once. Where there are fewer blocks than threads, each block's keys are split, and the parts merged. */
#include <stdlib.h>

#include "simd.h"

enum {
    ATTEND_QUERIES = 32,  /* of a block, over the heads that share their keys */
    ATTEND_KEYS = 32,     /* of a tile */
    ATTEND_COLUMNS = 512, /* the most of a head that the tiles hold */
    SPLIT_KEYS = 256,     /* the fewest keys that are worth a part of their own */
};

/* Rows of one text, and the heads that share one of keys: heads [head, head + count) of each row. */
struct attend_block {
    size_t row, rows, head, heads;
};

struct attend_run {
    const struct attention_job *job;
    const struct attend_block  *blocks;
    size_t                      parts;  /* of the keys of each block */
    size_t                      stride; /* a head's columns in whole vectors */
    float
        *partial; /* [blocks, parts, ATTEND_QUERIES, 2 + stride]: maximum, total, sums; NULL where there is one part */
};

/* What a block's queries have seen so far, not yet divided by the total. */
struct attend_state {
    float most[ATTEND_QUERIES], total[ATTEND_QUERIES];
    alignas(64) float sums[ATTEND_QUERIES * ATTEND_COLUMNS]; /* [queries, stride] */
};

/* Rows [from, from + count) as floats with whole vectors for columns; the padding is zeros. */
INLINE void widen_heads(const struct attention_job *job, const struct stored_heads *heads, size_t from, size_t count,
                        size_t stride, float *to) {
    size_t       d = job->d, whole = d / WIDTH * WIDTH;
    struct dense x = {heads->data, job->store, 1, 0};
    for (size_t key = 0; key < count; key++, to += stride) {
        size_t at = (from + key) * d, i = 0;
        if (job->store == BNB_I8) {
            const int8_t *codes = (const int8_t *)heads->data + at;
            float         scale = heads->scales[from + key];
            for (; i < whole; i += WIDTH) store(to, BNB_F32, i, load_signed_bytes(codes + i) * scale);
            for (; i < d; i++) to[i] = (float)codes[i] * scale;
        } else if (job->store == BNB_F16) {
            for (; i < whole; i += WIDTH) store(to, BNB_F32, i, load(heads->data, BNB_F16, at + i));
            for (; i < d; i++) to[i] = element_of(&x, at + i);
        } else {
            for (; i < whole; i += WIDTH) store(to, BNB_F32, i, load(heads->data, BNB_F32, at + i));
            for (; i < d; i++) to[i] = element_of(&x, at + i);
        }
        for (; i < stride; i++) to[i] = 0;
    }
}

/* The same of a text's keys [key, key + count), wherever they lie. */
static void widen_keys(const struct attention_job *job, const struct stored_heads *heads, size_t text, size_t kv_head,
                       size_t key, size_t count, size_t stride, float *to) {
    while (count > 0) {
        size_t run, from = key_place(job, text, kv_head, key, &run), together = least(run, count);
        widen_heads(job, heads, from, together, stride, to);
        key += together, count -= together, to += together * stride;
    }
}

/* scores[q, ATTEND_KEYS] of `rows` queries, 1 or 2, with the tile's keys, whose count is rounded up to fours. */
INLINE void score_queries(const float *queries, size_t stride, const float *keys, size_t count, size_t rows,
                          float *scores) {
    for (size_t key = 0; key < count; key += 4) {
        floats sums[2][4] = {0};
        for (size_t i = 0; i < stride; i += WIDTH)
            for (size_t k = 0; k < 4; k++) {
                floats column = load_floats(keys + (key + k) * stride + i);
                for (size_t q = 0; q < rows; q++)
                    sums[q][k] = fma(load_floats(queries + q * stride + i), column, sums[q][k]);
            }
        for (size_t q = 0; q < rows; q++) {
            floats4 four = sum4(sums[q][0], sums[q][1], sums[q][2], sums[q][3]);
            memcpy(scores + q * ATTEND_KEYS + key, &four, sizeof four);
        }
    }
}

/* sums[q, :] += Σ weights[q, key] · values[key, :], for 1 or 2 queries and `vectors` vectors of columns. */
INLINE void add_values(const float *weights, const float *values, size_t stride, size_t count, size_t rows,
                       size_t vectors, float *sums) {
    floats total[2][4];
    for (size_t q = 0; q < rows; q++)
        for (size_t v = 0; v < vectors; v++) total[q][v] = load_floats(sums + q * stride + v * WIDTH);
    for (size_t key = 0; key < count; key++)
        for (size_t v = 0; v < vectors; v++) {
            floats value = load_floats(values + key * stride + v * WIDTH);
            for (size_t q = 0; q < rows; q++)
                total[q][v] = fma((floats)weights[q * ATTEND_KEYS + key], value, total[q][v]);
        }
    for (size_t q = 0; q < rows; q++)
        for (size_t v = 0; v < vectors; v++) store(sums + q * stride, BNB_F32, v * WIDTH, total[q][v]);
}

INLINE void add_columns(const float *weights, const float *values, size_t stride, size_t count, size_t rows,
                        float *sums) {
    size_t i = 0;
    for (; i + 4 * WIDTH <= stride; i += 4 * WIDTH) add_values(weights, values + i, stride, count, rows, 4, sums + i);
    for (; i < stride; i += WIDTH) add_values(weights, values + i, stride, count, rows, 1, sums + i);
}

/* Scores of keys [key, key + count) become weights under a new maximum: caps, bias, what the row sees, and the rest.
 * False where the row sees none of them. */
static bool weigh(const struct attention_job *job, size_t row, size_t head, size_t key, size_t count, float *scores,
                  float *most, float *total, float *sums, size_t stride) {
    size_t first = (size_t)job->at[row * ROW_FIELDS + ROW_FIRST], last = (size_t)job->at[row * ROW_FIELDS + ROW_LAST];
    size_t begin = first > key ? least(count, first - key) : 0, end = last > key ? least(count, last - key) : 0;
    if (begin >= end) return false;
    if (job->softcap > 0)
        for (size_t i = 0; i < ATTEND_KEYS; i += WIDTH)
            store(scores, BNB_F32, i, hyperbolic_tangent(load_floats(scores + i) / job->softcap) * job->softcap);
    if (job->bias)
        for (size_t i = 0; i < count; i++) scores[i] += bias_at(job, head, (int64_t)(key + i) - own_key(job, row));
    for (size_t i = 0; i < begin; i++) scores[i] = -__builtin_inff();
    for (size_t i = end; i < ATTEND_KEYS; i++) scores[i] = -__builtin_inff();
    floats highest = load_floats(scores);
    for (size_t i = WIDTH; i < ATTEND_KEYS; i += WIDTH) {
        floats next = load_floats(scores + i);
        highest = next > highest ? next : highest;
    }
    float top = *most;
    for (int i = 0; i < WIDTH; i++) top = highest[i] > top ? highest[i] : top;
    floats added = {0};
    for (size_t i = 0; i < ATTEND_KEYS; i += WIDTH) {
        floats weight = exponential(load_floats(scores + i) - top);
        added += weight;
        store(scores, BNB_F32, i, weight);
    }
    if (top > *most) {
        float shrink = exponential((floats)(*most - top))[0];
        *total *= shrink;
        for (size_t i = 0; i < stride; i += WIDTH) store(sums, BNB_F32, i, load_floats(sums + i) * shrink);
        *most = top;
    }
    *total += sum(added);
    return true;
}

/* A query of a block: its row, and its head. */
INLINE size_t row_of(const struct attend_block *block, size_t query) { return block->row + query / block->heads; }
INLINE size_t head_of(const struct attend_block *block, size_t query) { return block->head + query % block->heads; }

/* The keys that any row of a block sees. */
static void keys_of_block(const struct attention_job *job, const struct attend_block *block, size_t *first,
                          size_t *last) {
    *first = SIZE_MAX, *last = 0;
    for (size_t row = block->row; row < block->row + block->rows; row++) {
        *first = least(*first, (size_t)job->at[row * ROW_FIELDS + ROW_FIRST]);
        *last = most(*last, (size_t)job->at[row * ROW_FIELDS + ROW_LAST]);
    }
}

/* A block's queries over its keys [first, last). */
static void attend_keys(const struct attend_run *run, const struct attend_block *block, size_t first, size_t last,
                        struct attend_state *state) {
    const struct attention_job *job = run->job;
    size_t                      stride = run->stride, count = block->rows * block->heads,
                                kv_head = block->head / (job->heads / job->kv_heads);
    size_t                      text = text_of(job, block->row);
    alignas(64) float           queries[ATTEND_QUERIES * ATTEND_COLUMNS], tile[ATTEND_KEYS * ATTEND_COLUMNS];
    alignas(64) float           scores[ATTEND_QUERIES * ATTEND_KEYS];
    bool                        sees[ATTEND_QUERIES];
    for (size_t q = 0; q < count; q++) {
        const float *query = job->queries + (row_of(block, q) * job->heads + head_of(block, q)) * job->d;
        memcpy(queries + q * stride, query, job->d * sizeof *query);
        memset(queries + q * stride + job->d, 0, (stride - job->d) * sizeof *query);
        memset(state->sums + q * stride, 0, stride * sizeof *query);
        state->most[q] = -__builtin_inff(), state->total[q] = 0;
    }
    for (size_t key = first; key < last; key += ATTEND_KEYS) {
        size_t keys = least(ATTEND_KEYS, last - key), fours = round_up(keys, 4), q = 0;
        widen_keys(job, &job->keys, text, kv_head, key, keys, stride, tile);
        memset(tile + keys * stride, 0, (fours - keys) * stride * sizeof *tile);
        for (; q + 2 <= count; q += 2)
            score_queries(queries + q * stride, stride, tile, fours, 2, scores + q * ATTEND_KEYS);
        if (q < count) score_queries(queries + q * stride, stride, tile, fours, 1, scores + q * ATTEND_KEYS);
        for (q = 0; q < count; q++) {
            float *weights = scores + q * ATTEND_KEYS;
            sees[q] = weigh(job, row_of(block, q), head_of(block, q), key, keys, weights, &state->most[q],
                            &state->total[q], state->sums + q * stride, stride);
            if (!sees[q]) memset(weights, 0, ATTEND_KEYS * sizeof *weights);
        }
        widen_keys(job, &job->values, text, kv_head, key, keys, stride, tile);
        for (q = 0; q + 2 <= count; q += 2)
            if (sees[q] || sees[q + 1])
                add_columns(scores + q * ATTEND_KEYS, tile, stride, keys, 2, state->sums + q * stride);
        if (q < count && sees[q])
            add_columns(scores + q * ATTEND_KEYS, tile, stride, keys, 1, state->sums + q * stride);
    }
}

/* Where a query's sums go, divided by their total; a row that saw nothing is zeros. */
static void put_attended(const struct attention_job *job, size_t row, size_t head, const float *sums, float total) {
    float local[ATTEND_COLUMNS], inverse = total != 0 ? 1 / total : 0;
    for (size_t i = 0; i < job->d; i++) local[i] = sums[i] * inverse;
    narrow_run(local, job->d, job->y, job->dtype, (row * job->heads + head) * job->d);
}

INLINE float *partial_of(const struct attend_run *run, size_t block, size_t part, size_t query) {
    return run->partial + ((block * run->parts + part) * ATTEND_QUERIES + query) * (run->stride + 2);
}

/* Parts of blocks, [first, last) of blocks × parts. */
static void attend_blocks(const void *attend_run, size_t first, size_t last) {
    const struct attend_run *run = attend_run;
    struct attend_state      state;
    for (size_t unit = first; unit < last; unit++) {
        const struct attend_block *block = run->blocks + unit / run->parts;
        size_t                     from, to, part = unit % run->parts;
        keys_of_block(run->job, block, &from, &to);
        size_t share = round_up((to > from ? to - from : 0) / run->parts + 1, ATTEND_KEYS);
        size_t begin = least(to, from + part * share), end = least(to, begin + share);
        attend_keys(run, block, begin, end, &state);
        for (size_t q = 0; q < block->rows * block->heads; q++) {
            const float *sums = state.sums + q * run->stride;
            if (!run->partial) {
                put_attended(run->job, row_of(block, q), head_of(block, q), sums, state.total[q]);
                continue;
            }
            float *partial = partial_of(run, unit / run->parts, part, q);
            partial[0] = state.most[q], partial[1] = state.total[q];
            memcpy(partial + 2, sums, run->stride * sizeof *sums);
        }
    }
}

/* The parts of blocks [first, last) become one. */
static void merge_blocks(const void *attend_run, size_t first, size_t last) {
    const struct attend_run *run = attend_run;
    for (size_t b = first; b < last; b++)
        for (size_t q = 0; q < run->blocks[b].rows * run->blocks[b].heads; q++) {
            float sums[ATTEND_COLUMNS] = {0}, most = -__builtin_inff(), total = 0;
            for (size_t part = 0; part < run->parts; part++) {
                float here = *partial_of(run, b, part, q);
                most = here > most ? here : most;
            }
            for (size_t part = 0; part < run->parts; part++) {
                const float *partial = partial_of(run, b, part, q);
                if (partial[0] == -__builtin_inff()) continue;
                float weight = exponential((floats)(partial[0] - most))[0];
                total += weight * partial[1];
                for (size_t i = 0; i < run->job->d; i++) sums[i] += weight * partial[2 + i];
            }
            put_attended(run->job, row_of(run->blocks + b, q), head_of(run->blocks + b, q), sums, total);
        }
}

/* Blocks of rows that follow each other in one text and of heads that share one of keys; gives their count. */
static size_t blocks_of(const struct attention_job *job, struct attend_block *blocks) {
    size_t group = job->heads / job->kv_heads, heads = least(group, ATTEND_QUERIES), rows = ATTEND_QUERIES / heads,
           count = 0;
    for (size_t row = 0, end; row < job->rows; row = end) {
        for (end = row + 1; end < job->rows && end - row < rows && text_of(job, end) == text_of(job, row);) end++;
        for (size_t kv_head = 0; kv_head < job->kv_heads; kv_head++)
            for (size_t head = 0; head < group; head += heads, count++)
                if (blocks)
                    blocks[count] =
                        (struct attend_block){row, end - row, kv_head * group + head, least(heads, group - head)};
    }
    return count;
}

/* How many parts each block's keys are worth, where threads would be idle. */
static size_t parts_of(const struct attention_job *job, const struct attend_block *blocks, size_t count) {
    size_t wanted = (thread_count() + count - 1) / count, longest = 0;
    for (size_t b = 0; b < count; b++) {
        size_t first, last;
        keys_of_block(job, blocks + b, &first, &last);
        longest = most(longest, last > first ? last - first : 0);
    }
    return most(1, least(wanted, longest / SPLIT_KEYS));
}

static bnb_status attention(const struct attention_job *job) {
    struct attend_run    run = {.job = job, .stride = round_up(job->d, WIDTH)};
    size_t               count = blocks_of(job, NULL), bytes = count * sizeof(struct attend_block);
    struct attend_block *blocks = malloc(bytes);
    if (!blocks) return no_working_space("attention", bytes);
    blocks_of(job, blocks);
    run.blocks = blocks, run.parts = parts_of(job, blocks, count);
    if (run.parts > 1) {
        bytes = count * run.parts * ATTEND_QUERIES * (run.stride + 2) * sizeof(float);
        if (!(run.partial = malloc(bytes))) {
            free(blocks);
            return no_working_space("attention", bytes);
        }
    }
    parallel_for(count * run.parts, 1, attend_blocks, &run);
    if (run.parts > 1) parallel_for(count, 1, merge_blocks, &run);
    free(run.partial);
    free(blocks);
    return BNB_OK;
}
