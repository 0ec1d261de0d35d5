/* Scenarios of copies to and from a GPU, by way of pinned memory; scenarios.c includes it behind open_gpu. */
#ifndef BNB_TEST_CUDA_COPIES_H
#define BNB_TEST_CUDA_COPIES_H

/* By way of pinned memory, several rounds of it, and a rest. */
static void copies_large_memory(void) {
    open_gpu();
    size_t    bytes = ((size_t)50 << 20) + 12;
    uint32_t *from = malloc(bytes), *to = calloc(1, bytes);
    for (size_t i = 0; i < bytes / 4; i++) from[i] = (uint32_t)(i * 2654435761u);
    void *memory = driver->alloc(gpu, bytes + 4);
    CHECK(driver->write(gpu, memory, 4, from, bytes) == BNB_OK && driver->read(gpu, memory, 4, to, bytes) == BNB_OK);
    CHECK(!memcmp(from, to, bytes));
    printf("%ld copies\n", count("copies"));
}

/* What is small is copied when its turn comes, and what the launches before it read is there until then. */
static void writes_without_a_wait(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES);
    long  waits = count("waits");
    CHECK(add(x, y, 1, 0) == BNB_OK);
    float values[COUNT];
    for (size_t i = 0; i < COUNT; i++) values[i] = 5;
    CHECK(driver->write(gpu, x, 0, values, BYTES) == BNB_OK);
    for (size_t i = 0; i < COUNT; i++) values[i] = 100; /* the caller's again */
    CHECK(add(x, z, 1, 0) == BNB_OK && count("runs") == 0 && count("waits") == waits);
    CHECK(holds(y, 2) && holds(z, 6));
}

/* More of them than pinned memory holds: what lies there waits for its turn. */
static void writes_more_than_is_pinned(void) {
    open_gpu();
    enum { ROUNDS = 7, ROUND = (6 << 20) + 20 }; /* more than twice both stages */
    void *memory[3 * ROUNDS];
    char *from = malloc(ROUND), *to = malloc(ROUND);
    for (int i = 0; i < 3 * ROUNDS; i++) {
        memset(from, i, ROUND);
        CHECK((memory[i] = driver->alloc(gpu, ROUND)));
        CHECK(driver->write(gpu, memory[i], 0, from, ROUND) == BNB_OK);
    }
    char *large = calloc(1, 40 << 20);
    void *last = driver->alloc(gpu, 40 << 20);
    CHECK(driver->write(gpu, last, 0, large, 40 << 20) == BNB_OK); /* through the same stages */
    for (int i = 0; i < 3 * ROUNDS; i++) {
        memset(from, i, ROUND);
        CHECK(driver->read(gpu, memory[i], 0, to, ROUND) == BNB_OK && !memcmp(from, to, ROUND));
    }
}

/* Within the GPU, in the order of the launches; and zeros, which come from nowhere. */
static void copies_within_the_gpu(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z = driver->alloc(gpu, BYTES);
    long  waits = count("waits"), copies = count("copies");
    CHECK(add(x, y, 1, 0) == BNB_OK);
    CHECK(driver->copy(gpu, z, 0, y, 0, BYTES) == BNB_OK && driver->copy(gpu, z, 8, x, 16, 4) == BNB_OK);
    driver->free(gpu, x);
    CHECK(driver->copy(gpu, y, 4, NULL, 0, BYTES - 8) == BNB_OK && driver->copy(gpu, z, 12, NULL, 0, 0) == BNB_OK);
    CHECK(add(y, y, 5, 0) == BNB_OK && count("runs") == 0 && count("waits") == waits && count("copies") == copies);
    float found[COUNT];
    CHECK(driver->read(gpu, z, 0, found, BYTES) == BNB_OK);
    for (size_t i = 0; i < COUNT; i++) CHECK(found[i] == (i == 2 ? 1 : 2));
    CHECK(driver->read(gpu, y, 0, found, BYTES) == BNB_OK && found[0] == 7 && found[COUNT - 1] == 7);
    for (size_t i = 1; i < COUNT - 1; i++) CHECK(found[i] == 5);
}

#endif
