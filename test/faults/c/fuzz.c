/* Calls of random entries: valid ones, of which some arguments are replaced by what no caller should give. */
#include "harness.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ── What there is to give ──────────────────────────────────────────────────────────────────────────────────────── */

/* Results that stay alive for a while, to be given to other calls; and addresses of handles that were freed. */
struct loose {
    enum kind kind;
    void     *handle;
    bool      borrowed; /* shares memory that other threads read */
};
enum { LOOSE_MAX = 24, GONE_MAX = 16 };
static _Thread_local struct loose loose[LOOSE_MAX];
static _Thread_local size_t       loose_count;
static _Thread_local struct loose gone[GONE_MAX];
static _Thread_local size_t       gone_count;

/* Whether nobody else is calling: then freed handles can be given, for nobody makes new ones in their places. */
static _Thread_local bool alone;

/* Read by all threads, written by none. */
static struct world common;

static void free_handle(enum kind kind, void *handle) {
    if (kind == TENSOR) bnb_tensor_free(handle);
    if (kind == CODEBOOK) bnb_codebook_free(handle);
    if (kind == QUANTIZED) bnb_quantized_free(handle);
    if (kind == RECORDING) bnb_recording_free(handle);
    if (kind == CACHE) bnb_cache_free(handle);
}

/* A codebook with a name is one handle with many owners, so a freed one may well be alive. */
static bool is_named(void *codebook) {
    return codebook == world.nf4 || codebook == world.dynamic || codebook == common.nf4 || codebook == common.dynamic;
}

static void forget_gone(const void *handle) {
    for (size_t i = 0; i < gone_count; i++)
        if (gone[i].handle == handle) gone[i--] = gone[--gone_count];
}

static void lose(size_t at) {
    struct loose it = loose[at];
    loose[at] = loose[--loose_count];
    free_handle(it.kind, it.handle);
    bool elsewhere = it.kind == DEVICE || (it.kind == CODEBOOK && is_named(it.handle));
    for (size_t i = 0; i < loose_count; i++) elsewhere |= loose[i].handle == it.handle;
    if (!elsewhere && it.kind != CODEBOOK) gone[gone_count < GONE_MAX ? gone_count++ : below(GONE_MAX)] = it;
}

static void keep_loose(enum kind kind, void *handle, bool borrowed) {
    forget_gone(handle);
    if (loose_count == LOOSE_MAX) lose(below(LOOSE_MAX));
    loose[loose_count++] = (struct loose){kind, handle, borrowed};
}

/* One of the world's things of a kind. */
static void *of_world(const struct world *w, enum kind kind) {
    if (kind == DEVICE) return w->device;
    if (kind == CODEBOOK)
        return (bnb_codebook *[]){w->codes16, w->codes256, w->codes_other, w->nf4, w->dynamic}[below(5)];
    if (kind == QUANTIZED) return w->q[below(6)];
    if (kind == RECORDING) return w->recording;
    if (kind == CACHE) return w->cache[below(3)];
    bnb_tensor *const *threes[] = {w->x, w->w, w->dy, w->bias, w->weight, w->p, w->g};
    if (one_in(2)) return threes[below(sizeof threes / sizeof *threes)][below(3)];
    bnb_tensor *single[] = {w->indices,      w->a,        w->b,        w->row_stats, w->column_stats, w->x_column_stats,
                            w->sums,         w->outliers, w->state[0], w->state8[0], w->absmax[0],    w->state_twice,
                            w->state8_twice, w->unorm,    w->rows};
    return single[below(sizeof single / sizeof *single)];
}

static void *any_alive(enum kind kind, bool borrowed) {
    if (!alone && borrowed && one_in(2)) return of_world(&common, kind);
    for (size_t tries = 0; loose_count && tries < 4; tries++) {
        const struct loose *it = &loose[below(loose_count)];
        if (it->kind == kind && (borrowed || !it->borrowed)) return it->handle;
    }
    return of_world(&world, kind);
}

static void *any_gone(enum kind kind) {
    for (size_t i = 0; i < gone_count; i++)
        if (gone[i].kind == kind) return gone[i].handle;
    return NULL;
}

/* ── What no caller should give ─────────────────────────────────────────────────────────────────────────────────── */

static void *bad_handle(const struct parameter *parameter, bool frees) {
    enum kind other = (enum kind)((parameter->kind + 1 + below(4)) % (CACHE + 1));
    switch (below(8)) {
    case 0:
    case 1: return NULL;
    case 2: return alone ? any_gone(parameter->kind) : NULL;
    case 3: return alone ? any_gone(other) : NULL;
    case 4: return any_alive(other, true);
    }
    return frees ? NULL : any_alive(parameter->kind, parameter->borrowed);
}

static size_t bad_size(void) {
    static const size_t sizes[] = {0,
                                   1,
                                   2,
                                   3,
                                   31,
                                   32,
                                   33,
                                   63,
                                   64,
                                   65,
                                   255,
                                   256,
                                   257,
                                   4096,
                                   8192,
                                   65536,
                                   1u << 20,
                                   0x7fffffff,
                                   0x80000000,
                                   0xffffffff,
                                   1ull << 32,
                                   1ull << 47,
                                   1ull << 48,
                                   1ull << 53,
                                   1ull << 62,
                                   1ull << 63,
                                   SIZE_MAX,
                                   SIZE_MAX - 1,
                                   SIZE_MAX / 2,
                                   SIZE_MAX / 4 + 1,
                                   (1ull << 48) + 1,
                                   (1ull << 32) + 1,
                                   SIZE_MAX - 63};
    size_t              at = below(sizeof sizes / sizeof *sizes);
    return one_in(8) ? sizes[at] + below(5) - 2 : sizes[at];
}

static double bad_number(void) {
    static const double numbers[] = {0,     -0.0,   1,    -1,      0.5,    1e-45, 1e-38, 1e38,
                                     -1e38, 3.4e38, 1e39, DBL_MAX, 5e-324, 1e300, 127,   6};
    switch (below(6)) {
    case 0: return NAN;
    case 1: return INFINITY;
    case 2: return -INFINITY;
    }
    return numbers[below(sizeof numbers / sizeof *numbers)];
}

static const char *bad_text(void) {
    static const char *const texts[] = {"",    "cpu",     "metal",       "cuda",     "auto", "nf4",
                                        "NF4", "dynamic", "%s%n%99999d", "\xff\xfe", "nf4 "};
    if (one_in(12)) return NULL;
    if (!one_in(6)) return texts[below(sizeof texts / sizeof *texts)];
    char  *text = scratch(5000);
    size_t length = below(4999);
    for (size_t i = 0; i < length; i++) text[i] = (char)(1 + below(255));
    text[length] = 0;
    return text;
}

static bnb_attention_options *bad_options(const bnb_attention_options *valid) {
    if (!valid || one_in(8)) return NULL;
    bnb_attention_options *o = scratch(sizeof *o);
    *o = *valid;
    ((double *)o)[below(sizeof *o / sizeof(double))] = bad_number();
    return o;
}

static bnb_hyperparameters *bad_hyperparameters(const bnb_hyperparameters *valid) {
    if (!valid || one_in(4)) return NULL;
    bnb_hyperparameters *h = scratch(sizeof *h);
    *h = *valid;
    ((double *)h)[below(sizeof *h / sizeof(double))] = bad_number();
    return h;
}

static int bad_member(int members) {
    int values[] = {-1, members, INT_MIN, INT_MAX, 255, 256, (int)below((size_t)members)};
    return values[below(sizeof values / sizeof *values)];
}

static void spoil(const struct entry *entry, int at, union arg *args) {
    const struct parameter *parameter = &entry->parameters[at];
    union arg              *arg = &args[at];
    switch (parameter->kind) {
    case DEVICE:
    case TENSOR:
    case CODEBOOK:
    case QUANTIZED:
    case RECORDING:
    case CACHE: arg->p = bad_handle(parameter, entry->frees); break;
    case SIZE: arg->n = bad_size(); break;
    case BYTES: arg->n = one_in(2) ? bad_size() : arg->n + below(9) - 4; break;
    case U32: arg->u = one_in(2) ? (uint32_t)bad_size() : (uint32_t)below(40); break;
    case I32: arg->i = one_in(2) ? (int32_t)bad_size() : (int32_t)below(40) - 20; break;
    case F32: arg->f = (float)bad_number(); break;
    case F64: arg->d = bad_number(); break;
    case TEXT: arg->p = (void *)bad_text(); break;
    case ATTENTION_OPTIONS: arg->p = bad_options(arg->p); break;
    case HYPERPARAMETERS: arg->p = bad_hyperparameters(arg->p); break;
    case ENUM: arg->i = bad_member(parameter->members); break;
    case MEMORY: arg->p = one_in(2) ? NULL : arg->p; break;
    default: broken("a parameter of a kind that is not known");
    }
}

/* The memory that a call names is there, however long the call says it is: more than that is never taken. */
static void match_memory(const struct entry *entry, const union arg *valid, union arg *args) {
    for (int i = 0; i + 1 < entry->arity; i++) {
        if (entry->parameters[i].kind != MEMORY || entry->parameters[i + 1].kind != BYTES || !args[i].p) continue;
        size_t bytes = args[i + 1].n;
        if (bytes == valid[i + 1].n) continue; /* what the recipe gave, which may have to be read */
        args[i].p = scratch(bytes <= 16u << 20 ? bytes : 1);
    }
}

/* Fills one of the world's own tensors with anything at all: NaN, infinities, indices of nothing. */
static void spoil_contents(void) {
    static const size_t sizes[] = {4, 2, 2, 1, 1, 4};
    bnb_tensor         *tensor = of_world(&world, TENSOR);
    size_t              bytes = bnb_tensor_rows(tensor) * bnb_tensor_columns(tensor) * sizes[bnb_tensor_dtype(tensor)];
    uint8_t            *data = scratch(bytes);
    if (one_in(3)) memset(data, one_in(2) ? 0xff : 0x7f, bytes);
    if (one_in(3) &&
        bnb_tensor_read(tensor, data, bytes) == BNB_OK) { /* one element of strange bits among sound ones */
        static const uint16_t strange[] = {0x7c00, 0x7c01, 0xfdff, 0x7e00, 0x7f80,
                                           0x7f81, 0xffbf, 0x8000, 0x0001, 0x7bff};
        size_t                size = sizes[bnb_tensor_dtype(tensor)], at = below(bytes / size) * size;
        uint16_t              bits = strange[below(sizeof strange / sizeof *strange)];
        memcpy(data + at + (size < 2 ? 0 : size - 2), &bits, size < 2 ? 1 : 2);
    }
    if (bnb_tensor_write(tensor, data, bytes) != BNB_OK) broken("tensor_write: %s", bnb_last_error());
}

/* ── One call ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static void describe(const struct entry *entry, const union arg *args) {
    size_t length = (size_t)snprintf(note, NOTE_BYTES, "%s(", entry->name);
    for (int i = 0; i < entry->arity && length < NOTE_BYTES - 100; i++) {
        char                    text[80];
        const struct parameter *parameter = &entry->parameters[i];
        if (parameter->kind == SIZE || parameter->kind == BYTES)
            snprintf(text, sizeof text, "%zu", args[i].n);
        else if (parameter->kind == U32)
            snprintf(text, sizeof text, "%u", args[i].u);
        else if (parameter->kind == I32 || parameter->kind == ENUM)
            snprintf(text, sizeof text, "%d", args[i].i);
        else if (parameter->kind == F32)
            snprintf(text, sizeof text, "%g", (double)args[i].f);
        else if (parameter->kind == F64)
            snprintf(text, sizeof text, "%g", args[i].d);
        else if (parameter->kind == TEXT)
            snprintf(text, sizeof text, "%.40s", args[i].p ? (char *)args[i].p : "NULL");
        else
            snprintf(text, sizeof text, "%p", args[i].p);
        length += (size_t)snprintf(note + length, NOTE_BYTES - length, "%s%s", i ? ", " : "", text);
    }
    snprintf(note + length, NOTE_BYTES - length, ")");
}

/* The sentence of the failure before the call. */
static _Thread_local char marker[256];

static void mark(void) {
    bnb_codebook_named("a failure that is known again");
    snprintf(marker, sizeof marker, "%s", bnb_last_error());
}

/* A failure says so: a status, and a sentence of its own. */
static bnb_status expect_failure(void) {
    bnb_status  status = bnb_last_status();
    const char *sentence = bnb_last_error();
    if (status <= BNB_OK || status > BNB_DEVICE_LOST) broken("it failed with status %d", (int)status);
    if (!*sentence || !strcmp(sentence, marker)) broken("it failed without a sentence");
    return status;
}

static size_t bytes_of(const bnb_tensor *tensor) {
    static const size_t sizes[] = {4, 2, 2, 1, 1, 4};
    size_t              rows = bnb_tensor_rows(tensor), columns = bnb_tensor_columns(tensor);
    bnb_dtype           dtype = bnb_tensor_dtype(tensor);
    if (!rows || !columns || dtype > BNB_I32) broken("the result is %d [%zu, %zu]", (int)dtype, rows, columns);
    return rows * columns * sizes[dtype];
}

/* Every byte of a result can be read, and none decides on what was never written: valgrind sees to that. */
static void read_whole(bnb_tensor *tensor) {
    size_t   bytes = bytes_of(tensor);
    uint8_t *data = scratch(bytes), all = 0;
    if (bnb_tensor_read(tensor, data, bytes) != BNB_OK) {
        if (strstr(bnb_last_error(), "was queued has failed"))
            return; /* such as a row that is none, found in its turn */
        broken("the result can't be read: %s", bnb_last_error());
    }
    for (size_t i = 0; i < bytes; i++) all ^= data[i];
    if (all == 0xa5) note[0] = note[0]; /* a decision */
}

static bool is_borrowed(const struct entry *entry, const union arg *args) {
    if (alone || !entry->views) return false;
    for (int i = 0; i < entry->arity; i++) {
        if (!is_handle(entry->parameters[i].kind)) continue;
        for (size_t l = 0; l < loose_count; l++)
            if (loose[l].handle == args[i].p && !loose[l].borrowed) return false;
    }
    return true;
}

static void check_text(const char *text) {
    if (text && strlen(text) > 1 << 20) broken("the text has no end");
}

static bnb_status check_result(const struct entry *entry, const union arg *args, union arg result) {
    switch (entry->returns) {
    case DEVICE:
    case TENSOR:
    case CODEBOOK:
    case QUANTIZED:
    case RECORDING:
    case CACHE:
        if (!result.p) return expect_failure();
        if (entry->returns == TENSOR) read_whole(result.p);
        if (entry->returns != DEVICE) keep_loose(entry->returns, result.p, is_borrowed(entry, args));
        return BNB_OK;
    case STATUS:
        if (result.i && expect_failure() != (bnb_status)result.i) broken("it gave status %d", result.i);
        return (bnb_status)result.i;
    case MEMORY: /* of the tensor that was given: its bytes are there */
        if (!result.p) return expect_failure();
        for (size_t i = bytes_of(args[0].p); i-- > 0;) (void)((volatile uint8_t *)result.p)[i];
        return BNB_OK;
    case TEXT: check_text(result.p); return BNB_OK;
    case ADDRESS:
        ((void (*)(void *, void *))result.p)(NULL, alone && one_in(2) ? any_gone((enum kind)below(CACHE + 1)) : NULL);
        ((void (*)(void *, void *))result.p)(NULL, made_tensor());
        return BNB_OK;
    default: return BNB_OK;
    }
}

static void run_call(size_t which, struct tally *tally) {
    const struct entry *entry = &entries[which];
    union arg           args[ARGS_MAX] = {};
    entry->valid(args);
    union arg sound[ARGS_MAX];
    memcpy(sound, args, sizeof sound);
    void  *to_free = entry->frees ? args[0].p : NULL;
    size_t spoilt = entry->arity && !one_in(3) ? 1 + below(one_in(3) ? 3 : 1) : 0;
    for (size_t i = 0; i < spoilt; i++) spoil(entry, (int)below((size_t)entry->arity), args);
    match_memory(entry, sound, args);
    describe(entry, args);
    mark();
    if (chance_is_guided() && one_in(4)) hook_fail_at((int64_t)below(8));
    union arg result = call_entry(which, args);
    hook_fail_at(-1);
    bnb_status status = check_result(entry, args, result);
    if (to_free && args[0].p != to_free)
        free_handle(entry->parameters[0].kind, to_free);
    else if (to_free && entry->parameters[0].kind != CODEBOOK)
        gone[gone_count < GONE_MAX ? gone_count++ : below(GONE_MAX)] =
            (struct loose){entry->parameters[0].kind, to_free, false};
    tally->calls++;
    if (status == BNB_OK)
        tally->ok++;
    else
        tally->failed[status]++;
    scratch_free();
}

/* ── Many calls ─────────────────────────────────────────────────────────────────────────────────────────────────── */

static void expect_nothing_left(void) {
    if (!alone) return;
    bnb_device *device = bnb_device_open(getenv("FAULTS_DEVICE") ? getenv("FAULTS_DEVICE") : "cpu");
    bnb_device_wait(device); /* what is queued keeps its memory */
    double left = bnb_device_counter(device, BNB_COUNTER_BYTES);
    /* Named codebooks stay, once on a GPU, and so does memory that is kept for reuse. */
    if (left > (getenv("FAULTS_DEVICE") ? 1 << 16 : 0)) broken("%g bytes are in use after all was freed", left);
    if (!getenv("FAULTS_DEVICE") && hook_live() > 64)
        broken("%lld allocations are alive after all was freed", (long long)hook_live());
}

enum { CALLS_A_WORLD = 64 };

static void call_any(struct tally *tallies) {
    size_t which = below(entry_count);
    if (one_in(10)) spoil_contents();
    run_call(which, &tallies[which]);
}

static void end_world(void) {
    while (loose_count) lose(loose_count - 1);
    world_free();
    gone_count = 0; /* the next world may have handles in their places */
    expect_nothing_left();
}

void fuzz(uint64_t seed, uint64_t calls, bool is_alone, struct tally *tallies) {
    alone = is_alone;
    for (uint64_t done = 0; done < calls;) {
        chance_seed(seed * 1000003 + done / CALLS_A_WORLD);
        snprintf(note, NOTE_BYTES, "building world %llu", (unsigned long long)(done / CALLS_A_WORLD));
        world_build(false, false);
        for (int i = 0; i < CALLS_A_WORLD && done < calls; i++, done++) call_any(tallies);
        end_world();
    }
}

void guided(const uint8_t *data, size_t bytes, struct tally *tallies) {
    if (bytes < 2) return;
    alone = true;
    chance_seed(data[0]);
    world_build(data[1] & 1 || getenv("FAULTS_DEVICE"), false); /* a simulated GPU takes long for a large one */
    chance_guide(data + 2, bytes - 2);
    for (int i = 0; i < CALLS_A_WORLD && chance_is_guided(); i++) call_any(tallies);
    chance_guide(NULL, 0);
    end_world();
}

void fuzz_share(void) {
    chance_seed(1);
    world_build(false, false);
    common = world;
    world = (struct world){};
}
