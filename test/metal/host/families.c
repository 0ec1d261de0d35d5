/* The kernels of the host's tests, in the place of csrc/gpu/kernels.c. */
#include "../../../csrc/gpu/kernels.h"

#include <stddef.h>

static const char small[] = {
#embed "kernels/small.metal" suffix(, 0)
};
static const char broken[] = {
#embed "kernels/broken.metal" suffix(, 0)
};

const struct kernel_source kernel_headers[] = {{NULL, NULL}};
const struct kernel_source kernel_families[] = {{"small", small}, {"broken", broken}, {NULL, NULL}};
