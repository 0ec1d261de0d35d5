/* The forms of what stands between a layer's products, held to their definitions: RMS norm, activations and attention.
 * Part of forms_test.c. */

/* ── RMS norm ───────────────────────────────────────────────────────────────────────────────────────────────────── */

/* One run: the residual as it was added and rounded, then y of that. */
static void expect_normed(const struct rms_norm_job *job, const struct dense *before, size_t run) {
    struct dense x = {job->x, job->dtype, 1, 0}, y = {job->y, job->dtype, 1, 0};
    double       squares = 0;
    for (size_t i = run * job->d; i < (run + 1) * job->d; i++) {
        double got = (double)element_of(&x, i), was = (double)element_of(before, i), added = 0;
        if (job->residual.data) added = (double)job->scale * (double)element_of(&job->residual, i);
        double within =
            job->residual.data ? (fabs(was) + fabs(added)) * 0x1p-23 + rounded_by(job->dtype, was + added) : 0;
        EXPECT(fabs(got - was - added) <= within, "x[%zu, %zu] is %g, not %g", run, i, got, was + added);
        squares += got * got;
    }
    double inverse = 1 / sqrt(squares / (double)job->d + (double)job->eps);
    for (size_t c = 0; c < job->d; c++) {
        size_t i = run * job->d + c;
        double want = (double)element_of(&x, i) * inverse * ((double)job->offset + (double)job->weight[c]);
        double got = (double)element_of(&y, i), within = fabs(want) * 0x1p-19 + rounded_by(job->dtype, want);
        EXPECT(fabs(got - want) <= within, "y[%zu, %zu] is %g, not %g (dtype %d)", run, c, got, want, job->dtype);
    }
}

static void check_rms_norm(struct dense before, struct dense residual, float offset) {
    size_t       bytes = before.rows * before.columns * size_of(before.dtype);
    struct dense weight = dense_random(BNB_F32, 1, before.columns);
    for (size_t c = 0; c < before.columns; c++) ((float *)weight.data)[c] += 1 - offset;
    struct rms_norm_job job = {.x = guarded(bytes, READ_SLACK),
                               .dtype = before.dtype,
                               .residual = residual,
                               .scale = -0.3f,
                               .weight = weight.data,
                               .runs = before.rows,
                               .d = before.columns,
                               .offset = offset,
                               .eps = 1e-5f,
                               .y = guarded(bytes, 0)};
    EACH_FORM {
        memcpy(job.x, before.data, bytes);
        untouched(job.y, bytes);
        forms->rms_norm(&job, 0, 1);
        forms->rms_norm(&job, 1, job.runs);
        for (size_t run = 0; run < job.runs; run++) expect_normed(&job, &before, run);
    }
    release_all();
}

static void test_rms_norm(void) {
    static const size_t columns[] = {1, 7, 16, 37, 1000};
    EACH (c, columns)
        EACH (d, dtypes) {
            check_rms_norm(dense_random(dtypes[d], 3, columns[c]), (struct dense){}, 0);
            EACH (r, dtypes)
                check_rms_norm(dense_random(dtypes[d], 3, columns[c]), dense_random(dtypes[r], 3, columns[c]), 1);
        }
}

/* ── Activations ────────────────────────────────────────────────────────────────────────────────────────────────── */

static double activation_of(bnb_activation kind, double x) {
    switch (kind) {
    case BNB_ACTIVATION_SILU: return x / (1 + exp(-x));
    case BNB_ACTIVATION_GELU: return x / 2 * erfc(-x * M_SQRT1_2);
    case BNB_ACTIVATION_TANH: return tanh(x);
    default: return x / (1 + exp(-2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    }
}

/* Columns [0, columns) of x, gated by those of `up` from up_first on. */
static void check_activate(struct dense x, struct dense up, size_t up_first, size_t columns, bnb_activation kind) {
    size_t              bytes = x.rows * columns * size_of(x.dtype);
    struct activate_job job = {x, up, up_first, columns, kind, guarded(bytes, 0)};
    EACH_FORM {
        untouched(job.y, bytes);
        forms->activate(&job, 0, 1);
        forms->activate(&job, 1, x.rows);
        struct dense y = {job.y, x.dtype, x.rows, columns};
        for (size_t i = 0; i < x.rows * columns; i++) {
            size_t row = i / columns, c = i % columns;
            double v = (double)element_of(&x, row * x.columns + c), got = (double)element_of(&y, i), gate = 1;
            if (up.data) gate = (double)element_of(&up, row * up.columns + up_first + c);
            double want = activation_of(kind, v) * gate;
            double within = fabs(v * gate) * 0x1p-21 + 0x1p-126 + rounded_by(x.dtype, want);
            EXPECT(fabs(got - want) <= within, "activation %d of %g times %g is %g, not %g (dtype %d)", kind, v, gate,
                   got, want, x.dtype);
        }
    }
    release_all();
}

static void test_activate(void) {
    static const size_t columns[] = {1, 7, 16, 37, 1000};
    for (bnb_activation kind = BNB_ACTIVATION_SILU; kind <= BNB_ACTIVATION_TANH; kind++)
        EACH (c, columns)
            EACH (d, dtypes) {
                size_t n = columns[c];
                check_activate(dense_random(dtypes[d], 3, n), (struct dense){}, 0, n, kind);
                check_activate(dense_random(dtypes[d], 3, n), dense_random(dtypes[d], 3, n), 0, n, kind);
                struct dense halves = dense_random(dtypes[d], 3, 2 * n);
                check_activate(halves, halves, n, n, kind);
            }
}

/* ── Attention ──────────────────────────────────────────────────────────────────────────────────────────────────── */

enum { TEXTS = 3 };

/* Keys or values of which each text has `length`; what lies past them is NaN, scales too. */
static struct stored_heads stored_random(const struct attention_job *job, size_t slots, size_t length) {
    size_t rows = slots * job->kv_heads * job->capacity, size = job->store == BNB_I8 ? 1 : size_of(job->store);
    void  *data = guarded(rows * job->d * size, 0);
    float *scales = guarded(rows * sizeof *scales, 0);
    for (size_t text = 0; text < TEXTS; text++)
        for (size_t head = 0; head < job->kv_heads; head++)
            for (size_t key = 0; key < length; key++) {
                size_t run, at = key_place(job, text, head, key, &run);
                scales[at] = (2 + uniform()) / 127;
                for (size_t i = at * job->d; i < (at + 1) * job->d; i++)
                    if (job->store == BNB_I8)
                        ((int8_t *)data)[i] = (int8_t)(127 * uniform());
                    else
                        put_element(data, job->store, i, normal());
            }
    return (struct stored_heads){data, scales};
}

static double stored_at(const struct attention_job *job, const struct stored_heads *heads, size_t at, size_t i) {
    if (job->store == BNB_I8) return (double)(((const int8_t *)heads->data)[at * job->d + i] * heads->scales[at]);
    struct dense x = {heads->data, job->store, 1, 0};
    return (double)element_of(&x, at * job->d + i);
}

/* What a row's head sees, in float64: the mean of values, weighted by the exponentials of scores. */
static void attended(const struct attention_job *job, size_t row, size_t head, double *mean) {
    const int32_t *at = job->at + row * ROW_FIELDS;
    const float   *query = job->queries + (row * job->heads + head) * job->d;
    size_t         kv_head = head / (job->heads / job->kv_heads), run;
    double         total = 0;
    memset(mean, 0, job->d * sizeof *mean);
    for (int32_t key = at[ROW_FIRST]; key < at[ROW_LAST]; key++) {
        size_t place = key_place(job, text_of(job, row), kv_head, (size_t)key, &run);
        double score = 0;
        for (size_t i = 0; i < job->d; i++) score += (double)query[i] * stored_at(job, &job->keys, place, i);
        if (job->softcap > 0) score = tanh(score / (double)job->softcap) * (double)job->softcap;
        if (job->bias) score += (double)bias_at(job, head, key - own_key(job, row));
        double weight = exp(score); /* scores are small */
        total += weight;
        for (size_t i = 0; i < job->d; i++) mean[i] += weight * stored_at(job, &job->values, place, i);
    }
    if (total > 0)
        for (size_t i = 0; i < job->d; i++) mean[i] /= total;
}

static void check_attention(struct attention_job job, size_t length, bool paged, bool biased) {
    size_t count = job.rows * job.heads * job.d, bytes = count * size_of(job.dtype), slots = TEXTS;
    job.capacity = paged ? 16 : length + 3;
    if (paged) { /* a text's pages lie apart, the last first */
        job.page_count = ceil_div(length, job.capacity), slots = TEXTS * job.page_count;
        int32_t *pages = guarded(slots * sizeof *pages, 0);
        for (size_t i = 0; i < slots; i++) pages[i] = (int32_t)(slots - 1 - i);
        job.pages = pages;
    }
    int32_t *at = guarded(job.rows * ROW_FIELDS * sizeof *at, 0);
    for (size_t row = 0; row < job.rows; row++) { /* one sees all, one nothing, the others what lies between */
        int32_t *fields = at + row * ROW_FIELDS, position = (int32_t)(random_bits() % length);
        fields[ROW_SLOT] = (int32_t)(row / 3 % TEXTS), fields[ROW_POSITION] = position;
        fields[ROW_FIRST] = row == 0 ? 0 : (int32_t)(random_bits() % (size_t)(position + 1));
        fields[ROW_LAST] = row == 0 ? (int32_t)length : row == 1 ? fields[ROW_FIRST] : position + 1;
    }
    float *queries = guarded(count * sizeof *queries, READ_SLACK), *bias = NULL;
    for (size_t i = 0; i < count; i++) queries[i] = normal() * 2 / sqrtf((float)job.d);
    if (biased) {
        job.span = 9, bias = guarded(job.heads * (2 * job.span - 1) * sizeof *bias, 0);
        for (size_t i = 0; i < job.heads * (2 * job.span - 1); i++) bias[i] = normal();
    }
    job.at = at, job.queries = queries, job.bias = bias, job.y = guarded(bytes, 0);
    job.keys = stored_random(&job, slots, length), job.values = stored_random(&job, slots, length);
    double *want = malloc(count * sizeof *want);
    for (size_t i = 0; i < job.rows * job.heads; i++) attended(&job, i / job.heads, i % job.heads, want + i * job.d);
    EACH_FORM {
        untouched(job.y, bytes);
        EXPECT(forms->attention(&job) == BNB_OK, "no memory");
        struct dense y = {job.y, job.dtype, 1, count};
        for (size_t i = 0; i < count; i++) {
            double got = (double)element_of(&y, i), within = 0x1p-17 + rounded_by(job.dtype, want[i]);
            EXPECT(fabs(got - want[i]) <= within, "y[%zu, %zu, %zu] is %g, not %g (d %zu, store %d, %zu keys)",
                   i / job.d / job.heads, i / job.d % job.heads, i % job.d, got, want[i], job.d, job.store, length);
        }
    }
    free(want);
    release_all();
}

/* Heads in columns that fill no vector, shared or not, more of them than a block has queries; keys that fill no tile,
 * and so many that they are dealt out where there are threads. */
static void test_attention(void) {
    static const bnb_dtype stores[] = {BNB_F32, BNB_F16, BNB_I8};
    static const struct {
        size_t rows, heads, kv_heads, d, length;
    } shapes[] = {{1, 1, 1, 1, 1},   {2, 2, 1, 37, 33}, {9, 6, 2, 64, 70},
                  {2, 35, 1, 8, 41}, {2, 1, 1, 512, 5}, {1, 2, 1, 40, 700}};
    EACH (shape, shapes)
        EACH (s, stores)
            for (uint32_t kind = 0; kind < 8; kind++) {
                struct attention_job job = {.rows = shapes[shape].rows,
                                            .heads = shapes[shape].heads,
                                            .kv_heads = shapes[shape].kv_heads,
                                            .d = shapes[shape].d,
                                            .store = stores[s],
                                            .softcap = kind & 1 ? 3 : 0,
                                            .indexed = true,
                                            .dtype = dtypes[(kind + s) % 3]};
                check_attention(job, shapes[shape].length, kind & 2, kind & 4);
            }
    EACH (d, dtypes) /* over the rows themselves, where a row's own key is at its number */
        check_attention((struct attention_job){.rows = 21, .heads = 4, .kv_heads = 2, .d = 24, .dtype = dtypes[d]}, 21,
                        false, true);
}
