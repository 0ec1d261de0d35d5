/* The forms of what is done element by element, and of softmax, held to their definitions: part of forms_test.c. */

static double unary_of(uint32_t kind, double v) {
    return kind == UNARY_EXP ? exp(v) : kind == UNARY_SIGMOID ? 1 / (1 + exp(-v)) : (double)(-0.3f * (float)v);
}

static void check_unary(struct dense x, uint32_t kind) {
    size_t count = x.rows * x.columns, bytes = count * size_of(x.dtype);
    void  *y = guarded(bytes, 0);
    EACH_FORM {
        struct unary_job job = {x, untouched(y, bytes), x.dtype, kind, -0.3f};
        forms->unary(&job, 0, count / 3);
        forms->unary(&job, count / 3, count);
        struct dense found = {y, x.dtype, 1, count};
        for (size_t i = 0; i < count; i++) {
            double v = (double)element_of(&x, i), got = (double)element_of(&found, i), want = unary_of(kind, v);
            double within = (kind == UNARY_SCALE ? 0 : want * 0x1p-21 + 0x1p-126) + rounded_by(x.dtype, want);
            EXPECT(fabs(got - want) <= within, "unary %u of %g is %g, not %g (dtype %d)", kind, v, got, want, x.dtype);
        }
    }
    release_all();
}

static void check_binary(struct dense a, struct dense b, uint32_t kind) {
    size_t count = a.rows * a.columns, bytes = count * size_of(a.dtype);
    void  *right = malloc(bytes), *y = guarded(bytes, 0);
    char   of[64];
    snprintf(of, sizeof of, "binary %u of dtypes %d and %d", kind, a.dtype, b.dtype);
    for (size_t i = 0; i < count; i++) {
        float scaled = element_of(&b, i) * -0.3f;
        put_element(right, a.dtype, i,
                    kind == BINARY_ADD ? element_of(&a, i) + scaled : element_of(&a, i) * element_of(&b, i));
    }
    EACH_FORM {
        struct binary_job job = {a, b, untouched(y, bytes), kind, -0.3f};
        forms->binary(&job, 0, count / 3);
        forms->binary(&job, count / 3, count);
        expect_elements(right, y, a.dtype, count, of);
    }
    free(right);
    release_all();
}

static void check_softmax(struct dense x) {
    size_t             bytes = x.rows * x.columns * size_of(x.dtype);
    struct softmax_job job = {x, guarded(bytes, 0)};
    EACH_FORM {
        untouched(job.y, bytes);
        forms->softmax(&job, 0, x.rows);
        struct dense y = {job.y, x.dtype, x.rows, x.columns};
        for (size_t row = 0; row < x.rows; row++) {
            double top = -INFINITY, sum = 0;
            for (size_t c = 0; c < x.columns; c++) top = fmax(top, (double)element_of(&x, row * x.columns + c));
            for (size_t c = 0; c < x.columns; c++) sum += exp((double)element_of(&x, row * x.columns + c) - top);
            for (size_t c = 0; c < x.columns; c++) {
                double v = (double)element_of(&x, row * x.columns + c), want = exp(v - top) / sum,
                       got = (double)element_of(&y, row * x.columns + c);
                double within = want * (4e-6 + (top - v) * 0x1p-24) + 0x1p-126 + rounded_by(x.dtype, want);
                EXPECT(fabs(got - want) <= within, "y[%zu, %zu] is %g, not %g (dtype %d)", row, c, got, want, x.dtype);
            }
        }
    }
    release_all();
}

static void test_elementwise(void) {
    static const size_t counts[] = {1, 7, 16, 37, 1000};
    EACH (c, counts)
        EACH (d, dtypes) {
            for (uint32_t kind = UNARY_SCALE; kind <= UNARY_SIGMOID; kind++)
                check_unary(dense_random(dtypes[d], 1, counts[c]), kind);
            check_softmax(dense_random(dtypes[d], 3, counts[c]));
            EACH (o, dtypes)
                for (uint32_t kind = BINARY_ADD; kind <= BINARY_MULTIPLY; kind++)
                    check_binary(dense_random(dtypes[d], 1, counts[c]), dense_random(dtypes[o], 1, counts[c]), kind);
        }
}
