/* How every file of csrc/ fails: a sentence and a code, kept for the calling thread. */
#ifndef BNB_ERROR_H
#define BNB_ERROR_H

#include "bnb_types.h"

/* Records a sentence and its code for this thread, and returns the code: `return fail(BNB_INVALID, "…", …);` */
bnb_status fail(bnb_status status, const char *sentence, ...) __attribute__((format(printf, 2, 3)));
#define refuse(status, ...) (fail(status, __VA_ARGS__), NULL)

#endif
