/* The threads that share the CPU's work.
 *
 * A call cuts its range into pieces, which its own thread and the pool's take one by one. Everything turns on one
 * count, the pieces not yet taken: who has lowered it owns a piece, and the call can't end, nor its description change,
 * before that piece is done. A thread without work spins for a while, as the next call often follows at once, then
 * sleeps. */
#define _GNU_SOURCE /* sched_getaffinity */
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

#include "pool.h"

enum { MAX_THREADS = 256, PIECES_A_THREAD = 8, SPIN_NANOSECONDS = 100'000 };

static struct {
    atomic_flag busy; /* held by the call whose work this is */
    bool        started;

    void (*body)(const void *job, size_t first, size_t last);
    const void *job;
    size_t      count, piece, pieces;

    _Atomic size_t untaken, unfinished; /* pieces */

    pthread_mutex_t  mutex;
    pthread_cond_t   work;
    _Atomic uint32_t sleeping;
} pool = {.busy = ATOMIC_FLAG_INIT, .mutex = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER};

static inline void pause_briefly(void) {
#ifdef __x86_64__
    __builtin_ia32_pause();
#else
    __asm__ volatile("yield");
#endif
}

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1'000'000'000 + (uint64_t)now.tv_nsec;
}

/* Runs pieces until all are taken. */
static void take_pieces(void) {
    size_t untaken = atomic_load_explicit(&pool.untaken, memory_order_relaxed);
    while (untaken) {
        if (!atomic_compare_exchange_weak_explicit(&pool.untaken, &untaken, untaken - 1, memory_order_acquire,
                                                   memory_order_relaxed))
            continue;
        size_t first = (pool.pieces - untaken) * pool.piece, rest = pool.count - first;
        pool.body(pool.job, first, first + (rest < pool.piece ? rest : pool.piece));
        atomic_fetch_sub_explicit(&pool.unfinished, 1, memory_order_release);
        untaken = atomic_load_explicit(&pool.untaken, memory_order_relaxed);
    }
}

/* Spins until *count is `wanted` zero or not; false when the time is up. */
static bool spin(_Atomic size_t *count, bool zero) {
    uint64_t end = nanoseconds() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < 64; i++) {
            if ((atomic_load_explicit(count, memory_order_acquire) == 0) == zero) return true;
            pause_briefly();
        }
    } while (nanoseconds() < end);
    return false;
}

static void *work(void *unused) {
    (void)unused;
    for (;;) {
        take_pieces();
        if (spin(&pool.untaken, false)) continue;
        pthread_mutex_lock(&pool.mutex);
        atomic_fetch_add(&pool.sleeping, 1); /* before a last look at the count: parallel_for does it the other way */
        while (!atomic_load(&pool.untaken)) pthread_cond_wait(&pool.work, &pool.mutex);
        atomic_fetch_sub(&pool.sleeping, 1);
        pthread_mutex_unlock(&pool.mutex);
    }
    return NULL;
}

void forget_threads(void) {
    atomic_flag_clear(&pool.busy);
    pool.started = false;
    pool.untaken = pool.unfinished = 0;
    pool.sleeping = 0;
    pool.mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    pool.work = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
}

bool start_thread(void *(*body)(void *)) {
    sigset_t all, before; /* the host's signals are for its own threads, but for those that a thread causes itself */
    sigfillset(&all);
    for (size_t i = 0; i < 4; i++) sigdelset(&all, ((int[]){SIGBUS, SIGSEGV, SIGILL, SIGFPE})[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    bool      started = pthread_create(&thread, NULL, body, NULL) == 0;
    if (started) pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

/* Called by the holder of the pool. A thread that can't be had is done without: the caller works too. */
static void start_threads(void) {
    pool.started = true;
    for (uint32_t i = 1; i < thread_count(); i++)
        if (!start_thread(work)) break;
}

void parallel_for(size_t count, size_t grain, void (*body)(const void *job, size_t first, size_t last),
                  const void *job) {
    if (!count) return;
    size_t threads = thread_count(), piece = (count - 1) / (threads * PIECES_A_THREAD) + 1;
    if (piece < grain) piece = grain;
    if (threads == 1 || piece >= count || atomic_flag_test_and_set_explicit(&pool.busy, memory_order_acquire)) {
        body(job, 0, count);
        return;
    }
    if (!pool.started) start_threads();
    pool.body = body, pool.job = job, pool.count = count, pool.piece = piece, pool.pieces = (count - 1) / piece + 1;
    atomic_store(&pool.unfinished, pool.pieces);
    atomic_store(&pool.untaken, pool.pieces);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.mutex);
        pthread_cond_broadcast(&pool.work);
        pthread_mutex_unlock(&pool.mutex);
    }
    take_pieces();
    while (!spin(&pool.unfinished, true)) sched_yield();
    atomic_flag_clear_explicit(&pool.busy, memory_order_release);
}

#ifdef __linux__
/* The processors that one control group's quota is worth; a part of one counts as one. UINT32_MAX where it has none. */
static uint32_t quota_of(const char *group) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
    FILE *file = fopen(path, "re");
    if (!file) return UINT32_MAX;
    double quota, period; /* of time; the first is "max" where there is no quota */
    bool   limited = fscanf(file, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0;
    fclose(file);
    if (limited) limited = quota / period < MAX_THREADS;
    return limited ? (uint32_t)(quota / period + 0.999) : UINT32_MAX;
}

/* The least quota of this process's control group and those that it is in: a container's limit, usually. */
static uint32_t quota(void) {
    char  group[PATH_MAX] = "";
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file) return UINT32_MAX;
    bool found = false;
    while (!found && fgets(group, sizeof group, file)) found = !strncmp(group, "0::/", 4); /* version 2's only line */
    fclose(file);
    if (!found) return UINT32_MAX;
    memmove(group, group + 3, strlen(group + 3) + 1);
    group[strcspn(group, "\n")] = 0;
    uint32_t least = quota_of("");
    for (char *end = group + strlen(group); end > group; end = strrchr(group, '/')) {
        *end = 0;
        uint32_t these = quota_of(group);
        if (these < least) least = these;
    }
    return least;
}
#endif

static uint32_t processors(void) {
#ifdef __APPLE__
    int32_t     cores = 0;
    size_t      size = sizeof cores;
    const char *performance = "hw.perflevel0.physicalcpu"; /* absent where all cores are alike */
    if (sysctlbyname(performance, &cores, &size, NULL, 0) == 0 && cores > 0) return (uint32_t)cores;
#else
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        uint32_t most = quota(), count = (uint32_t)CPU_COUNT(&allowed);
        return count < most ? count : most;
    }
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (uint32_t)online : 1;
}

/* What BNB_NUM_THREADS says; 0 where it says nothing, or nonsense. */
static uint32_t wanted_threads(const char *text) {
    char *end;
    long  number = strtol(text, &end, 10);
    return *text && !*end && number >= 1 && number <= MAX_THREADS ? (uint32_t)number : 0;
}

const char *bad_thread_count(void) {
    static _Thread_local char sentence[160];
    const char               *text = getenv("BNB_NUM_THREADS");
    if (!text || !*text || wanted_threads(text)) return NULL;
    snprintf(
        sentence, sizeof sentence,
        "BNB_NUM_THREADS is \"%.40s\", expected a whole number from 1 to %d: change it, or unset it to use all cores",
        text, MAX_THREADS);
    return sentence;
}

uint32_t thread_count(void) {
    static _Atomic uint32_t threads; /* two threads that race here find the same */
    uint32_t                known = atomic_load_explicit(&threads, memory_order_relaxed);
    if (known) return known;
    const char *wanted = getenv("BNB_NUM_THREADS");
    known = wanted ? wanted_threads(wanted) : 0;
    if (!known) known = processors();
    if (known > MAX_THREADS) known = MAX_THREADS;
    atomic_store_explicit(&threads, known, memory_order_relaxed);
    return known;
}
