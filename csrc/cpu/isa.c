/* One instruction set's forms. Compiled once for each, with -DISA=<name> and that set enabled, as a single unit: its table
 * is all that the rest of the library sees. */
#include <stdatomic.h>

#include "../internal.h"
#include "simd.h"

#include "quantize.c"
#include "dequantize.c"
#include "cast.c"
#include "optimizer.c"
#include "matmul_panel.c"
#include "matmul_vector.c"
#include "matmul.c"
#include "matmul_backward.c"
#include "embedding.c"

#define TEXT(name) #name
#define NAME_TEXT(name) TEXT(name)
#define JOIN(prefix, name) prefix##name
#define TABLE(name) JOIN(cpu_forms_, name)

const struct cpu_forms TABLE(ISA) = {NAME_TEXT(ISA), quantize, dequantize, cast, optimizer, embedding, matmul, matmul_backward};
