/* Rows of a table, decoded or cast one after the other. */
#include "simd.h"

enum { EMBEDDING_PIECE = 512 }; /* elements that are decoded before they are rounded */

static void embedding(const void *embedding_job, size_t first, size_t last) {
    const struct embedding_job *job = embedding_job;
    size_t                      columns = weight_columns(&job->w), size = job->dtype == BNB_F32 ? 4 : 2;
    for (size_t i = first; i < last; i++) {
        size_t from = (size_t)job->indices[i] * columns;
        char  *y = (char *)job->y + i * columns * size;
        if (!job->w.coded.code && job->w.dense.dtype == job->dtype) {
            memcpy(y, (const char *)job->w.dense.data + from * size, columns * size);
        } else if (!job->w.coded.code) {
            const char      *w = (const char *)job->w.dense.data + from * (job->w.dense.dtype == BNB_F32 ? 4 : 2);
            struct unary_job casting = {.x = {w, job->w.dense.dtype, 1, columns}, .y = y, .dtype = job->dtype};
            cast(&casting, 0, columns);
        } else {
            for (size_t at = 0; at < columns; at += EMBEDDING_PIECE) {
                float  piece[EMBEDDING_PIECE];
                size_t count = least(EMBEDDING_PIECE, columns - at);
                widen_weights(&job->w, from + at, from + at + count, piece);
                narrow_run(piece, count, job->y, job->dtype, i * columns + at);
            }
        }
    }
}
