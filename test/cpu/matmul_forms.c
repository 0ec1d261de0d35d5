/* The forms of products, held to float64 within what their precision allows: part of forms_test.c. */

static double offset_at(const struct matmul_job *job, size_t i) {
    return job->w.coded.offsets ? (double)offset_of(&job->w.coded, i / job->w.coded.block) : 0;
}

static double weight_at(const struct matmul_job *job, size_t i) {
    if (!job->w.coded.code) return (double)element_of(&job->w.dense, i);
    return (double)job->w.coded.code->values[code_at(&job->w.coded, i)] *
               (double)scale_of(&job->w.coded, i / job->w.coded.block) +
           offset_at(job, i);
}

/* The fewest steps from zero to the largest code, and to the largest magnitude of 64 elements of x, that a precision
 * may round to. Where bytes are multiplied two by two in an int16, MEDIUM has but 64 for x: its sums are
 * bounded too. */
static void steps_of(const struct matmul_job *job, double *code_steps, double *x_steps) {
    bool medium = job->precision == BNB_PRECISION_MEDIUM, few = job->x.rows <= 6;
    *code_steps = 0.8 * (medium ? 127 : few ? 16383 : 4095);
    *x_steps = medium ? 64 : few ? 16383 : 8191;
}

/* What y[m, n] should be, and how far off it may be: by the rounding of fp32 sums or, for HIGH and MEDIUM, by the half
 * steps that x and the codebook are rounded by. */
static void product_of(const struct matmul_job *job, size_t m, size_t n, double *right, double *within) {
    double code_steps, x_steps;
    steps_of(job, &code_steps, &x_steps);
    size_t columns = job->x.columns;
    double total = 0, magnitudes = 0, steps = 0, largest_code = 0;
    for (size_t c = 0; job->w.coded.code && c < job->w.coded.code->size; c++)
        largest_code = fmax(largest_code, fabs((double)job->w.coded.code->values[c]));
    for (size_t begin = 0; begin < columns; begin += 64) {
        double largest = 0;
        size_t end = begin + 64 < columns ? begin + 64 : columns;
        for (size_t k = begin; k < end; k++)
            largest = fmax(largest, fabs((double)element_of(&job->x, m * columns + k)));
        for (size_t k = begin; k < end; k++) {
            double x = (double)element_of(&job->x, m * columns + k), w = weight_at(job, n * columns + k);
            /* An offset and what it is added to are rounded by themselves, and may leave little together. */
            double offset = offset_at(job, n * columns + k);
            total += x * w, magnitudes += fabs(x) * (fabs(w - offset) + fabs(offset));
            if (!job->w.coded.code) continue;
            double scale = fabs((double)scale_of(&job->w.coded, (n * columns + k) / job->w.coded.block));
            double step_x = largest * 0.5001 / x_steps, step_w = largest_code * scale * 0.5001 / code_steps;
            steps += fabs(w) * step_x + fabs(x) * step_w + step_x * step_w;
        }
    }
    if (job->bias) total += (double)job->bias[n], magnitudes += fabs((double)job->bias[n]);
    *within = magnitudes * 0x1p-24 * 8 * sqrt((double)columns + 1) + 1e-44;
    if (job->precision != BNB_PRECISION_HIGHEST) *within += steps;
    if (job->x.dtype == BNB_F16) *within += fabs(total) * 0x1p-11 + 0x1p-25;
    if (job->x.dtype == BNB_BF16) *within += fabs(total) * 0x1p-8;
    *right = total;
}

/* Holds a product to the bounds of a precision, which may be better than what it asks for. */
static void check_matmul_within(struct matmul_job job, bnb_precision precision) {
    size_t rows = job.x.rows, columns = weight_rows(&job.w), bytes = rows * columns * size_of(job.x.dtype);
    size_t step =
        rows * columns * job.x.columns / 20'000 + 1; /* some of the results: other jobs of this shape see others */
    size_t            first = random_bits() % step;
    struct matmul_job judged = job;
    struct bound {
        double right, within;
    } *bounds = malloc((rows * columns / step + 1) * sizeof *bounds);
    judged.precision = precision;
    for (size_t i = first, b = 0; i < rows * columns; i += step, b++)
        product_of(&judged, i / columns, i % columns, &bounds[b].right, &bounds[b].within);
    job.y = guarded(bytes, 0);
    EACH_FORM {
        untouched(job.y, bytes);
        EXPECT(forms->matmul(&job) == BNB_OK, "failed");
        struct dense y = {job.y, job.x.dtype, rows, columns};
        for (size_t i = first, b = 0; i < rows * columns; i += step, b++) {
            double got = (double)element_of(&y, i);
            EXPECT(fabs(got - bounds[b].right) <= bounds[b].within,
                   "y[%zu, %zu] is %g, not %g within %g (k %zu, dtype %d, bits %u, block %zu, precision %d)",
                   i / columns, i % columns, got, bounds[b].right, bounds[b].within, job.x.columns, job.x.dtype,
                   job.w.coded.code ? job.w.coded.code->bits : 0, job.w.coded.block, precision);
        }
    }
    free(bounds);
    release_all();
}

static void check_matmul(struct matmul_job job) { check_matmul_within(job, job.precision); }

static const float *bias_of(size_t columns, size_t turn) {
    if (turn % 2) return NULL;
    float *bias = guarded(columns * sizeof *bias, 0);
    for (size_t n = 0; n < columns; n++) bias[n] = normal();
    return bias;
}

static void test_matmul(void) {
    static const size_t shapes[][3] = {
        /* m, n, k */
        {1, 1, 1},    {1, 5, 64},   {1, 33, 128},  {1, 7, 4096}, {1, 3, 4160},   {1, 9, 8256},  {2, 6, 192},
        {3, 5, 320},  {4, 13, 576}, {1, 6, 63},    {1, 6, 33},   {2, 5, 96},     {3, 4, 1},     {4, 4, 513},
        {5, 9, 64},   {5, 11, 129}, {7, 10, 1100}, {12, 3, 40},  {13, 70, 65},   {25, 66, 520}, {70, 130, 97},
        {515, 5, 17}, {6, 5, 128},  {7, 5, 64},    {8, 33, 192}, {13, 19, 1152}, {25, 66, 576}, {513, 3, 64},
    };
    static const size_t blocks4[] = {64, 32, 128, 4096}, blocks8[] = {64, 1, 7, 256};
    size_t              turn = 0;
    EACH (s, shapes)
        EACH (d, dtypes) {
            size_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
            EACH (w, dtypes) {
                struct matmul_job job = {.x = dense_random(dtypes[d], m, k),
                                         .w.dense = dense_random(dtypes[w], n, k),
                                         .bias = bias_of(n, turn++),
                                         .precision = BNB_PRECISION_HIGHEST};
                check_matmul(job);
            }
            EACH (b, books)
                EACH (p, blocks4)
                    for (bnb_precision precision = BNB_PRECISION_HIGHEST; precision <= BNB_PRECISION_MEDIUM;
                         precision++) {
                        size_t            block = books[b]->bits == 8 ? blocks8[p] : blocks4[p];
                        struct matmul_job job = {.x = dense_random(dtypes[d], m, k),
                                                 .precision = precision,
                                                 .bias = bias_of(n, turn++)};
                        job.w.coded = coded_random(books[b], n, k, block, layout_of(turn));
                        check_matmul(job);
                    }
        }
}

static void test_matmul_of_integers(void) {
    static const size_t shapes[][3] = {
        /* m, n, k */
        {1, 33, 128}, {1, 7, 4096}, {1, 3, 4176},   {2, 6, 16},    {3, 5, 320},  {4, 13, 592},
        {7, 5, 64},   {8, 33, 208}, {13, 19, 1152}, {25, 66, 560}, {40, 70, 80}, {515, 5, 1040},
    };
    static const size_t blocks[] = {16, 32, 64, 256}, odd_blocks[] = {48, 32, 80, 4096}; /* of 8 bits */
    size_t              turn = 0;
    EACH (s, shapes)
        EACH (c, integers)
            EACH (b, blocks)
                for (bnb_precision precision = BNB_PRECISION_HIGHEST; precision <= BNB_PRECISION_MEDIUM;
                     precision += BNB_PRECISION_MEDIUM - BNB_PRECISION_HIGHEST) {
                    size_t           m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
                    size_t           block = integers[c]->bits == 8 ? odd_blocks[b] : blocks[b];
                    struct codebook *code = turn % 7 == 6 ? books[STEPPED] : integers[c];
                    if (turn % 5 == 4 && c < 5) code = books[OTHERS + c]; /* as many bits, which are looked up */
                    struct matmul_job job = {.x = dense_random(dtypes[turn % 3], m, k), .precision = precision};
                    job.bias = bias_of(n, turn++);
                    job.w.coded = coded_random(code, n, k, block, layout_of(2 * turn));
                    check_matmul(job);
                }
}

/* Where x is as many whole steps, nothing is rounded: what is taken off for codes to be unsigned must be right to the
 * last one, however small it is beside what rounding may cost. */
static void test_matmul_of_whole_steps(void) {
    for (size_t c = 0; c < 7; c++)
        for (size_t m = 1; m <= 17; m += 8) {
            struct matmul_job job = {.x = dense_random(BNB_F32, m, 96), .precision = BNB_PRECISION_MEDIUM};
            for (size_t i = 0; i < m * 96; i++) ((float *)job.x.data)[i] = i % 2 ? 0 : 3; /* so that no pair is large */
            job.w.coded = coded_random(c < 6 ? integers[c] : books[STEPPED], 5, 96, 32, c % 2 ? AFFINE_F16 : PLAIN);
            check_matmul_within(job, BNB_PRECISION_HIGHEST);
        }
}

/* The largest sums that there are, of all 64 products of a run and of each two, must not leave an int32 or int16. */
static void test_matmul_at_the_bound(void) {
    for (uint32_t turn = 0; turn < 16 * 3 * 2; turn++)
        for (size_t m = 1; m <= 9; m++) {
            uint32_t          code = turn % 16, pattern = turn / 16 % 3;
            struct matmul_job job = {.x = dense_random(BNB_F32, m, 256),
                                     .precision = turn < 48 ? BNB_PRECISION_HIGH : BNB_PRECISION_MEDIUM};
            for (size_t i = 0; i < m * 256; i++) {
                float large = (code + i / 64) % 2 ? 3 : -3, others[] = {large, 0, large * uniform()};
                ((float *)job.x.data)[i] = i % 4 < 2 ? large : others[pattern]; /* pairs are two apart */
            }
            job.w.coded = coded_random(books[code % 4], 5, 256, 64, PLAIN);
            memset((uint8_t *)job.w.coded.codes, (int)(code << 4 | code), 5 * 256 / 2);
            check_matmul(job);
        }
}

/* Where sums come from a matrix instruction, every bit of a product is that of the forms that have dot products: the
 * sums of runs are the same integers, added up in the same order. */
static void test_matmul_is_that_of_dot_products(const struct cpu_forms *matrices, const struct cpu_forms *dots) {
    forms = matrices;
    for (size_t m = 9; m <= 40; m++) {
        const struct codebook *code = m % 3 ? books[NF4] : integers[m / 3 % 6];
        size_t                 n = 3 + m % 14, k = 64 * (1 + m % 20);
        struct matmul_job      job = {.x = dense_random(dtypes[m % 3], m, k), .precision = BNB_PRECISION_MEDIUM};
        job.w.coded = coded_random(code, n, k, m % 3 ? 64 : 16u << m % 4, m % 2 ? NESTED : PLAIN);
        job.y = guarded(m * n * size_of(job.x.dtype), 0);
        EXPECT(forms->matmul(&job) == BNB_OK, "failed");
        const void *y = job.y;
        job.y = guarded(m * n * size_of(job.x.dtype), 0);
        EXPECT(dots->matmul(&job) == BNB_OK, "failed");
        EXPECT(!memcmp(y, job.y, m * n * size_of(job.x.dtype)), "not as %s (m %zu, n %zu, k %zu)", dots->isa, m, n, k);
        release_all();
    }
}

/* What integers can't stand for takes the exact kernel: a NaN or an infinity shows, a tiny number counts. */
static void test_matmul_of_odd_numbers(void) {
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    EACH (v, odd)
        for (uint32_t turn = 0; turn < 4; turn++) {
            size_t            m = turn % 2 ? 2 : 9, at = (m - 1) * 128 + 77;
            struct matmul_job job = {.x = dense_random(BNB_F32, m, 128),
                                     .precision = turn < 2 ? BNB_PRECISION_HIGH : BNB_PRECISION_MEDIUM,
                                     .y = guarded(m * 3 * sizeof(float), 0)};
            ((float *)job.x.data)[at] = odd[v];
            job.w.coded = coded_random(books[NF4], 3, 128, 64, PLAIN);
            EACH_FORM {
                EXPECT(forms->matmul(&job) == BNB_OK, "failed");
                const float *last = (const float *)job.y + (m - 1) * 3;
                for (size_t n = 0; n < 3; n++) {
                    float right = (float)weight_at(&job, n * 128 + 77) * odd[v], got = last[n];
                    EXPECT(isfinite(((float *)job.y)[n]), "y[0, %zu] took something from another row", n);
                    EXPECT(isnan(right) ? isnan(got) : got == right, "y[%zu, %zu] is %g, not %g", m - 1, n, (double)got,
                           (double)right);
                }
            }
            release_all();
        }
    for (uint32_t turn = 0; turn < 4; turn++) {
        struct matmul_job job = {.x = dense_random(BNB_F32, turn % 2 ? 1 : 9, 128)};
        for (size_t i = 0; i < job.x.rows * 128; i++) ((float *)job.x.data)[i] *= 1e-36f;
        job.w.coded = coded_random(books[NF4], 3, 128, 64, PLAIN);
        job.precision = turn < 2 ? BNB_PRECISION_HIGH : BNB_PRECISION_MEDIUM;
        check_matmul_within(job, BNB_PRECISION_HIGHEST);
    }
}
