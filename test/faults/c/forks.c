/* A process that forks while its other threads are anywhere in the library: each child can use the CPU, and ends. */
#define _GNU_SOURCE
#include "harness.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BUSY_THREADS = 3, CALLS_A_CHILD = 12, SECONDS_MAX = 20 };

static atomic_bool stop;

/* Takes every lock of the library again and again: handles, memory that is kept, names, opening, and the pool. */
static void *keep_busy(void *argument) {
    bnb_device *device = argument;
    while (!atomic_load(&stop)) {
        bnb_tensor *small = bnb_tensor_zeros(device, BNB_F32, 1, 8),
                   *large = bnb_tensor_zeros(device, BNB_F32, 64, 1024);
        bnb_codebook *codebook = bnb_codebook_named("nf4");
        bnb_device_open("cpu");
        bnb_device_fallbacks(device);
        bnb_tensor_free(bnb_cast(large, BNB_F16));
        bnb_quantized_free(bnb_quantize(small, codebook, 64, 0, BNB_SCALES_ABSMAX, NULL));
        bnb_codebook_free(codebook);
        bnb_tensor_free(large);
        bnb_tensor_free(small);
    }
    return NULL;
}

static bool is_tried(const struct entry *entry) { return !entry->frees && entry->returns != ADDRESS; }

static void use(uint64_t seed) {
    chance_seed(seed);
    world_build(true, false);
    for (int i = 0; i < CALLS_A_CHILD; i++) {
        size_t    which = below(entry_count);
        union arg args[ARGS_MAX] = {};
        if (!is_tried(&entries[which])) continue;
        entries[which].valid(args);
        snprintf(note, NOTE_BYTES, "%s in a child", entries[which].name);
        union arg result = call_entry(which, args);
        if (is_handle(entries[which].returns) && !result.p) broken("it failed: %s", bnb_last_error());
        scratch_free();
    }
    world_free();
}

void forks(uint64_t seed, uint64_t children, struct tally *tallies) {
    bnb_device *device = bnb_device_open("cpu");
    pthread_t   threads[BUSY_THREADS];
    for (int i = 0; i < BUSY_THREADS; i++)
        if (pthread_create(&threads[i], NULL, keep_busy, device)) broken("no thread can be made");
    for (uint64_t child = 0; child < children; child++) {
        snprintf(note, NOTE_BYTES, "fork %llu of seed %llu", (unsigned long long)child, (unsigned long long)seed);
        usleep((unsigned)below(300));
        fflush(NULL);
        pid_t process = fork();
        if (process == 0) {
            alarm(SECONDS_MAX);
            use(seed + child);
            _exit(0);
        }
        int status = 0;
        if (process < 0 || waitpid(process, &status, 0) < 0) broken("no process can be made");
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) broken("child %llu hangs", (unsigned long long)child);
        if (status) broken("child %llu ended with status %#x", (unsigned long long)child, status);
        tallies[0].calls++, tallies[0].ok++;
    }
    atomic_store(&stop, true);
    for (int i = 0; i < BUSY_THREADS; i++) pthread_join(threads[i], NULL);
}

#ifdef GUIDED
int  __llvm_profile_write_file(void);
void __llvm_profile_set_filename(const char *name);

/* What a fork does to the library counts too, in a child that leaves its counters by itself. */
void fork_counted(uint64_t seed) {
    bnb_device_open("cpu"); /* from then on forks are watched */
    pid_t process = fork();
    if (process == 0) {
        char name[64];
        alarm(SECONDS_MAX);
        unsetenv("FAULTS_DEVICE"); /* no GPU is a child's */
        use(seed);
        snprintf(name, sizeof name, "child-%d.profraw", (int)getpid());
        __llvm_profile_set_filename(name);
        _exit(__llvm_profile_write_file());
    }
    int status = 0;
    if (process < 0 || waitpid(process, &status, 0) < 0 || status) broken("a child ended with status %#x", status);
}
#endif
