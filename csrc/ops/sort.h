/* Positions sorted by the index that stands at each, those of one index in their order, on every device. */
#ifndef BNB_SORT_H
#define BNB_SORT_H

#include "run.h"

/* `count` indices, of which those are sorted that are from 0 to rows - 1 and not `padding`. */
struct sort {
    const struct buffer *indices;
    size_t               count, rows;
    int32_t              padding; /* or -1 */
};

/* On a GPU: pairs of an index and its position, then those that are left out; and, u32 [rows + 1], how many come before
 * the first of each index, which for `rows` is how many were sorted. */
struct sorted {
    struct buffer *pairs, *starts;
};

/* A launch of an operation's: enqueues it, and gives memory that sorted_release takes. */
bnb_status launch_sort(const struct sort *sort, struct sorted *sorted);
void       sorted_release(const struct sorted *sorted); /* the driver keeps it until the work is done */

/* The same on the CPU, of indices that are all from 0 to rows - 1: the starts, and behind them the positions. NULL
 * where there is no memory, with no failure recorded; the caller frees it. */
uint32_t *sort_indices(const int32_t *indices, size_t count, size_t rows, int32_t padding);

#endif
