/* The threads that share the CPU's work. */
#ifndef BNB_CPU_POOL_H
#define BNB_CPU_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Runs body(job, first, last) over [0, count) in pieces of at least `grain`, on this thread and the pool's; returns
 * when all is done. Where the pool is at work for another thread, everything runs here. */
void parallel_for(size_t count, size_t grain, void (*body)(const void *job, size_t first, size_t last),
                  const void *job);

/* Starts a thread of the library's own, for as long as the process lives; false where none can be had. */
bool start_thread(void *(*body)(void *unused));

/* Called in a child: it has none of its parent's threads, and its first parallel_for makes new ones. */
void forget_threads(void);

/* The threads that parallel_for may use, this one among them: BNB_NUM_THREADS, or the performance cores. */
uint32_t thread_count(void);

/* What is wrong with BNB_NUM_THREADS, as a sentence; NULL if nothing is. */
const char *bad_thread_count(void);

#endif
