/* A kernel's text as the driver takes it, by itself: for test/cuda/text.test.ts. */
#define _GNU_SOURCE
#include "../../../csrc/gpu/cuda/cuda.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

/* With the constants 10, 11 and 12, and 256 threads. Behind what is read lies memory that can't be. To be freed. */
__attribute__((visibility("default"))) char *write_text(const char *text, size_t bytes, int capability, bool waits) {
    size_t room = (bytes + PAGE - 1) / PAGE * PAGE;
    char  *pages = mmap(NULL, room + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + room, PAGE, PROT_NONE)) abort();
    struct kernel kernel = {.text = pages + room - bytes, .bytes = bytes, .capability = capability};
    struct launch launch = {.constants = {10, 11, 12}, .constant_count = 3, .threads = 256};
    memcpy(pages + room - bytes, text, bytes);
    char *written = ptx_text(&kernel, &launch, waits);
    munmap(pages, room + PAGE);
    return written;
}

__attribute__((visibility("default"))) void free_text(char *text) { free(text); }
