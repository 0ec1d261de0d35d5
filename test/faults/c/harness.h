/* What the files of the fault harness share: entries as the header declares them, random numbers, and things to
 * give. */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../../csrc/bnb.h"

/* ── Entries ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* What a parameter or a result is. The first five are handles. */
enum kind {
    DEVICE,
    TENSOR,
    CODEBOOK,
    QUANTIZED,
    CACHE,
    RECORDING,
    SIZE,
    BYTES, /* the size_t that says how long the memory before it is */
    U32,
    I32,
    F32,
    F64,
    TEXT,
    MEMORY,
    HYPERPARAMETERS,
    ATTENTION_OPTIONS,
    ENUM, /* `members` of them, from 0 on */
    STATUS,
    NOTHING,
    ADDRESS,
};
static inline bool is_handle(enum kind kind) { return kind <= RECORDING; }

union arg {
    void    *p;
    size_t   n;
    uint32_t u;
    int32_t  i;
    float    f;
    double   d;
};

enum { ARGS_MAX = 13 };

struct parameter {
    enum kind kind;
    int       members;  /* of an enum */
    bool      borrowed; /* declared const: threads may share what is given */
};

struct entry {
    const char *name;
    void (*valid)(union arg *args); /* fills in arguments that must succeed: recipes.c */
    enum kind        returns;
    int              arity;
    struct parameter parameters[ARGS_MAX];
    bool             frees; /* its argument */
    bool             views; /* its result shares the memory of its arguments */
};

/* Generated from bnb.h: test/faults/build.ts. */
extern const struct entry entries[];
extern const size_t       entry_count;
union arg                 call_entry(size_t entry, const union arg *args);

/* ── Chance ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

void               chance_seed(uint64_t seed); /* of this thread */
uint64_t           chance(void);
size_t             below(size_t bound);
void               chance_guide(const uint8_t *data, size_t bytes); /* what below gives, from now on */
bool               chance_is_guided(void);                          /* whether there is any left */
static inline bool one_in(size_t times) { return below(times) == 0; }
float              normal(void);

/* ── The world ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Things whose shapes fit one another, so that valid calls can be made of them: x[m, k], w[n, k], y[m, n]. Tensors of
 * three come in float32, float16 and bfloat16. */
struct world {
    bnb_device    *device;
    size_t         m, k, n, block, capacity; /* tokens that the first two caches have room for */
    bnb_tensor    *x[3], *w[3], *dy[3], *bias[3], *weight[3];
    bnb_tensor    *indices, *a, *b, *row_stats, *column_stats, *x_column_stats, *sums, *outliers;
    bnb_codebook  *codes16, *codes256, *codes_other, *nf4, *dynamic; /* other: of any other width */
    bnb_recording *recording;
    bnb_tensor    *sixteens; /* rows of 32, for what takes whole blocks only */
    bnb_quantized *q[6];     /* of w: 4 bits, 8 bits, both with nested scales, LLM.int8()'s b, and another width */
    bnb_tensor    *p[3], *g[3], *state[2], *state_twice, *state8[2], *state8_twice, *absmax[2], *absmax_twice, *unorm;
    bnb_tensor    *one;      /* the number of the first row */
    bnb_tensor    *rows;     /* of one text: what each of x[m, k] sees */
    bnb_cache     *cache[3]; /* of heads with k columns, f32 and bytes; and one that is small whatever becomes of it */
};
extern _Thread_local struct world world;

/* Builds a world of random sizes: a small one, whose memory is not kept for reuse when it is freed; a cold one, which
 * has nothing that is made once for the process. */
void world_build(bool small, bool cold);
void world_free(void);

/* ── The harness's own rules ────────────────────────────────────────────────────────────────────────────────────── */

/* Ends the process with a sentence, and with the call that was under way. */
[[noreturn]] void broken(const char *sentence, ...) __attribute__((format(printf, 1, 2)));

/* Memory that is freed after the call, filled with random bytes. */
void *scratch(size_t bytes);
void  scratch_free(void);

/* A new handle that a recipe makes for a call that will free it. */
bnb_tensor    *made_tensor(void);
bnb_recording *made_recording(void);

/* What a call has under way, for whoever looks at the process's remains. */
extern _Thread_local char *note;
enum { NOTE_BYTES = 4096 };

/* From hook.c. */
int64_t hook_live(void);
void    hook_fail_at(int64_t nth);
int64_t hook_to_come(void);
void    hook_guard(bool guards);

/* ── Ways to run ────────────────────────────────────────────────────────────────────────────────────────────────── */

struct tally {
    uint64_t calls, ok, failed[5]; /* by status */
};

void fuzz(uint64_t seed, uint64_t calls, bool alone, struct tally *tallies);
/* Makes the world that all threads read; once, before they start. */
void fuzz_share(void);

/* One world, and calls for as long as there are bytes to choose them by. */
void guided(const uint8_t *data, size_t bytes, struct tally *tallies);

void allocations(uint64_t seed, uint64_t rounds, struct tally *tallies);
void races(uint64_t seed, uint64_t calls, struct tally *tallies);
void forks(uint64_t seed, uint64_t children, struct tally *tallies);
void fork_counted(uint64_t seed); /* of a harness that coverage guides */

#endif
