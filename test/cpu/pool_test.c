/* The pool of threads, held to what csrc/cpu/pool.h says: part of forms_test.c. */

struct counting {
    _Atomic uint32_t *times;
    bool              nests;
};

static void count_each(const void *counting, size_t first, size_t last) {
    const struct counting *job = counting;
    for (size_t i = first; i < last; i++) {
        atomic_fetch_add(&job->times[i], 1);
        if (!job->nests || i % 100) continue;
        _Atomic uint32_t inner[50] = {0};
        struct counting  nested = {inner, false};
        parallel_for(50, 1, count_each, &nested);
        for (int j = 0; j < 50; j++) EXPECT(inner[j] == 1, "nested index %d ran %u times", j, inner[j]);
    }
}

static void count_once(size_t count, size_t grain, bool nests) {
    _Atomic uint32_t *times = calloc(count + 1, sizeof *times);
    struct counting   job = {times, nests};
    parallel_for(count, grain, count_each, &job);
    for (size_t i = 0; i < count; i++) EXPECT(times[i] == 1, "index %zu of %zu ran %u times", i, count, times[i]);
    EXPECT(!times[count], "an index past the end ran");
    free(times);
}

static void *count_often(void *nests) {
    for (int round = 0; round < 2000; round++) count_once((size_t)round % 97 + 1, (size_t)round % 5 + 1, nests != NULL);
    return NULL;
}

struct presence {
    pthread_mutex_t mutex;
    pthread_t       threads[64];
    size_t          count;
};

static void be_present(const void *presence, size_t first, size_t last) {
    struct presence *job = *(struct presence *const *)presence;
    for (size_t i = first; i < last; i++) usleep(2000);
    pthread_mutex_lock(&job->mutex);
    size_t known = 0;
    while (known < job->count && !pthread_equal(job->threads[known], pthread_self())) known++;
    if (known == job->count) job->threads[job->count++] = pthread_self();
    pthread_mutex_unlock(&job->mutex);
}

/* Others take a share, also after they fell asleep. */
static void expect_company(const char *when) {
    struct presence presence = {.mutex = PTHREAD_MUTEX_INITIALIZER}, *job = &presence;
    usleep(2000);
    parallel_for(64, 1, be_present, &job);
    EXPECT(presence.count > 1 || thread_count() == 1, "only one thread worked %s", when);
}

static void test_pool(void) {
    static const size_t counts[] = {0, 1, 2, 3, 7, 16, 17, 1000, 65'537}, grains[] = {1, 2, 3, 64, 100'000};
    EACH (c, counts)
        EACH (g, grains) count_once(counts[c], grains[g], false);
    count_once(1000, 1, true);
    pthread_t callers[4];
    EACH (i, callers) pthread_create(&callers[i], NULL, count_often, i % 2 ? "nests" : NULL);
    EACH (i, callers) pthread_join(callers[i], NULL);
    for (int i = 0; i < 20; i++) {
        usleep(1000); /* the pool is asleep */
        count_once(1000, 1, false);
    }
    expect_company("after a pause");
    pthread_atfork(NULL, NULL, forget_threads); /* as csrc/lock.c does for the library */
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        expect_company("in a forked child");
        for (int i = 0; i < 100; i++) count_once(1000, 1, false);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    EXPECT(status == 0, "a forked child ended with status %d", status);
    count_once(1000, 1, false);
}
