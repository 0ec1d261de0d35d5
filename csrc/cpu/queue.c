/* The CPU's queue: its thread, whom it wakes, and the failures that come when nobody is there to be told. */
#include "queue.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "../bnb.h"
#include "pool.h"

enum { FAILURES_KEPT = 16, SENTENCE_BYTES = 1024 };

/* Behind `mutex`, all but `done`. */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t  work, progress;
    bool            started, running;
    uint32_t        forking;
    struct queued  *first, *last;
    uint64_t        given;

    _Atomic uint64_t done;

    struct failure {
        bnb_status status;
        char       sentence[SENTENCE_BYTES];
    } failures[FAILURES_KEPT];
    uint32_t failed, told; /* how many have failed, and the last that a wait has told */
} queue = {.mutex = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .progress = PTHREAD_COND_INITIALIZER};

/* ── Turns ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

bool cpu_queue_has_done(uint64_t turn) { return atomic_load_explicit(&queue.done, memory_order_acquire) >= turn; }

/* With the mutex held, which it lets go of meanwhile. */
static void take_turn(void) {
    struct queued *next = queue.first;
    queue.first = next->next;
    if (!queue.first) queue.last = NULL;
    queue.running = true;
    pthread_mutex_unlock(&queue.mutex);
    next->run(next);
    pthread_mutex_lock(&queue.mutex);
    queue.running = false;
    atomic_fetch_add_explicit(&queue.done, 1, memory_order_release);
    pthread_cond_broadcast(&queue.progress);
}

static void *serve_turns(void *) {
    pthread_mutex_lock(&queue.mutex);
    for (;;) {
        while (!queue.first || queue.forking) pthread_cond_wait(&queue.work, &queue.mutex);
        take_turn();
    }
    return NULL;
}

/* With the mutex held: sees to it that what is queued gets done, by the caller where there is no thread for it. */
static void set_going(void) {
    if (!queue.started) queue.started = start_thread(serve_turns);
    if (queue.started)
        pthread_cond_signal(&queue.work);
    else
        while (queue.first && !queue.running) take_turn();
}

uint64_t cpu_queue_push(struct queued *queued, void (*note)(void *context, uint64_t turn), void *context) {
    pthread_mutex_lock(&queue.mutex);
    queued->next = NULL;
    if (queue.last)
        queue.last->next = queued;
    else
        queue.first = queued;
    queue.last = queued;
    uint64_t turn = ++queue.given;
    if (note) note(context, turn);
    set_going();
    pthread_mutex_unlock(&queue.mutex);
    return turn;
}

void cpu_queue_wait(uint64_t turn) {
    if (cpu_queue_has_done(turn)) return;
    pthread_mutex_lock(&queue.mutex);
    set_going(); /* a child may find its parent's */
    while (!cpu_queue_has_done(turn)) pthread_cond_wait(&queue.progress, &queue.mutex);
    pthread_mutex_unlock(&queue.mutex);
}

uint64_t cpu_queue_last(void) {
    pthread_mutex_lock(&queue.mutex);
    uint64_t last = queue.given;
    pthread_mutex_unlock(&queue.mutex);
    return last;
}

/* ── Failures ───────────────────────────────────────────────────────────────────────────────────────────────────── */

uint32_t cpu_queue_failed(void) {
    pthread_mutex_lock(&queue.mutex);
    uint32_t        number = ++queue.failed;
    struct failure *failure = &queue.failures[number % FAILURES_KEPT];
    failure->status = bnb_last_status();
    snprintf(failure->sentence, sizeof failure->sentence, "%s", bnb_last_error());
    pthread_mutex_unlock(&queue.mutex);
    return number;
}

/* With the mutex held. */
static bnb_status tell(uint32_t number) {
    if (queue.failed - number >= FAILURES_KEPT)
        return fail(BNB_DEVICE_LOST, "an operation that was queued has failed, and %d others since: ask for it anew",
                    FAILURES_KEPT);
    const struct failure *failure = &queue.failures[number % FAILURES_KEPT];
    return fail(failure->status, "an operation that was queued has failed: %s", failure->sentence);
}

bnb_status cpu_queue_failure(uint32_t number) {
    pthread_mutex_lock(&queue.mutex);
    bnb_status status = tell(number);
    pthread_mutex_unlock(&queue.mutex);
    return status;
}

bnb_status cpu_queue_take_failure(void) {
    bnb_status status = BNB_OK;
    pthread_mutex_lock(&queue.mutex);
    if (queue.told != queue.failed) {
        status = tell(queue.told + 1);
        queue.told = queue.failed;
    }
    pthread_mutex_unlock(&queue.mutex);
    return status;
}

/* ── Settings and forks ─────────────────────────────────────────────────────────────────────────────────────────── */

/* What BNB_QUEUE_FROM says; negative where it says nonsense. */
static double wanted(const char *text) {
    char  *end;
    double number = strtod(text, &end);
    return *text && !*end && number >= 0 ? number : -1;
}

const char *bad_queue_from(void) {
    static _Thread_local char sentence[192];
    const char               *text = getenv("BNB_QUEUE_FROM");
    if (!text || !*text || wanted(text) >= 0) return NULL;
    snprintf(sentence, sizeof sentence,
             "BNB_QUEUE_FROM is \"%.40s\", expected the work from which the CPU queues an operation, such as 3e7: "
             "change it, or unset it",
             text);
    return sentence;
}

double cpu_queue_from(void) {
    /* Some milliseconds: less than a frame, and far more than it costs to hand work to another thread. */
    static const double   usual = 1 << 25;
    static _Atomic double from = -1; /* two threads that race here find the same */
    double                known = atomic_load_explicit(&from, memory_order_relaxed);
    if (known >= 0) return known;
    const char *text = getenv("BNB_QUEUE_FROM");
    known = text ? wanted(text) : -1;
    if (known < 0) known = usual;
    atomic_store_explicit(&from, known, memory_order_relaxed);
    return known;
}

void cpu_queue_before_fork(void) {
    pthread_mutex_lock(&queue.mutex);
    queue.forking++;
    while (queue.running) pthread_cond_wait(&queue.progress, &queue.mutex);
}

void cpu_queue_after_fork(void) {
    queue.forking--;
    pthread_cond_signal(&queue.work);
    pthread_mutex_unlock(&queue.mutex);
}

void cpu_queue_in_child(void) {
    queue.mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    queue.work = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    queue.progress = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    queue.started = false;
    queue.forking = 0;
}
