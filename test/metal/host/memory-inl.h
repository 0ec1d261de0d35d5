/* The part of scenarios.c that is about memory: reused, adopted, exact, too much of it. */

static void reuses_memory_after_its_work(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES), *z;
    CHECK(add(x, y, 1, 0) == BNB_OK);
    CHECK((z = driver->alloc(gpu, BYTES)) && add(y, z, 1, 0) == BNB_OK);
    driver->free(gpu, y); /* the work above still uses it */
    driver->free(gpu, x);
    CHECK(driver->cached(gpu) >= 2 * BYTES);
    void *fresh = driver->alloc(gpu, BYTES);
    CHECK(fresh && fresh != x && fresh != y && buffers_made() == 4);
    CHECK(holds(z, 3));
    void *again = driver->alloc(gpu, BYTES), *other = driver->alloc(gpu, BYTES);
    CHECK((again == x || again == y) && (other == x || other == y) && again != other && buffers_made() == 4);
    CHECK(driver->cached(gpu) == 0);
    void *small = driver->alloc(gpu, 8); /* of another size, so not out of what is kept */
    driver->free(gpu, again);
    CHECK(small && buffers_made() == 5 && driver->alloc(gpu, BYTES / 4) && buffers_made() == 6);
}

static int  given_back;
static void give_pages_back(void *pages) {
    CHECK(!munmap(pages, 1 << 16));
    given_back++;
}

/* Ones that nobody may write. */
static void *pages_of_ones(void) {
    float *pages = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED);
    for (size_t i = 0; i < COUNT; i++) pages[i] = 1;
    CHECK(!mprotect(pages, 1 << 16, PROT_READ));
    return pages;
}

static void adopts_pages(void) {
    open_gpu();
    void *pages = pages_of_ones(), *x = driver->adopt(gpu, pages, 1 << 16, give_pages_back, pages);
    CHECK(x && driver->host(gpu, x) == pages && buffers_made() == 0 && count("adopted") == 1);
    void *y = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 2, 0) == BNB_OK);
    driver->free(gpu, x); /* the work has yet to run */
    CHECK(!given_back && holds(y, 3));
    driver->adopt(gpu, NULL, 0, give_pages_back, NULL); /* what is done with goes at the next occasion */
    CHECK(given_back == 1);

    /* Written, by the GPU and by the processor, it is memory like any other, and the pages are what they were. */
    for (int by_gpu = 0; by_gpu < 2; by_gpu++) {
        pages = pages_of_ones();
        x = driver->adopt(gpu, pages, 1 << 16, give_pages_back, pages);
        if (by_gpu)
            CHECK(add(x, y, 2, 0) == BNB_OK && add(y, x, 4, 0) == BNB_OK);
        else
            CHECK(driver->ready(gpu, x, UPDATES) == BNB_OK && (((float *)driver->host(gpu, x))[0] = 1));
        CHECK(driver->host(gpu, x) != pages && holds(x, by_gpu ? 7 : 1));
        CHECK(given_back == 2 + by_gpu);
        driver->free(gpu, x);
    }
    set("fail_adopt", 1);
    pages = pages_of_ones();
    CHECK(!driver->adopt(gpu, pages, 1 << 16, give_pages_back, pages));
    give_pages_back(pages);
}

/* What the forms of csrc/cpu/ may do when they stand in for a kernel. */
static void lets_the_cpu_read_past_the_end(void) {
    open_gpu();
    for (size_t bytes = 16384 - 2 * READ_SLACK; bytes <= 16384 + READ_SLACK; bytes += 4) {
        void                *memory = driver->alloc(gpu, bytes);
        const volatile char *end = (const char *)driver->host(gpu, memory) + bytes;
        for (size_t i = 0; i < READ_SLACK; i++) (void)end[i];
    }
}

static void gives_exact_buffers(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, BYTES);
    CHECK(add(x, y, 1, 0) == BNB_OK && holds(y, 2));
    driver->free(gpu, x);
    CHECK(driver->alloc(gpu, BYTES) && buffers_made() == 3 && buffers_alive() == 2 && driver->cached(gpu) == 0);
    CHECK(add(y, y, 1, 1) == BNB_OK && driver->wait(gpu) == BNB_DEVICE_LOST); /* a float past the end */
    CHECK(strstr(last_error, "add"));
}

static void refuses_too_much_memory(void) {
    open_gpu();
    CHECK(!driver->alloc(gpu, 2000000));
    CHECK_ERROR(BNB_OUT_OF_MEMORY, "2000000 bytes are more than the 1000000 that one buffer of Simulated");
    void *kept[3] = {driver->alloc(gpu, 900000), driver->alloc(gpu, 900000), driver->alloc(gpu, 900000)};
    CHECK(kept[0] && kept[1] && !kept[2]);
    CHECK_ERROR(BNB_OUT_OF_MEMORY, "901120 bytes can't be had on Simulated Apple GPU: 1802240 are in use, and it "
                                   "recommends at most 2000000");
    driver->free(gpu, kept[0]);
    CHECK(driver->alloc(gpu, 500000)); /* another size: what was kept for reuse is given back for it */
}

/* Memory that work still uses can be had too, by waiting for the work. */
static void waits_for_memory(void) {
    open_gpu();
    void *x = alloc_ones(), *y = driver->alloc(gpu, 900000), *z = driver->alloc(gpu, 900000);
    CHECK(y && z && add(x, y, 1, 0) == BNB_OK && add(x, z, 1, 0) == BNB_OK);
    driver->free(gpu, y);
    driver->free(gpu, z);
    CHECK(count("runs") == 0 && driver->alloc(gpu, 1000000) && count("runs") == 2);
}

static void survives_a_failed_allocation(void) {
    open_gpu();
    set("fail_alloc", 1); /* it asks again, after it gave back what it kept */
    CHECK(driver->alloc(gpu, BYTES) && buffers_made() == 1);
}
