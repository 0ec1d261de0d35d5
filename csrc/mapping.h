/* Bytes of files as memory: read into a buffer's own, or mapped in its place. */
#ifndef BNB_MAPPING_H
#define BNB_MAPPING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "bnb_types.h"

/* A range of an open file. */
struct file_range {
    int         descriptor;
    size_t      offset, bytes;
    const char *path; /* for sentences */
};

/* Whether it is an ordinary file that has the range; else a failure that names the function. */
bool file_has(const struct file_range *range, const char *function);

/* Copies `count` bytes of the range from `at` on; INVALID where the file ends before. */
bnb_status file_read(const struct file_range *range, size_t at, void *to, size_t count);

/* The pages that hold a range of a file. */
struct mapping {
    char           *pages;      /* where they begin, at a page of the system, */
    size_t          page_bytes; /* how many of the file's there are, */
    size_t          lead;       /* and how far behind their beginning the range begins */
    size_t          span;       /* all that is mapped: at least READ_SLACK behind the range can be read */
    char           *path;       /* its own copy, for sentences */
    _Atomic int     refs;       /* 0: free for another mapping */
    _Atomic bool    torn;       /* a page could not be read any more: all of it is zeros by now */
    _Atomic size_t  first, end; /* of the pages, as whoever handles signals sees them; both 0 while there are none */
    struct mapping *next;
};

/* Maps a range of a file, with one reference: privately, so that what is written never reaches the file, or to be read
 * only. NULL, with no failure recorded, where the system can't. */
struct mapping *mapping_new(const struct file_range *range, bool writable);
struct mapping *mapping_share(struct mapping *mapping);
void            mapping_release(struct mapping *mapping); /* NULL is fine */

/* INVALID, with a sentence, where what was read of it is not the file's; NULL is fine. */
bnb_status mapping_intact(const struct mapping *mapping);

#endif
