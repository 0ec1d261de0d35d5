/* The part of forms_test.c that holds LLM.int8()'s forms to int8_code, int8_value and int8_weight of forms.h. */

static const float thresholds[] = {NAN, 1.5f};

/* ── Quantise and dequantise ────────────────────────────────────────────────────────────────────────────────────── */

static float int8_stats(const struct dense *x, size_t row, float threshold) {
    uint32_t largest = 0;
    for (size_t c = 0; c < x->columns; c++) {
        float    magnitude = fabsf(element_of(x, row * x->columns + c));
        uint32_t bits = magnitude >= threshold ? 0 : float_bits(magnitude);
        largest = bits > largest ? bits : largest;
    }
    return bits_float(largest);
}

static void check_int8_quantize_of_one(struct dense x, float threshold) {
    size_t           rows = x.rows, columns = x.columns;
    _Atomic int32_t *flags = guarded(columns * sizeof *flags, 0);
    for (size_t c = 0; c < columns; c++) flags[c] = 0;
    struct int8_outliers_job outliers = {x, threshold, flags};
    forms->int8_outliers(&outliers, 0, rows / 2);
    forms->int8_outliers(&outliers, rows / 2, rows);
    int32_t *list = malloc(columns * sizeof *list);
    size_t   count = 0;
    for (size_t c = 0; c < columns; c++) {
        bool any = false;
        for (size_t row = 0; row < rows; row++) any |= fabsf(element_of(&x, row * columns + c)) >= threshold;
        EXPECT(flags[c] == -any, "flag %zu of %zu is %d", c, columns, flags[c]);
        if (any) list[count++] = (int32_t)c;
    }

    struct int8_quantize_job job = {
        x, threshold, list, count, true, guarded(rows * sizeof(float), 0), guarded(rows * columns, 0)};
    forms->int8_quantize(&job, 0, rows / 2);
    forms->int8_quantize(&job, rows / 2, rows);
    for (size_t row = 0; row < rows; row++) {
        float stats = int8_stats(&x, row, threshold);
        EXPECT(isnan(stats) ? isnan(job.stats[row]) : job.stats[row] == stats, "stats[%zu] is %g, not %g", row,
               (double)job.stats[row], (double)stats);
        for (size_t c = 0; c < columns; c++) {
            size_t i = row * columns + c;
            int8_t right = flags[c] ? 0 : int8_code(element_of(&x, i), int8_factor(stats), threshold);
            EXPECT(job.codes[i] == right, "code [%zu, %zu] of %zu is %d, not %d (dtype %d)", row, c, columns,
                   job.codes[i], right, x.dtype);
        }
    }
    float                   *stats = guarded(rows * sizeof *stats, 0);
    struct int8_quantize_job only = {.x = x, .threshold = threshold, .finds = true, .stats = stats};
    forms->int8_quantize(&only, 0, rows);
    EXPECT(!memcmp(stats, job.stats, rows * sizeof *stats), "stats differ without codes");

    EACH (d, dtypes) {
        void *y = guarded(rows * columns * size_of(dtypes[d]), 0), *right = malloc(rows * columns * size_of(dtypes[d]));
        struct int8_dequantize_job back =
            {.codes = job.codes, .rows = rows, .columns = columns, .stats = stats, .y = y, .dtype = dtypes[d]};
        forms->int8_dequantize(&back, 0, rows);
        for (size_t i = 0; i < rows * columns; i++) {
            put_element(right, dtypes[d], i, int8_weight(job.codes[i], stats[i / columns]));
            EXPECT(same_element(right, y, dtypes[d], i), "value %zu of %zu differs (dtype %d)", i, columns, dtypes[d]);
        }
        free(right);
    }
    free(list);
}

static void check_int8_quantize(struct dense x, float threshold) {
    EACH_FORM check_int8_quantize_of_one(x, threshold);
    release_all();
}

static void test_int8_quantize(void) {
    static const size_t columns[] = {1, 2, 31, 32, 33, 64, 100, 1000};
    static const float  bad[] = {NAN, -NAN, INFINITY, -INFINITY},
                        sizes[] = {0, 1e-45f, 1e-40f, 9e-37f, 1.1e-36f, 1e-20f, 3e37f};
    EACH (d, dtypes)
        EACH (t, thresholds) {
            EACH (c, columns) check_int8_quantize(dense_random(dtypes[d], 3, columns[c]), thresholds[t]);
            EACH (b, bad)
                for (size_t at = 0; at < 75; at += 7) {
                    struct dense x = dense_random(dtypes[d], 2, 75);
                    put_element((void *)x.data, dtypes[d], 75 + at, bad[b]);
                    check_int8_quantize(x, thresholds[t]);
                }
        }
    EACH (s, sizes) {
        float values[70];
        for (int i = 0; i < 70; i++) values[i] = uniform() * sizes[s];
        check_int8_quantize(dense_from(values, BNB_F32, 2, 35), NAN);
    }
    float halves[129]; /* codes that lie between two integers, or as near as fp32 has them */
    for (int i = 0; i < 128; i++) halves[i] = (float)(i - 64) + 0.5f;
    halves[128] = 127;
    check_int8_quantize(dense_from(halves, BNB_F32, 1, 129), NAN);
}

/* ── Products ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static int8_t *codes_random(size_t count, int extreme) {
    static const int8_t extremes[][2] = {{-128, -128}, {-128, 127}, {127, 127}};
    int8_t             *codes = guarded(count, READ_SLACK);
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = random_bits() >> 32;
        codes[i] = extreme ? extremes[extreme - 1][bits % 2] : (int8_t)bits;
    }
    return codes;
}

static float *stats_random(size_t count) {
    float *stats = guarded(count * sizeof *stats, 0);
    for (size_t i = 0; i < count; i++) stats[i] = fabsf(normal());
    return stats;
}

static int32_t sum_at(const struct int8_matmul_job *job, size_t m, size_t n) {
    uint32_t sum = 0;
    for (size_t k = 0; k < job->columns; k++)
        sum += (uint32_t)(job->a[m * job->columns + k] * job->b[n * job->columns + k]);
    return (int32_t)sum;
}

static void check_int8_sums(struct int8_matmul_job job, const int32_t *right) {
    size_t outputs = job.to.columns;
    job.to = (struct int8_output){.columns = outputs,
                                  .y = guarded(job.rows * outputs * sizeof(int32_t), 0),
                                  .dtype = BNB_I32};
    job.outlier_count = 0;
    EXPECT(forms->int8_matmul(&job) == BNB_OK, "failed");
    for (size_t i = 0; i < job.rows * outputs; i++)
        EXPECT(((int32_t *)job.to.y)[i] == right[i], "sum %zu is %d, not %d (m %zu, n %zu, k %zu)", i,
               ((int32_t *)job.to.y)[i], right[i], job.rows, outputs, job.columns);
}

/* Without outliers every bit is right; with them the floats may add up in any order. */
static void check_int8_outputs(struct int8_matmul_job job, const int32_t *right) {
    size_t outputs = job.to.columns;
    EXPECT(forms->int8_matmul(&job) == BNB_OK, "failed");
    struct dense y = {job.to.y, job.to.dtype, job.rows, outputs};
    for (size_t i = 0; i < job.rows * outputs; i++) {
        size_t m = i / outputs, n = i % outputs;
        float  value = int8_value(right[i], job.to.row_stats[m], job.to.column_stats[n]);
        double added = 0, magnitudes = fabs((double)value);
        for (size_t o = 0; o < job.outlier_count; o++) {
            size_t k = (size_t)job.outliers[o];
            double product = (double)element_of(&job.x, m * job.columns + k) *
                             (double)int8_weight(job.b[n * job.columns + k], job.to.column_stats[n]);
            added += product, magnitudes += fabs(product);
        }
        float bias = job.to.bias ? job.to.bias[n] : 0, exact = (float)((double)value + added) + bias;
        float rounded;
        put_element(&rounded, job.to.dtype, 0, exact);
        struct dense want = {&rounded, job.to.dtype, 1, 1};
        double within = job.outlier_count
                            ? (magnitudes + fabs((double)bias)) * 0x1p-24 * 8 * sqrt((double)job.outlier_count + 1)
                            : 0;
        if (job.outlier_count && job.to.dtype != BNB_F32)
            within += fabs((double)exact) * (job.to.dtype == BNB_F16 ? 0x1p-10 : 0x1p-7) + 0x1p-24;
        double got = (double)element_of(&y, i);
        EXPECT(fabs(got - (double)element_of(&want, 0)) <= within, "y[%zu, %zu] is %g, not %g (k %zu, %zu outliers)", m,
               n, got, (double)exact, job.columns, job.outlier_count);
    }
}

/* All that a form makes of one product, with its sums. */
static void check_int8_matmul_of_one(struct int8_matmul_job job, const int32_t *right, size_t outlier_count) {
    size_t bytes = job.rows * job.to.columns * size_of(job.to.dtype);
    check_int8_sums(job, right);
    check_int8_outputs(job, right);
    job.outlier_count = outlier_count; /* a's codes count there too: the form needs not know that they are zeros */
    check_int8_outputs(job, right);

    struct int8_mm_dequant_job separate = {.sums = right, .rows = job.rows, .to = job.to};
    separate.to.y = guarded(bytes, 0);
    forms->int8_mm_dequant(&separate, 0, job.rows);
    job.outlier_count = 0;
    EXPECT(forms->int8_matmul(&job) == BNB_OK, "failed");
    EXPECT(!memcmp(separate.to.y, job.to.y, bytes), "sums that are there already give other values");
}

static void test_int8_matmul(void) {
    static const size_t shapes[][3] = {
        /* m, n, k */
        {1, 1, 1},     {1, 5, 64},   {1, 33, 127}, {2, 6, 192},  {3, 5, 33},
        {4, 13, 65},   {5, 9, 1},    {6, 7, 63},   {7, 70, 129}, {13, 66, 40},
        {25, 130, 97}, {515, 5, 17}, {2, 9, 4097}, {7, 5, 8200}, {1, 3, 131'071},
    };
    size_t turn = 0;
    EACH (s, shapes)
        for (int extreme = 0; extreme < 4; extreme++) {
            size_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2], count = extreme ? 0 : (k + 6) / 7;
            struct int8_matmul_job job = {codes_random(m * k, extreme), codes_random(n * k, extreme), m, k,
                                          .to = {.columns = n}};
            int32_t               *right = malloc(m * n * sizeof *right), *outliers = malloc(k * sizeof *outliers);
            for (size_t i = 0; i < m * n; i++) right[i] = sum_at(&job, i / n, i % n);
            bnb_dtype dtype = dtypes[turn++ % 3];
            for (size_t o = 0; o < count; o++) outliers[o] = (int32_t)(o * 7);
            job.x = dense_random(dtype, m, k);
            job.outliers = outliers;
            job.to = (struct int8_output){
                n, stats_random(m), stats_random(n), bias_of(n, turn), guarded(m * n * size_of(dtype), 0), dtype};
            EACH_FORM {
                untouched(job.to.y, m * n * size_of(dtype));
                check_int8_matmul_of_one(job, right, count);
            }
            free(right);
            free(outliers);
            release_all();
        }
}
