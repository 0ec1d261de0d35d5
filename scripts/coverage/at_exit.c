/* Bun ends a process by quick_exit on Linux, where the counters would be lost. One that has become another user may not
 * write them, and is not to complain of it. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <unistd.h>

int __llvm_profile_write_file(void);

static uid_t user;

static void write_counters(void) {
  if (geteuid() == user) __llvm_profile_write_file();
}

__attribute__((constructor)) static void watch(void) {
  user = geteuid();
  at_quick_exit(write_counters);
}
