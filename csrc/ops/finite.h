/* What a GPU says of numbers before anybody looks at them: how large the largest are. */
#ifndef BNB_FINITE_H
#define BNB_FINITE_H

#include "../internal.h"

/* Has a GPU find the largest magnitudes in parts of a row of f32: `*largest` is their bits as u32, at most
 * NESTED_THREADS of them, for the caller to release. NULL, and no failure, where there is no GPU or it can't; the last
 * failure says why. */
bnb_status find_largest(const struct buffer *floats, struct buffer **largest);

/* Whether they are all finite, for which it waits. NULL: nothing is known. */
bool are_finite(const struct buffer *largest);

#endif
