/* Large pieces of the CPU's memory: had from the system, and kept for the next who wants one. */
#ifndef BNB_PIECES_H
#define BNB_PIECES_H

#include "internal.h"

enum { PIECE_FROM = 64 << 10, PIECE_ALIGNMENT = 64 }; /* bytes from which it pays */

/* A piece, and the last turn in the queue that uses it: work that is queued later may have it as soon as its owner
 * frees it, so that a long queue holds no more memory than the same work in the call. */
struct piece {
    void    *memory; /* NULL where there is none to be had */
    size_t   capacity;
    uint64_t turn;
};

struct piece piece_take(bnb_device *device, size_t bytes);
void         piece_leave(bnb_device *device, const struct piece *piece);

#endif
