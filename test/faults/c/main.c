/* The fault harness: faults fuzz|threads|allocations|races|forks <seed> <count>. Prints a line for each entry: its
 * name, calls, and how many succeeded and failed, by status; forks are counted on the first. What was under way stands
 * in the file that FAULTS_NOTE names. */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include "harness.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { THREADS = 4, SCRATCHES = 64 };

_Thread_local char *note;
static char        *notes;

void broken(const char *sentence, ...) {
    va_list values;
    va_start(values, sentence);
    fprintf(stderr, "broken: ");
    vfprintf(stderr, sentence, values);
    fprintf(stderr, "\nin %s\n", note);
    va_end(values);
    exit(1);
}

static _Thread_local void  *scratches[SCRATCHES];
static _Thread_local size_t scratch_count;

void *scratch(size_t bytes) {
    if (scratch_count == SCRATCHES) broken("too much scratch");
    uint8_t *memory = malloc(bytes ? bytes : 1);
    if (!memory) broken("no memory for the harness");
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t bits = chance();
        memcpy(memory + i, &bits, bytes - i < 8 ? bytes - i : 8);
    }
    return scratches[scratch_count++] = memory;
}

void scratch_free(void) {
    while (scratch_count) free(scratches[--scratch_count]);
}

bnb_recording *made_recording(void) {
    bnb_record(world.device);
    bnb_tensor_free(bnb_cast(world.x[below(3)], BNB_F16));
    return bnb_record_end();
}

bnb_tensor *made_tensor(void) { return bnb_tensor_zeros(world.device, BNB_F32, 1 + below(3), 1 + below(9)); }

/* A page a thread that outlives the process, where a file is named for it. */
static void open_notes(void) {
    const char *path = getenv("FAULTS_NOTE");
    int         file = path ? open(path, O_RDWR | O_CREAT | O_TRUNC, 0600) : -1;
    if (path && (file < 0 || ftruncate(file, (THREADS + 1) * NOTE_BYTES))) abort();
    notes = mmap(NULL, (THREADS + 1) * NOTE_BYTES, PROT_READ | PROT_WRITE,
                 path ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, file, 0);
    if (notes == MAP_FAILED) abort();
    note = notes;
}

static void print(const struct tally *tallies) {
    for (size_t i = 0; i < entry_count; i++) {
        const struct tally *t = &tallies[i];
        printf("%s %llu %llu", entries[i].name, (unsigned long long)t->calls, (unsigned long long)t->ok);
        for (int status = BNB_INVALID; status <= BNB_DEVICE_LOST; status++)
            printf(" %llu", (unsigned long long)t->failed[status]);
        printf("\n");
    }
}

struct worker {
    uint64_t      seed, calls;
    int           number;
    struct tally *tallies;
};

static void *work(void *argument) {
    const struct worker *worker = argument;
    note = notes + (1 + worker->number) * NOTE_BYTES;
    fuzz(worker->seed, worker->calls, false, worker->tallies);
    return NULL;
}

static void threads(uint64_t seed, uint64_t calls, struct tally *tallies) {
    pthread_t     ids[THREADS];
    struct worker workers[THREADS];
    fuzz_share();
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){seed + (uint64_t)i, calls / THREADS, i, calloc(entry_count, sizeof *tallies)};
        if (pthread_create(&ids[i], NULL, work, &workers[i])) broken("no thread can be made");
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(ids[i], NULL);
        for (size_t entry = 0; entry < entry_count; entry++) {
            tallies[entry].calls += workers[i].tallies[entry].calls;
            tallies[entry].ok += workers[i].tallies[entry].ok;
            for (int s = 0; s < 5; s++) tallies[entry].failed[s] += workers[i].tallies[entry].failed[s];
        }
        free(workers[i].tallies);
    }
}

#ifdef GUIDED /* libFuzzer has the main function */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static struct tally *tallies;
    if (!tallies) {
        open_notes();
        tallies = calloc(entry_count, sizeof *tallies);
    }
    guided(data, bytes, tallies);
    static bool forked;
    if (!forked) fork_counted(bytes);
    forked = true;
    return 0;
}
#else
int main(int count, char **arguments) {
    if (count != 4) return 2;
    open_notes();
    uint64_t      seed = strtoull(arguments[2], NULL, 10), number = strtoull(arguments[3], NULL, 10);
    struct tally *tallies = calloc(entry_count, sizeof *tallies);
    if (!strcmp(arguments[1], "fuzz"))
        fuzz(seed, number, true, tallies);
    else if (!strcmp(arguments[1], "threads"))
        threads(seed, number, tallies);
    else if (!strcmp(arguments[1], "allocations"))
        allocations(seed, number, tallies);
    else if (!strcmp(arguments[1], "races"))
        races(seed, number, tallies);
    else if (!strcmp(arguments[1], "forks"))
        forks(seed, number, tallies);
    else
        return 2;
    print(tallies);
    free(tallies);
    return 0;
}
#endif
