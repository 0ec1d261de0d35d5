/* Ranges that Nsight shows above kernels, under the operations' names: BNB_NVTX=1, or the path of NVIDIA's library. */
#include "cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    int (*push)(const char *name);
    int (*pop)(void);
} nvtx;

bool ranges_open(void) {
    const char *given = getenv("BNB_NVTX");
    if (!given || !*given || !strcmp(given, "0")) return true;
    const char *path = strcmp(given, "1") ? given : "libnvToolsExt.so.1";
    void       *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library) {
        *(void **)&nvtx.push = dlsym(library, "nvtxRangePushA");
        *(void **)&nvtx.pop = dlsym(library, "nvtxRangePop");
    }
    if (nvtx.push && nvtx.pop) return true;
    nvtx.push = NULL;
    fail(BNB_UNSUPPORTED,
         "CUDA is absent: BNB_NVTX is set, and %s %s; CUDA's toolkit has it up to version 12, so set BNB_NVTX to its "
         "path, or unset it",
         path, library ? "has no nvtxRangePushA and nvtxRangePop" : "was not found");
    return false;
}

void range_push(const struct launch *launch) {
    if (!nvtx.push) return;
    char text[256];
    snprintf(text, sizeof text, "%s/%s %u × %u × %u groups of %u, %zu bytes", launch->family, launch->kernel,
             launch->groups[0], launch->groups[1], launch->groups[2], launch->threads, launch->bytes_moved);
    nvtx.push(text);
}

void range_pop(void) {
    if (nvtx.push) nvtx.pop();
}
