/* The forms of the products' gradients and of embeddings, held to their definitions: part of forms_test.c. */

struct gradient {
    double right, within;
};

/* What y[i] should be, and how far off it may be. */
static struct gradient gradient_of(const struct matmul_backward_job *job, size_t depth, size_t columns, size_t i) {
    const struct dense *a = &job->a;
    double              total = 0, magnitudes = 0;
    for (size_t n = 0; n < depth; n++) {
        size_t at = job->transposed ? n * a->columns + i / columns : i / columns * depth + n;
        double product = (double)element_of(a, at) * (double)weight_of(&job->w, n * columns + i % columns);
        total += product, magnitudes += fabs(product);
    }
    double within = magnitudes * 0x1p-24 * 8 * sqrt((double)depth + 1) + 1e-44;
    if (job->dtype == BNB_F16) within += fabs(total) * 0x1p-11 + 0x1p-25;
    if (job->dtype == BNB_BF16) within += fabs(total) * 0x1p-8;
    return (struct gradient){total, within};
}

static void check_matmul_backward(struct matmul_backward_job job) {
    const struct dense *a = &job.a;
    size_t              rows = job.transposed ? a->columns : a->rows, depth = job.transposed ? a->rows : a->columns;
    size_t              columns = weight_columns(&job.w), bytes = rows * columns * size_of(job.dtype);
    size_t              step = rows * columns * depth > 1'000'000 ? 7 : 1;
    struct gradient    *gradients = malloc((rows * columns / step + 1) * sizeof *gradients);
    for (size_t i = 0; i < rows * columns; i += step) gradients[i / step] = gradient_of(&job, depth, columns, i);
    job.y = guarded(bytes, 0);
    EACH_FORM {
        untouched(job.y, bytes);
        EXPECT(forms->matmul_backward(&job) == BNB_OK, "failed");
        struct dense y = {job.y, job.dtype, rows, columns};
        for (size_t i = 0; i < rows * columns; i += step) {
            struct gradient to = gradients[i / step];
            double          got = (double)element_of(&y, i);
            EXPECT(fabs(got - to.right) <= to.within,
                   "y[%zu, %zu] is %g, not %g within %g (depth %zu, dtypes %d and %d)", i / columns, i % columns, got,
                   to.right, to.within, depth, a->dtype, job.dtype);
        }
    }
    free(gradients);
    release_all();
}

static void test_matmul_backward(void) {
    static const size_t shapes[][3] = {
        /* rows, depth, columns */
        {1, 1, 1},   {1, 5, 64},  {2, 64, 33},  {3, 65, 7},   {4, 130, 256},  {5, 3, 257},
        {6, 66, 40}, {7, 9, 300}, {13, 70, 65}, {193, 5, 17}, {200, 66, 270},
    };
    static const size_t blocks4[] = {64, 32, 128, 4096}, blocks8[] = {64, 1, 7, 256};
    size_t              turn = 0;
    EACH (s, shapes)
        EACH (d, dtypes) {
            size_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
            EACH (w, dtypes)
                for (int transposed = 0; transposed < 2; transposed++)
                    check_matmul_backward((struct matmul_backward_job){
                        .a = dense_random(dtypes[d], transposed ? n : m, transposed ? m : n),
                        .transposed = transposed,
                        .w.dense = dense_random(dtypes[w], n, k),
                        .dtype = dtypes[turn++ % 3],
                    });
            EACH (b, books)
                EACH (p, blocks4) {
                    size_t      block = books[b]->bits == 8 ? blocks8[p] : blocks4[p];
                    enum layout layout = layout_of(turn++);
                    check_matmul_backward((struct matmul_backward_job){
                        .a = dense_random(dtypes[d], m, n),
                        .w.coded = coded_random(books[b], n, k, block, layout),
                        .dtype = dtypes[turn % 3],
                    });
                }
        }
}

static void check_embedding(struct embedding_job job, size_t rows, size_t columns) {
    size_t   count = 7;
    int32_t *indices = guarded(count * sizeof *indices, 0);
    for (size_t i = 0; i < count; i++) indices[i] = (int32_t)((random_bits() >> 32) % rows);
    indices[3] = (int32_t)rows - 1; /* the row that ends at the edge */
    job.indices = indices;
    size_t bytes = count * columns * size_of(job.dtype);
    void  *right = malloc(bytes);
    for (size_t i = 0; i < count * columns; i++)
        put_element(right, job.dtype, i, weight_of(&job.w, (size_t)indices[i / columns] * columns + i % columns));
    job.y = guarded(bytes, 0);
    EACH_FORM {
        untouched(job.y, bytes);
        forms->embedding(&job, 0, 2);
        forms->embedding(&job, 2, count);
        expect_elements(right, job.y, job.dtype, count * columns, "a table");
    }
    free(right);
    release_all();
}

static void test_embedding(void) {
    static const size_t columns[] = {1, 8, 31, 64, 77, 513, 1300}, blocks4[] = {32, 64, 4096}, blocks8[] = {7, 64, 256};
    EACH (c, columns)
        EACH (d, dtypes) {
            EACH (w, dtypes)
                check_embedding(
                    (struct embedding_job){.w.dense = dense_random(dtypes[w], 5, columns[c]), .dtype = dtypes[d]}, 5,
                    columns[c]);
            EACH (b, books)
                EACH (p, blocks4) {
                    size_t               block = books[b]->bits == 8 ? blocks8[p] : blocks4[p];
                    struct embedding_job job = {
                        .w.coded = coded_random(books[b], 5, columns[c], block, layout_of(p == 1 ? 3 * c : 1)),
                        .dtype = dtypes[d]};
                    check_embedding(job, 5, columns[c]);
                }
        }
}
