/* The codebooks that forms_test.c quantises with, prepared by brute force: part of it. */

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static uint32_t below(const struct codebook *codes, float x) {
    uint32_t count = 0;
    while (count < codes->size - 1 && x > codes->thresholds[count]) count++;
    return count;
}

/* The last magnitude of a bucket that has the rank of its first, by bisection; false where a third rank follows. */
static bool entry_of(const struct codebook *codes, uint32_t shift, uint32_t least, uint32_t sign, uint32_t *entry) {
    uint32_t rank = below(codes, bits_float(least | sign)), low = 0, high = 1u << shift;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (below(codes, bits_float((least + middle) | sign)) == rank)
            low = middle;
        else
            high = middle;
    }
    *entry = rank << shift | low;
    uint32_t last = below(codes, bits_float((least + (1u << shift) - 1) | sign));
    return high == 1u << shift || last == (sign ? rank - 1 : rank + 1);
}

static void fill_entries(struct codebook *codes) {
    bool     negative = codes->values[codes->order[0]] < 0;
    uint32_t shift = negative ? 17 : 16, buckets = (32u << (23 - shift)) + 1, start = 95u << 23;
    for (uint32_t side = 0; side < (negative ? 2u : 1u); side++) {
        for (uint32_t b = 0; b < buckets; b++)
            if (!entry_of(codes, shift, start + (b << shift), side << 31, &codes->entries[side * buckets + b])) return;
        if (codes->entries[side * buckets] != (below(codes, bits_float(1 | side << 31)) << shift | ((1u << shift) - 1)))
            return;
    }
    bool zero_is_above = below(codes, 0) == below(codes, bits_float(1));
    if (!zero_is_above && !negative) return;
    codes->negative_below = zero_is_above ? 0 : bits_float(1), codes->entry_shift = shift;
}

static struct codebook *codes_of(const float *values, uint32_t bits) {
    struct codebook *codes = calloc(1, sizeof *codes);
    codes->bits = bits, codes->size = 1u << bits;
    memcpy(codes->values, values, codes->size * sizeof *values);
    float sorted[256];
    memcpy(sorted, values, codes->size * sizeof *values);
    codes->ascending = true;
    for (uint32_t i = 1; i < codes->size; i++) codes->ascending &= values[i - 1] <= values[i];
    qsort(sorted, codes->size, sizeof *sorted, ascending);
    bool used[256] = {0};
    for (uint32_t i = 0; i < codes->size; i++) {
        uint32_t code = 0;
        while (used[code] || values[code] != sorted[i]) code++;
        used[code] = true, codes->order[i] = (uint8_t)code;
        codes->thresholds[i] = i + 1 < codes->size ? (sorted[i] + sorted[i + 1]) / 2 : INFINITY;
    }
    for (int sign = 0; sign < 2; sign++)
        for (uint32_t bucket = 0; bucket < BUCKETS; bucket++) {
            uint32_t low = bucket ? (bucket + BUCKET_BASE) << BUCKET_SHIFT : 0;
            uint32_t high = ((bucket + 1 + BUCKET_BASE) << BUCKET_SHIFT) - 1;
            uint32_t minus = (uint32_t)sign << 31;
            uint32_t first = below(codes, bits_float((sign ? high : low) | minus));
            uint32_t last = below(codes, bits_float((sign ? low : high) | minus));
            codes->start[sign][bucket] = (uint8_t)first;
            if (last - first > codes->steps) codes->steps = last - first;
        }
    if (bits == 8) fill_entries(codes);
    return codes;
}

static const float nf4[16] = {
    -1,         -0.6961928f, -0.52507305f, -0.39491749f, -0.28444138f, -0.18477343f, -0.09105004f, 0,
    0.0795803f, 0.1609302f,  0.2461123f,   0.33791524f,  0.44070983f,  0.562617f,    0.72295684f,  1};
static const float fp4[16] = {0, 0.0052083335f,  0.6666667f,  1,  0.33333334f,  0.5f,  0.16666667f,  0.25f,
                              0, -0.0052083335f, -0.6666667f, -1, -0.33333334f, -0.5f, -0.16666667f, -0.25f};

static struct codebook *books[16], *integers[6];
enum { NF4, FP4, SCATTERED4, FAR4, DYNAMIC, ZEROS8, STEPPED, UNSIGNED, SCATTERED8, TINY8, FAR8, OTHERS };

static void make_books(void) {
    float values[256];
    books[NF4] = codes_of(nf4, 4);
    books[FP4] = codes_of(fp4, 4);
    for (int i = 0; i < 16; i++) values[i] = uniform();
    books[SCATTERED4] = codes_of(values, 4);
    for (int i = 0; i < 16; i++) values[i] = uniform() * 40;
    books[FAR4] = codes_of(values, 4);
    int n = 0;
    for (int e = 0; e < 7; e++)
        for (int i = 0; i < 1 << e; i++) {
            float magnitude = (0.1f + 0.9f * ((float)i + 0.5f) / (float)(1 << e)) * powf(10, (float)(e - 6));
            values[n++] = magnitude, values[n++] = -magnitude;
        }
    values[n++] = 0, values[n++] = 1;
    qsort(values, 256, sizeof *values, ascending);
    books[DYNAMIC] = codes_of(values, 8);
    values[255] = 0; /* a second zero: the threshold between the two is zero */
    qsort(values, 256, sizeof *values, ascending);
    books[ZEROS8] = codes_of(values, 8);
    if (books[ZEROS8]->negative_below == 0 || !books[ZEROS8]->entry_shift) abort();
    for (int i = 0; i < 256; i++) values[i] = (float)(int8_t)i * 0.007f;
    books[STEPPED] = codes_of(values, 8);
    books[STEPPED]->step = 0.007f, books[STEPPED]->is_signed = true;
    for (int e = n = 0; e < 7; e++)
        for (int i = 0; i < 2 << e; i++)
            values[n++] = (0.1f + 0.9f * ((float)i + 0.5f) / (float)(2 << e)) * powf(10, (float)(e - 6));
    values[n++] = 0, values[n++] = 1;
    qsort(values, 256, sizeof *values, ascending);
    books[UNSIGNED] = codes_of(values, 8);
    if (!books[DYNAMIC]->entry_shift || !books[UNSIGNED]->entry_shift) abort(); /* both ways to search are tested */
    if (books[DYNAMIC]->entry_shift == books[UNSIGNED]->entry_shift) abort();
    for (int i = 0; i < 256; i++) values[i] = uniform();
    books[SCATTERED8] = codes_of(values, 8);
    for (int i = 0; i < 256; i++) values[i] = uniform() * 1e-9f; /* all thresholds in one bucket */
    books[TINY8] = codes_of(values, 8);
    for (int i = 0; i < 256; i++) values[i] = uniform() * 5;
    books[FAR8] = codes_of(values, 8);
    static const uint32_t others[] = {2, 3, 5, 6, 7};
    EACH (o, others) {
        for (int i = 0; i < 1 << others[o]; i++) values[i] = uniform() * (o % 2 ? 1 : 1.2f);
        books[OTHERS + o] = codes_of(values, others[o]);
    }
    /* What is neither looked up nor signed: GGUF's and MLX's. */
    static const uint32_t widths[] = {2, 3, 5, 6, 7, 8};
    static const int32_t  zeros[] = {0, 4, 16, 32, 1, 0};
    EACH (w, widths) {
        for (int i = 0; i < 1 << widths[w]; i++) values[i] = (float)(i - zeros[w]) * 0.25f;
        integers[w] = codes_of(values, widths[w]);
        integers[w]->step = 0.25f, integers[w]->zero = zeros[w];
    }
}
