/* The library's locks, all of them, and what a fork does to them.
 *
 * A child has one thread, the one that forked. Whatever another held would stay held for ever, and what it was at would
 * stay half done; so the one that forks takes every lock before, and both processes let go of them after. */
#include <pthread.h>

#include "internal.h"

static pthread_mutex_t locks[LOCKS] = {
    [LOCK_OPENING] = PTHREAD_MUTEX_INITIALIZER,    [LOCK_MAKING] = PTHREAD_MUTEX_INITIALIZER,
    [LOCK_GPU] = PTHREAD_MUTEX_INITIALIZER,        [LOCK_COUNTING] = PTHREAD_MUTEX_INITIALIZER,
    [LOCK_KEEPING] = PTHREAD_MUTEX_INITIALIZER,    [LOCK_TENSORS] = PTHREAD_MUTEX_INITIALIZER,
    [LOCK_CODEBOOKS] = PTHREAD_MUTEX_INITIALIZER,  [LOCK_QUANTIZED] = PTHREAD_MUTEX_INITIALIZER,
    [LOCK_RECORDINGS] = PTHREAD_MUTEX_INITIALIZER,
};

void lock(enum lock which) { pthread_mutex_lock(&locks[which]); }
void unlock(enum lock which) { pthread_mutex_unlock(&locks[which]); }

static void before_fork(void) {
    cpu_queue_before_fork(); /* first, for what is being done may want any other */
    for (int which = 0; which < LOCKS; which++) lock((enum lock)which);
}

static void let_go(void) {
    for (int which = LOCKS; which-- > 0;) unlock((enum lock)which);
}

static void after_fork(void) {
    let_go();
    cpu_queue_after_fork();
}

static void in_child(void) {
    forget_gpus();
    let_go();
    cpu_queue_in_child();
    forget_threads();
}

static void watch(void) { pthread_atfork(before_fork, after_fork, in_child); }

void watch_forks(void) {
    static pthread_once_t watched = PTHREAD_ONCE_INIT;
    pthread_once(&watched, watch);
}
