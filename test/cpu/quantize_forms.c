/* The forms that quantise, held to nearest_code byte by byte: part of forms_test.c. */

static size_t code_bytes_of(const struct codebook *code, size_t count) { return (count * code->bits + 7) / 8; }

/* The codes of x as one string of bits, filled up with those of 0, and the scales. */
static void quantize_rightly(const struct codebook *code, struct dense x, size_t block, uint8_t *codes, float *absmax) {
    size_t count = x.rows * x.columns;
    memset(codes, 0, code_bytes_of(code, count));
    for (size_t bit = 0, i = 0; bit < code_bytes_of(code, count) * 8; bit += code->bits, i++) {
        if (i < count && i % block == 0) {
            float largest = 0;
            for (size_t e = i; e < count && e < i + block; e++) largest = fmaxf(largest, fabsf(element_of(&x, e)));
            absmax[i / block] = largest;
        }
        uint32_t right = nearest_code(code, i < count ? element_of(&x, i) * inverse_of(absmax[i / block]) : 0);
        for (uint32_t k = 0; k < code->bits && bit + k < code_bytes_of(code, count) * 8; k++)
            codes[(bit + k) / 8] |= (uint8_t)((right >> (code->bits - 1 - k) & 1) << (7 - (bit + k) % 8));
    }
}

/* Runs each form in two calls, and compares every byte with nearest_code's. */
static void check_quantize(const struct codebook *code, struct dense x, size_t block) {
    size_t       count = x.rows * x.columns, blocks = (count + block - 1) / block, bytes = code_bytes_of(code, count);
    uint8_t     *right = malloc(bytes), *codes = guarded(bytes, 0);
    float       *absmax = malloc(blocks * sizeof *absmax), *found = guarded(blocks * sizeof *found, 0);
    struct coded got = {.code = code, .codes = codes}, wanted = {.code = code, .codes = right};
    quantize_rightly(code, x, block, right, absmax);
    EACH_FORM {
        struct quantize_job job = {x, code, block, untouched(codes, bytes), untouched(found, blocks * sizeof *found)};
        forms->quantize(&job, 0, blocks / 2);
        forms->quantize(&job, blocks / 2, blocks);
        for (size_t b = 0; b < blocks; b++)
            EXPECT(found[b] == absmax[b], "absmax[%zu] is %g, not %g (dtype %d, block %zu)", b, (double)found[b],
                   (double)absmax[b], x.dtype, block);
        if (!memcmp(codes, right, bytes)) continue;
        for (size_t i = 0; i < count; i++)
            EXPECT(code_at(&got, i) == code_at(&wanted, i),
                   "code[%zu] of %zu is %d, not %d: x %a, absmax %a (dtype %d, block %zu)", i, count, code_at(&got, i),
                   code_at(&wanted, i), (double)element_of(&x, i), (double)absmax[i / block], x.dtype, block);
        EXPECT(false, "the spare bits of %zu codes are not of 0's", count);
    }
    free(right), free(absmax);
}

static void test_quantize_sizes(void) {
    static const size_t counts[] = {1, 2, 3, 31, 32, 33, 63, 64, 65, 95, 127, 128, 129, 1000, 4095, 4096, 4097, 9001};
    static const size_t blocks4[] = {32, 64, 128, 256, 512, 1024, 2048, 4096},
                        blocks8[] = {1, 7, 32, 64, 100, 256, 4096, 100'000};
    EACH (b, books)
        EACH (d, dtypes)
            EACH (c, counts)
                EACH (k, blocks4) {
                    check_quantize(books[b], dense_random(dtypes[d], 1, counts[c]),
                                   books[b]->bits == 8 ? blocks8[k] : blocks4[k]);
                    release_all();
                }
}

/* A block of 4096 whose absmax is 1, so that its elements are compared as they are. */
static void flush_block(const struct codebook *code, float block[4096], size_t *used) {
    if (*used == 1) return;
    block[0] = 1;
    memset(block + *used, 0, (4096 - *used) * sizeof *block);
    check_quantize(code, dense_from(block, BNB_F32, 1, 4096), 4096);
    release_all();
    *used = 1;
}

static void test_quantize_every_threshold(void) {
    float block[4096];
    EACH (b, books) {
        size_t used = 1;
        for (uint32_t t = 0; t < books[b]->size - 1; t++)
            for (int32_t ulp = -64; ulp <= 64; ulp++) {
                float x = bits_float(float_bits(books[b]->thresholds[t]) + (uint32_t)ulp);
                if (!(fabsf(x) <= 1)) continue;
                block[used++] = x;
                if (used == 4096) flush_block(books[b], block, &used);
            }
        flush_block(books[b], block, &used);
        for (uint32_t sign = 0; sign < 2; sign++) /* the edges of the buckets, and floats of every size between */
            for (uint32_t bits = 0; bits <= 0x3f800000; bits += bits % (1 << BUCKET_SHIFT) == 1 ? 65'521 : 1) {
                if (bits % (1 << BUCKET_SHIFT) > 1 && bits + 65'521 > (bits | ((1 << BUCKET_SHIFT) - 1)))
                    bits |= (1 << BUCKET_SHIFT) - 1;
                block[used++] = bits_float(bits | sign << 31);
                if (used == 4096) flush_block(books[b], block, &used);
            }
        flush_block(books[b], block, &used);
    }
}

static void test_quantize_extremes(void) {
    static const float sizes[] = {0, 1e-45f, 1e-40f, 9e-39f, 1.2e-38f, 1e-20f, 1e30f, 3.4e38f};
    EACH (b, books)
        EACH (s, sizes)
            EACH (d, dtypes) {
                float values[100];
                for (int i = 0; i < 100; i++) values[i] = i % 3 ? uniform() * sizes[s] : i % 2 ? -0.0f : sizes[s];
                if (dtypes[d] != BNB_F32 && sizes[s] > 1e38f) continue; /* rounds to an infinity */
                if (dtypes[d] == BNB_F16 && sizes[s] > 65504) continue;
                check_quantize(books[b], dense_from(values, dtypes[d], 1, 100), 32);
                release_all();
            }
}

static void test_quantize_shows_nan_and_infinity(void) {
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    EACH (b, books)
        EACH (d, dtypes)
            EACH (v, bad)
                for (size_t at = 0; at < 75; at++) {
                    float values[75];
                    for (int i = 0; i < 75; i++) values[i] = normal();
                    values[at] = bad[v];
                    struct dense        x = dense_from(values, dtypes[d], 1, 75);
                    struct quantize_job job = {x, books[b], 32, guarded(code_bytes_of(books[b], 75), 0),
                                               guarded(12, 0)};
                    EACH_FORM {
                        forms->quantize(&job, 0, 3);
                        for (size_t i = 0; i < 3; i++)
                            EXPECT(isfinite(job.absmax[i]) == (i != at / 32), "absmax[%zu] is %g with x[%zu] = %g", i,
                                   (double)job.absmax[i], at, (double)bad[v]);
                    }
                    release_all();
                }
}
