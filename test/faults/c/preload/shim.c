/* Put before a process by LD_PRELOAD: at the FAULTS_AT-th call that makes files durable, moves or removes them, the process
 * is killed, or, with FAULTS_ACTION=full, the call finds the disk full. Prints how many calls there were, at exit. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static _Atomic int calls;

static int fails(void) {
    const char *at = getenv("FAULTS_AT"), *action = getenv("FAULTS_ACTION");
    if (!at || calls++ != atoi(at)) return 0;
    if (!action || strcmp(action, "full")) kill(getpid(), SIGKILL);
    errno = ENOSPC;
    return 1;
}

#define NEXT(name, ...) ((int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

int rename(const char *from, const char *to) { return fails() ? -1 : NEXT(rename, const char *, const char *)(from, to); }
int fsync(int file) { return fails() ? -1 : NEXT(fsync, int)(file); }
int mkdir(const char *path, mode_t mode) { return fails() ? -1 : NEXT(mkdir, const char *, mode_t)(path, mode); }

/* Removing makes room: a full disk does not hinder it. */
int unlink(const char *path) {
    const char *action = getenv("FAULTS_ACTION");
    if (!action || strcmp(action, "full")) fails();
    return NEXT(unlink, const char *)(path);
}
