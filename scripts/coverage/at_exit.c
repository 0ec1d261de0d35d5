/* Bun ends a process by quick_exit on Linux, where the counters would be lost. */
#include <stdlib.h>

int __llvm_profile_write_file(void);

static void write_counters(void) { __llvm_profile_write_file(); }

__attribute__((constructor)) static void watch(void) { at_quick_exit(write_counters); }
