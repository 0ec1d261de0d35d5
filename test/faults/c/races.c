/* Every entry while another thread rewrites all that its arguments hold: numbers may come out wrong, but every address
 * stays in its bounds. Buffers lie against pages that can't be touched (hook.c), so that one that doesn't ends the
 * process. */
#include "harness.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TARGETS_MAX = 32, CALLS_A_WORLD = 40, TRIES = 12 };

/* Memory that the other thread rewrites: a tensor's, or what was given by its address. */
struct target {
    bnb_tensor *tensor;  /* or NULL */
    bool        is_part; /* a view of a quantised matrix, made for this */
    void       *memory;
    size_t      bytes;
    uint8_t    *sound, *hostile;
};

static struct target targets[TARGETS_MAX];
static size_t        target_count;
static atomic_bool   stop;

static void write_target(const struct target *to, const uint8_t *from) {
    if (to->tensor)
        bnb_tensor_write(to->tensor, from, to->bytes);
    else
        memcpy(to->memory, from, to->bytes);
}

/* Sound and hostile contents by turns: what was checked as one is used as the other. */
static void *rewrite(void *) {
    while (!atomic_load_explicit(&stop, memory_order_relaxed))
        for (int turn = 0; turn < 2; turn++)
            for (size_t i = 0; i < target_count; i++)
                write_target(&targets[i], turn ? targets[i].sound : targets[i].hostile);
    return NULL;
}

/* ── What is rewritten ──────────────────────────────────────────────────────────────────────────────────────────── */

static void aim(struct target target) {
    if (target_count == TARGETS_MAX) broken("too many targets");
    target.sound = scratch(target.bytes);
    target.hostile = scratch(target.bytes); /* any bits */
    if (target.tensor)
        bnb_tensor_read(target.tensor, target.sound, target.bytes);
    else
        memcpy(target.sound, target.memory, target.bytes);
    switch (below(4)) {
    case 0: memset(target.hostile, 0x7f, target.bytes); break; /* large and finite, or NaN */
    case 1: memset(target.hostile, one_in(2) ? 0x4b : 0xff, target.bytes); break;
    }
    targets[target_count++] = target;
}

static void aim_at_tensor(bnb_tensor *tensor, bool is_part) {
    static const size_t sizes[] = {4, 2, 2, 1, 1, 4};
    if (!tensor) return;
    for (size_t i = 0; i < target_count; i++)
        if (targets[i].tensor == tensor) return;
    aim((struct target){.tensor = tensor,
                        .is_part = is_part,
                        .bytes =
                            bnb_tensor_rows(tensor) * bnb_tensor_columns(tensor) * sizes[bnb_tensor_dtype(tensor)]});
}

/* Values of codebooks are copies; the other parts are the matrix's own memory. */
static void aim_at_quantized(bnb_quantized *q) {
    aim_at_tensor(bnb_quantized_part(q, BNB_PART_CODES), true);
    aim_at_tensor(bnb_quantized_part(q, BNB_PART_ABSMAX), true);
    aim_at_tensor(bnb_quantized_part(q, BNB_PART_NESTED_ABSMAX), true);
}

/* Another thread may turn numbers of the optimizer on and off, among them those that say what is looked at. */
static void aim_at_hyperparameters(bnb_hyperparameters *h) {
    aim((struct target){.memory = h, .bytes = sizeof *h});
    bnb_hyperparameters *other = (bnb_hyperparameters *)targets[target_count - 1].hostile;
    *other = *h;
    other->max_unorm = h->max_unorm > 0 ? 0 : 0.1;
    other->step = 1e9;
}

static void aim_at(const struct entry *entry, union arg *args) {
    for (int i = 0; i < entry->arity; i++) {
        if (!args[i].p) continue;
        switch (entry->parameters[i].kind) {
        case TENSOR: aim_at_tensor(args[i].p, false); break;
        case QUANTIZED: aim_at_quantized(args[i].p); break;
        case HYPERPARAMETERS: aim_at_hyperparameters(args[i].p); break;
        case MEMORY:
            if (i + 1 < entry->arity && entry->parameters[i + 1].kind == BYTES)
                aim((struct target){.memory = args[i].p, .bytes = args[i + 1].n});
            break;
        default: break;
        }
    }
}

static void release_targets(void) {
    for (size_t i = 0; i < target_count; i++) {
        write_target(&targets[i], targets[i].sound);
        if (targets[i].is_part) bnb_tensor_free(targets[i].tensor);
    }
    target_count = 0;
    scratch_free();
}

/* ── Calls ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool is_raced(const struct entry *entry) {
    return !entry->frees && entry->arity && entry->returns != ADDRESS && strcmp(entry->name, "bnb_last_error");
}

static void race(size_t which, struct tally *tally) {
    const struct entry *entry = &entries[which];
    union arg           args[ARGS_MAX] = {};
    entry->valid(args);
    aim_at(entry, args);
    atomic_store(&stop, false);
    pthread_t thread;
    if (pthread_create(&thread, NULL, rewrite, NULL)) broken("no thread can be made");
    for (int i = 0; i < TRIES; i++) {
        bnb_codebook_named("a failure that is known again");
        union arg  result = call_entry(which, args);
        bool       failed = entry->returns == STATUS ? result.i != BNB_OK : is_handle(entry->returns) && !result.p;
        bnb_status status = failed ? bnb_last_status() : BNB_OK;
        if (failed && (status <= BNB_OK || status > BNB_DEVICE_LOST)) broken("it failed with status %d", (int)status);
        if (entry->returns == TENSOR) bnb_tensor_free(result.p);
        if (entry->returns == CODEBOOK) bnb_codebook_free(result.p);
        if (entry->returns == QUANTIZED) bnb_quantized_free(result.p);
        if (entry->returns == RECORDING) bnb_recording_free(result.p);
        tally->calls++;
        if (status == BNB_OK)
            tally->ok++;
        else
            tally->failed[status]++;
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    release_targets();
}

void races(uint64_t seed, uint64_t calls, struct tally *tallies) {
    hook_guard(true);
    for (uint64_t done = 0; done < calls;) {
        chance_seed(seed * 1000003 + done);
        world_build(false, false);
        for (int i = 0; i < CALLS_A_WORLD && done < calls; i++) {
            size_t which = below(entry_count);
            if (!is_raced(&entries[which])) continue;
            snprintf(note, NOTE_BYTES, "%s, raced; world %llu, m %zu, k %zu, n %zu, block %zu", entries[which].name,
                     (unsigned long long)(seed * 1000003 + done), world.m, world.k, world.n, world.block);
            race(which, &tallies[which]);
            done += TRIES;
        }
        world_free();
    }
}
