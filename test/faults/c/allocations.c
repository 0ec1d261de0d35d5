/* Every entry with its nth allocation refused, for n = 0, 1, …, until it no longer makes that many: it says that memory
 * is out, leaks nothing, and succeeds when asked again. Each try is a process of its own, so that what is made once is
 * made anew. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum outcome { REFUSED = 40, DONE_WITHOUT, NOT_REACHED };

static void release(const struct entry *entry, union arg result) {
    if (entry->returns == TENSOR) bnb_tensor_free(result.p);
    if (entry->returns == CODEBOOK) bnb_codebook_free(result.p);
    if (entry->returns == QUANTIZED) bnb_quantized_free(result.p);
    if (entry->returns == RECORDING) bnb_recording_free(result.p);
    if (entry->returns == CACHE) bnb_cache_free(result.p);
}

static bool failed(const struct entry *entry, union arg result) {
    if (entry->returns == STATUS) return result.i != BNB_OK;
    return is_handle(entry->returns) && !result.p;
}

/* What is made once for the whole process, a named codebook, must be made by the entry that is tested. */
static bool is_cold(const struct entry *entry) {
    return !strcmp(entry->name, "bnb_codebook_named") || !strcmp(entry->name, "bnb_quantize");
}

/* What is queued keeps its memory until it is done. */
static int64_t settled_live(void) {
    bnb_device_wait(world.device);
    return hook_live();
}

static double bytes_in_use(void) {
    bnb_device_wait(world.device);
    return bnb_device_counter(world.device, BNB_COUNTER_BYTES);
}

/* What a call that succeeds leaves alive, having made it once for the process. */
static int64_t kept_by(size_t which, const union arg *args) {
    int64_t before = settled_live();
    release(&entries[which], call_entry(which, args));
    return settled_live() - before;
}

static int attempt(size_t which, uint64_t seed, int64_t nth) {
    const struct entry *entry = &entries[which];
    chance_seed(seed);
    world_build(true, is_cold(entry));
    union arg args[ARGS_MAX] = {};
    entry->valid(args);
    snprintf(note, NOTE_BYTES, "%s, allocation %lld refused", entry->name, (long long)nth);
    bnb_codebook_named("\1");
    int64_t live = settled_live();
    double  bytes = bytes_in_use();
    hook_fail_at(nth);
    union arg result = call_entry(which, args);
    bool      reached = hook_to_come() < 0;
    hook_fail_at(-1);
    if (!failed(entry, result)) return reached ? DONE_WITHOUT : NOT_REACHED;
    if (!reached) broken("the recipe fails: %s", bnb_last_error());
    if (bnb_last_status() != BNB_OUT_OF_MEMORY)
        broken("its status is %d, expected that memory is out: %s", (int)bnb_last_status(), bnb_last_error());
    if (entry->returns == STATUS && result.i != BNB_OUT_OF_MEMORY) broken("it gave status %d", result.i);
    if (strstr(bnb_last_error(), "\1")) broken("it failed without a sentence");
    if (bytes_in_use() != bytes) broken("%g bytes leaked", bytes_in_use() - bytes);
    int64_t left = settled_live() - live, first = kept_by(which, args), second = kept_by(which, args);
    if (second != 0) broken("each call leaves %lld allocations", (long long)second);
    if (left < 0 || (left > 0 && !is_cold(entry))) broken("%lld allocations leaked", (long long)left);
    if (left + first > 1) broken("%lld allocations stay of one that is made once", (long long)(left + first));
    return REFUSED;
}

void allocations(uint64_t seed, uint64_t rounds, struct tally *tallies) {
    for (uint64_t round = 0; round < rounds; round++)
        for (size_t which = 0; which < entry_count; which++)
            for (int64_t nth = 0, outcome = REFUSED; outcome != NOT_REACHED; nth++) {
                if (nth > 200) broken("%s makes no end of allocations", entries[which].name);
                fflush(NULL);
                pid_t child = fork();
                if (child == 0) _exit(attempt(which, seed + round * 7919 + which, nth));
                int status = 0;
                if (child < 0 || waitpid(child, &status, 0) < 0) broken("no process can be made");
                outcome = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
                if (outcome < REFUSED || outcome > NOT_REACHED) {
                    fprintf(stderr, "status %#x of the attempt at %s, allocation %lld, seed %llu\n", status,
                            entries[which].name, (long long)nth, (unsigned long long)(seed + round * 7919 + which));
                    exit(1);
                }
                tallies[which].calls++;
                if (outcome == REFUSED)
                    tallies[which].failed[BNB_OUT_OF_MEMORY]++;
                else
                    tallies[which].ok++;
            }
}
