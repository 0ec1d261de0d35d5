/* Attention over a cache of keys and values, or over the rows themselves: the checks and the plain loops. */
#include "attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launch.h"

/* ── The plain loops ────────────────────────────────────────────────────────────────────────────────────────────── */

/* What the rows' queries, keys and values go through before any row attends. */
struct prepare_job {
    const struct attention_job *to;
    struct dense                q, k, v;          /* strides are their columns; */
    size_t                      k_first, v_first; /* where keys and values begin in a row of theirs */
    const float                *rope;             /* [positions, rotated], or NULL */
    size_t                      rotated;
    const float                *q_norm, *k_norm;
    float                       scale, norm_offset, norm_eps;
    float                      *queries;
    void                       *keys, *values;
    float                      *key_scales, *value_scales;
};

/* One head's d elements as floats, normalised and rotated. `to` and the source may not overlap. */
static void prepare_head(const struct prepare_job *job, const struct dense *x, size_t at, const float *norm,
                         size_t position, float *to) {
    size_t d = job->to->d, half = job->rotated / 2;
    for (size_t i = 0; i < d; i++) to[i] = element_of(x, at + i);
    if (norm) {
        double squares = 0;
        for (size_t i = 0; i < d; i++) squares += (double)to[i] * to[i];
        double inverse = 1 / sqrt(squares / (double)d + job->norm_eps);
        for (size_t i = 0; i < d; i++) to[i] = (float)(to[i] * inverse * ((double)job->norm_offset + norm[i]));
    }
    if (!job->rope) return;
    const float *cosines = job->rope + position * job->rotated, *sines = cosines + half;
    for (size_t i = 0; i < half; i++) {
        float a = to[i], b = to[i + half];
        to[i] = a * cosines[i] - b * sines[i];
        to[i + half] = b * cosines[i] + a * sines[i];
    }
}

static void store_head(const float *from, size_t d, bnb_dtype store, void *rows, float *scales, size_t row) {
    if (store != BNB_I8) {
        for (size_t i = 0; i < d; i++) put_element(rows, store, row * d + i, from[i]);
        return;
    }
    float most = 0;
    for (size_t i = 0; i < d; i++) most = fmaxf(most, fabsf(from[i]));
    scales[row] = most / 127;
    for (size_t i = 0; i < d; i++) ((int8_t *)rows)[row * d + i] = int8_code(from[i], int8_factor(most), NAN);
}

enum { HEAD_MOST = 1024, FORM_COLUMNS = 512 /* that the CPU's fast form holds */ };

static void prepare_rows(const void *argument, size_t first, size_t last) {
    const struct prepare_job   *job = argument;
    const struct attention_job *to = job->to;
    size_t                      d = to->d;
    float                       local[HEAD_MOST];
    for (size_t row = first; row < last; row++) {
        size_t position = (size_t)to->at[row * ROW_FIELDS + ROW_POSITION];
        for (size_t head = 0; head < to->heads; head++) {
            float *query = job->queries + (row * to->heads + head) * d;
            prepare_head(job, &job->q, row * job->q.columns + head * d, job->q_norm, position, query);
            for (size_t i = 0; i < d; i++) query[i] *= job->scale;
        }
        for (size_t head = 0; head < to->kv_heads; head++) {
            size_t run, place = key_place(to, text_of(to, row), head, (size_t)own_key(to, row), &run);
            prepare_head(job, &job->k, row * job->k.columns + job->k_first + head * d, job->k_norm, position, local);
            store_head(local, d, to->store, job->keys, job->key_scales, place);
            for (size_t i = 0; i < d; i++)
                local[i] = element_of(&job->v, row * job->v.columns + job->v_first + head * d + i);
            store_head(local, d, to->store, job->values, job->value_scales, place);
        }
    }
}

static double stored_element(const struct attention_job *job, const struct stored_heads *from, size_t row, size_t i) {
    if (job->store == BNB_I8) return ((const int8_t *)from->data)[row * job->d + i] * (double)from->scales[row];
    struct dense x = {from->data, job->store, 1, 0};
    return element_of(&x, row * job->d + i);
}

static double score(const struct attention_job *job, size_t row, size_t head, size_t key, size_t place) {
    const float *query = job->queries + (row * job->heads + head) * job->d;
    double       sum = 0;
    for (size_t i = 0; i < job->d; i++) sum += query[i] * stored_element(job, &job->keys, place, i);
    if (job->softcap > 0) sum = job->softcap * tanh(sum / job->softcap);
    return job->bias ? sum + bias_at(job, head, (int64_t)key - own_key(job, row)) : sum;
}

/* Heads of rows, [first, last) of rows × heads. */
static void attend_plain(const void *argument, size_t first, size_t last) {
    const struct attention_job *job = argument;
    for (size_t unit = first; unit < last; unit++) {
        size_t row = unit / job->heads, head = unit % job->heads, d = job->d;
        size_t kv_head = head / (job->heads / job->kv_heads);
        size_t run, begin = (size_t)job->at[row * ROW_FIELDS + ROW_FIRST],
                    end = (size_t)job->at[row * ROW_FIELDS + ROW_LAST];
        double most = -INFINITY, total = 0, sums[HEAD_MOST] = {0};
        for (size_t key = begin; key < end; key++) {
            size_t place = key_place(job, text_of(job, row), kv_head, key, &run);
            double s = score(job, row, head, key, place), shrink = s > most ? exp(most - s) : 1;
            if (s > most) most = s;
            double weight = exp(s - most);
            total = total * shrink + weight;
            for (size_t i = 0; i < d; i++)
                sums[i] = sums[i] * shrink + weight * stored_element(job, &job->values, place, i);
        }
        for (size_t i = 0; i < d; i++)
            put_element(job->y, job->dtype, unit * d + i, total > 0 ? (float)(sums[i] / total) : 0);
    }
}

/* ── One request ────────────────────────────────────────────────────────────────────────────────────────────────── */

static void *after_bytes(void *from, size_t bytes) { return (char *)from + bytes; }

/* All that a run on the CPU is made of: plain data. */
struct host_job {
    struct attention_job attention;
    struct prepare_job   prepare;                /* its `to` is set where it runs */
    size_t               positions, texts, keys; /* what rows may name */
    size_t               slots;                  /* what pages may be */
};

static bnb_status check_rows(const struct host_job *job, const int32_t *at) {
    for (size_t row = 0; row < job->attention.rows; row++, at += ROW_FIELDS) {
        bool slot = !job->attention.indexed || (at[ROW_SLOT] >= 0 && (size_t)at[ROW_SLOT] < job->texts);
        bool position = at[ROW_POSITION] >= 0 && (size_t)at[ROW_POSITION] < job->positions;
        if (slot && position && at[ROW_FIRST] >= 0 && at[ROW_FIRST] <= at[ROW_LAST] &&
            (size_t)at[ROW_LAST] <= job->keys)
            continue;
        return fail(BNB_INVALID,
                    "attention: rows[%zu] is (slot %d, position %d, keys %d to %d), expected one of %zu slots, %zu "
                    "positions and %zu keys",
                    row, at[ROW_SLOT], at[ROW_POSITION], at[ROW_FIRST], at[ROW_LAST], job->texts, job->positions,
                    job->keys);
    }
    return BNB_OK;
}

static bnb_status check_pages(const struct host_job *job, const int32_t *pages) {
    for (size_t i = 0; i < job->texts * job->attention.page_count; i++)
        if (pages[i] < 0 || (size_t)pages[i] >= job->slots)
            return fail(BNB_INVALID, "attention: pages[%zu, %zu] is %d, expected one of the %zu slots of the cache",
                        i / job->attention.page_count, i % job->attention.page_count, pages[i], job->slots);
    return BNB_OK;
}

/* Rows and pages are copies, which no other thread can change between the check and the use. */
static bnb_status attend(const void *argument) {
    struct host_job job = *(const struct host_job *)argument;
    size_t          numbers = job.attention.rows * ROW_FIELDS;
    size_t          listed = job.attention.pages ? job.texts * job.attention.page_count : 0;
    int32_t        *at = malloc((numbers + listed) * sizeof(int32_t));
    if (!at)
        return fail(BNB_OUT_OF_MEMORY, "attention: no memory for %zu rows; free something and try again",
                    job.attention.rows);
    memcpy(at, job.attention.at, numbers * sizeof(int32_t));
    job.attention.at = at;
    if (listed) job.attention.pages = memcpy(at + numbers, job.attention.pages, listed * sizeof(int32_t));
    job.prepare.to = &job.attention;
    bnb_status status = check_rows(&job, at);
    if (status == BNB_OK && listed) status = check_pages(&job, job.attention.pages);
    if (status == BNB_OK) {
        const struct attention_job *attention = &job.attention;
        parallel_for(attention->rows, ceil_div(1 << 12, (attention->heads + 2 * attention->kv_heads) * attention->d),
                     prepare_rows, &job.prepare);
        if (cpu_forms()->attention && attention->d <= FORM_COLUMNS)
            status = cpu_forms()->attention(attention);
        else
            parallel_for(attention->rows * attention->heads, 1, attend_plain, attention);
    }
    free(at);
    return status;
}

/* Where keys and values lie: of a cache, or in memory of the call's own. */
static void place_heads(const struct attention_request *r, struct host *host, struct host_job *job) {
    size_t rows = r->slots * r->kv_heads * r->capacity, bytes = rows * r->d * dtype_size(r->store);
    void  *keys = r->cache ? host_updates(host, r->kept) : host_writes(host, r->kept);
    if (!keys) return; /* nothing is performed then */
    struct prepare_job *prepare = &job->prepare;
    prepare->keys = keys, prepare->values = after_bytes(keys, bytes);
    if (r->store == BNB_I8)
        prepare->key_scales = after_bytes(keys, 2 * bytes), prepare->value_scales = prepare->key_scales + rows;
    job->attention.keys = (struct stored_heads){prepare->keys, prepare->key_scales};
    job->attention.values = (struct stored_heads){prepare->values, prepare->value_scales};
}

static bnb_status attention_on_host(const void *request, struct host *host) {
    const struct attention_request *r = request;
    float                          *queries = host_writes(host, r->queries);
    struct host_job                 job = {
        .attention =
            {
                .rows = r->q->rows,
                .heads = r->heads,
                .kv_heads = r->kv_heads,
                .d = r->d,
                .at = host_reads(host, r->rows->buffer),
                .queries = queries,
                .store = r->store,
                .capacity = r->capacity,
                .softcap = (float)r->options.softcap,
                .indexed = r->cache != NULL,
                .y = host_writes(host, r->y->buffer),
                .dtype = r->y->dtype,
            },
        .prepare =
            {
                .q = dense_of(host, r->q),
                .k = dense_of(host, r->k),
                .v = dense_of(host, r->v),
                .k_first = r->joined ? r->heads * r->d : 0,
                .v_first = r->joined ? (r->heads + r->kv_heads) * r->d : 0,
                .scale = (float)r->options.scale,
                .norm_offset = (float)r->options.norm_offset,
                .norm_eps = (float)r->options.norm_eps,
                .queries = queries,
            },
        .slots = r->slots,
        .texts = r->texts,
        .keys = r->reach,
        .positions = r->rope ? r->rope->rows : (size_t)INT32_MAX,
    };
    if (r->cache && r->reach < job.positions) job.positions = r->reach;
    if (r->pages)
        job.attention.pages = host_reads(host, r->pages->buffer), job.attention.page_count = r->pages->columns;
    if (r->rope) job.prepare.rope = host_reads(host, r->rope->buffer), job.prepare.rotated = r->rope->columns;
    if (r->q_norm)
        job.prepare.q_norm = host_reads(host, r->q_norm->buffer),
        job.prepare.k_norm = host_reads(host, r->k_norm->buffer);
    if (r->bias)
        job.attention.bias = host_reads(host, r->bias->buffer), job.attention.span = (r->bias->columns + 1) / 2;
    place_heads(r, host, &job);
    host->work = 2 * (double)r->q->rows * (double)r->heads * (double)r->d * (double)r->reach; /* at most */
    return perform(host, attend, &job, sizeof job);
}

/* ── Running ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bnb_status attend_with_memory(struct attention_request *r) {
    bnb_device *device = r->q->buffer->device;
    r->store = r->cache ? r->cache->dtype : BNB_F32;
    r->slots = r->cache ? r->cache->slots : 1;
    r->capacity = r->cache ? r->cache->capacity : r->q->rows;
    r->texts = r->pages ? r->pages->rows : r->slots;
    r->reach = r->pages ? r->pages->columns * r->capacity : r->capacity;
    r->kept = r->cache ? buffer_share(r->cache->layer[r->layer])
                       : buffer_new(device, 2 * r->q->rows * r->kv_heads * r->d * sizeof(float));
    r->queries = r->kept ? buffer_new(device, r->q->rows * r->heads * r->d * sizeof(float)) : NULL;
    bnb_status status = r->queries
                            ? run(&(struct operation){"attention", device, attention_launch, attention_on_host, r})
                            : BNB_OUT_OF_MEMORY;
    buffer_release(r->queries); /* a driver keeps both until the work is done */
    buffer_release(r->kept);
    return status;
}

/* ── Checks ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool is_count(double value, const char *argument, size_t *count) {
    *count = value >= 1 && value <= 1 << 20 ? (size_t)value : 0;
    if (*count && (double)*count == value) return true;
    fail(BNB_INVALID, "attention: %s is %g, expected a whole number from 1 on", argument, value);
    return false;
}

static bool are_options(struct attention_request *r) {
    const bnb_attention_options *o = &r->options;
    if (!is_count(o->heads, "heads", &r->heads) || !is_count(o->kv_heads, "kv_heads", &r->kv_heads)) return false;
    if (r->heads % r->kv_heads)
        return fail(BNB_INVALID, "attention: heads is %zu and kv_heads %zu: the second must divide the first", r->heads,
                    r->kv_heads),
               false;
    if (!isfinite(o->scale) || !isfinite(o->softcap) || o->softcap < 0 || !isfinite(o->norm_offset) ||
        !isfinite(o->norm_eps) || o->norm_eps < 0)
        return fail(BNB_INVALID,
                    "attention: scale is %g, softcap %g, norm_offset %g and norm_eps %g, expected finite numbers, of "
                    "which softcap and norm_eps are at least 0",
                    o->scale, o->softcap, o->norm_offset, o->norm_eps),
               false;
    return true;
}

static bool is_part(const bnb_tensor *part, const struct attention_request *r, bnb_dtype dtype, size_t rows,
                    size_t columns, const char *argument) {
    if (!is_tensor(part, "attention", argument) ||
        !on_device(part->buffer, r->q->buffer->device, "attention", argument))
        return false;
    if (part->dtype == dtype && part->rows == rows && part->columns == columns) return true;
    fail(BNB_INVALID, "attention: %s is %s [%zu, %zu], expected %s [%zu, %zu]", argument, dtype_name(part->dtype),
         part->rows, part->columns, dtype_name(dtype), rows, columns);
    return false;
}

/* Finds d, and whether q holds keys and values too. */
static bool are_heads(struct attention_request *r) {
    r->joined = !r->k && !r->v;
    size_t parts = r->heads + (r->joined ? 2 * r->kv_heads : 0);
    if (r->q->columns % parts)
        return fail(BNB_INVALID, "attention: q has %zu columns, expected a multiple of its %zu heads", r->q->columns,
                    parts),
               false;
    r->d = r->q->columns / parts;
    if (r->d > HEAD_MOST)
        return fail(BNB_UNSUPPORTED, "attention: heads of %zu columns, expected at most %d", r->d, HEAD_MOST), false;
    if (r->joined)
        r->k = r->v = r->q;
    else if (!is_part(r->k, r, r->q->dtype, r->q->rows, r->kv_heads * r->d, "k") ||
             !is_part(r->v, r, r->q->dtype, r->q->rows, r->kv_heads * r->d, "v"))
        return false;
    return true;
}

static bool is_norm(const bnb_tensor *norm, const struct attention_request *r, const char *argument) {
    return is_tensor(norm, "attention", argument) && is_float(norm->dtype, "attention", argument) &&
           is_part(norm, r, norm->dtype, 1, r->d, argument);
}

static bool are_tables(const struct attention_request *r) {
    if (!is_part(r->rows, r, BNB_I32, r->q->rows, ROW_FIELDS, "rows")) return false;
    if (r->rope) {
        if (!is_tensor(r->rope, "attention", "rope") ||
            !is_part(r->rope, r, BNB_F32, r->rope->rows, r->rope->columns, "rope"))
            return false;
        if (r->rope->columns % 2 || r->rope->columns > r->d)
            return fail(BNB_INVALID, "attention: rope has %zu columns, expected an even number up to the %zu of a head",
                        r->rope->columns, r->d),
                   false;
    }
    if (!r->q_norm != !r->k_norm)
        return fail(BNB_INVALID, "attention: of q_norm and k_norm one is given: give both or neither"), false;
    if (r->q_norm && (!is_norm(r->q_norm, r, "q_norm") || !is_norm(r->k_norm, r, "k_norm"))) return false;
    if (!r->bias) return true;
    if (!is_tensor(r->bias, "attention", "bias") || !is_part(r->bias, r, BNB_F32, r->heads, r->bias->columns, "bias"))
        return false;
    return r->bias->columns % 2 ||
           (fail(BNB_INVALID,
                 "attention: bias has %zu columns, expected an odd number: so many keys before the row as after it",
                 r->bias->columns),
            false);
}

static bool are_pages(const struct attention_request *r) {
    if (!r->pages) return true;
    if (!r->cache) return fail(BNB_INVALID, "attention: pages are given, but no cache that they are of"), false;
    if (!is_tensor(r->pages, "attention", "pages") ||
        !is_part(r->pages, r, BNB_I32, r->pages->rows, r->pages->columns, "pages"))
        return false;
    if (!(r->cache->capacity & (r->cache->capacity - 1))) return true;
    return fail(BNB_INVALID, "attention: slots of %zu tokens can't be pages, expected a power of two",
                r->cache->capacity),
           false;
}

static bool is_cache_of(const struct attention_request *r) {
    const bnb_cache *cache = r->cache;
    if (!cache) return true;
    if (!is_cache(cache, "attention", "cache")) return false;
    if (cache->device != r->q->buffer->device)
        return fail(BNB_INVALID, "attention: cache is on %s, expected it on %s", cache->device->name,
                    r->q->buffer->device->name),
               false;
    if (cache->heads == r->kv_heads && cache->columns == r->d && r->layer < cache->layers) return true;
    fail(BNB_INVALID,
         "attention: layer %u of a cache with %zu layers of %zu heads and %zu columns, expected %zu heads and %zu "
         "columns",
         r->layer, cache->layers, cache->heads, cache->columns, r->kv_heads, r->d);
    return false;
}

bnb_tensor *bnb_attention(const bnb_attention_options *options, const bnb_tensor *q, const bnb_tensor *k,
                          const bnb_tensor *v, const bnb_tensor *rows, const bnb_tensor *rope, const bnb_tensor *q_norm,
                          const bnb_tensor *k_norm, const bnb_tensor *bias, bnb_cache *cache, uint32_t layer,
                          const bnb_tensor *pages) {
    if (!options) return refuse(BNB_INVALID, "attention: options is NULL");
    struct attention_request r = {*options, q,      k,    v,     rows,           rope,
                                  q_norm,   k_norm, bias, pages, .cache = cache, .layer = layer};
    if (!is_tensor(q, "attention", "q") || !is_float(q->dtype, "attention", "q") || !are_options(&r) ||
        !are_heads(&r) || !are_tables(&r) || !is_cache_of(&r) || !are_pages(&r))
        return NULL;
    bnb_device *device = q->buffer->device;
    bnb_tensor *first = NULL, *second = NULL;
    if (as_f32(&r.q_norm, &first) && as_f32(&r.k_norm, &second))
        r.y = tensor_new(device, q->dtype, q->rows, r.heads * r.d);
    count_operation(device);
    bnb_status status = r.y ? attend_with_memory(&r) : BNB_OUT_OF_MEMORY;
    bnb_tensor_free(first);
    bnb_tensor_free(second);
    if (status == BNB_OK) return r.y;
    bnb_tensor_free(r.y);
    return NULL;
}
