/* Work of the CPU's that is done after the call which asked for it: one thread does it, in the order in which it came.
 *
 * Whatever enters the queue has a turn, counted from 1. A piece of memory knows the last turn that uses it: who waits
 * for that turn may touch the memory, and a turn that comes later finds it as the earlier ones left it. */
#ifndef BNB_QUEUE_H
#define BNB_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../error.h"

/* What heads everything that is queued. `run` is called once, on the queue's thread, and frees it. */
struct queued {
    struct queued *next;
    void (*run)(struct queued *queued);
};

/* Enters it, and gives its turn; meanwhile note(context, turn) is called, before any other turn is given. May be NULL.
 * Never fails: where no thread can be had, it is done before this returns. */
uint64_t cpu_queue_push(struct queued *queued, void (*note)(void *context, uint64_t turn), void *context);

bool     cpu_queue_has_done(uint64_t turn);
void     cpu_queue_wait(uint64_t turn);
uint64_t cpu_queue_last(void); /* the last turn that was given; 0 where none was */

/* ── Failures ───────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Keeps this thread's last failure, for whoever waits next and for whoever reads what was not written; gives its
 * number, which is not 0. */
uint32_t cpu_queue_failed(void);

/* Records the failure of that number as this thread's. */
bnb_status cpu_queue_failure(uint32_t number);

/* The first failure since it was last asked for; BNB_OK where there is none. */
bnb_status cpu_queue_take_failure(void);

/* ── Settings and forks ─────────────────────────────────────────────────────────────────────────────────────────── */

/* The work, in products or bytes, from which an operation is queued: BNB_QUEUE_FROM. */
double cpu_queue_from(void);

/* What is wrong with BNB_QUEUE_FROM, as a sentence; NULL if nothing is. */
const char *bad_queue_from(void);

/* A fork happens between two turns. A child does what its parent had queued, on its own copy of the memory. */
void cpu_queue_before_fork(void);
void cpu_queue_after_fork(void);
void cpu_queue_in_child(void);

#endif
