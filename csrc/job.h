/* A job of the CPU's: a function, what it is told, and the memory that it uses. It is done at once, or queued. */
#ifndef BNB_JOB_H
#define BNB_JOB_H

#include "internal.h"

/* Memory that a job looks at: in place where the CPU shares it, else a copy for as long. */
struct view {
    struct buffer *buffer;
    void          *address;
    enum access    access;
};

enum { CODEBOOKS_MOST = 4 };

/* `told` is plain data, of which only the memory of `views` and the codebooks outlive the call that asks for it. */
struct job {
    bnb_status (*body)(const void *told);
    const void    *told;
    size_t         told_bytes;
    struct view   *views;
    uint32_t       view_count, codebook_count;
    bnb_codebook **codebooks; /* which `told` looks at */
};

/* All of these are about memory of the CPU's own. */
bool       job_is_busy(const struct job *job); /* queued work uses its memory */
void       job_settle(const struct job *job);  /* waits for that */
bnb_status job_do(const struct job *job);      /* fails where what it reads was not written */
bnb_status job_queue(const struct job *job);   /* copies all that it is told; without memory waits, and does it */

/* What the queue's thread does with one: its results are marked where it fails, or reads what was not written. */
void job_do_queued(const struct job *job);

#endif
