/* One instruction set's forms. Compiled once for each, with -DISA=<name> and that set enabled, as a single unit: its
 * table is all that the rest of the library sees. */
#include <stdatomic.h>

#include "../internal.h"
#include "simd.h"

#include "quantize.c"
#include "cast.c"
#include "kbits.c"
#include "scales.c"
#include "dequantize.c"
#include "optimizer.c"
#include "matmul_round.c"
#include "matmul_panel.c"
#include "matmul_vector.c"
#include "matmul_vector_int.c"
#include "matmul_vector8.c"
#include "matmul_kbits.c"
#include "matmul_lanes.c"
#include "matmul.c"
#include "matmul_backward.c"
#include "embedding.c"
#include "rms_norm.c"
#include "activate.c"
#include "attention.c"
#include "int8_quantize.c"
#include "int8_matmul.c"

#define TEXT(name) #name
#define NAME_TEXT(name) TEXT(name)
#define JOIN(prefix, name) prefix##name
#define TABLE(name) JOIN(cpu_forms_, name)

const struct cpu_forms TABLE(ISA) = {
    .isa = NAME_TEXT(ISA),
    .quantize = quantize,
    .scales = scales,
    .dequantize = dequantize,
    .cast = cast,
    .optimizer = optimizer,
    .embedding = embedding,
    .rms_norm = rms_norm,
    .activate = activate,
    .attention = attention,
    .matmul = matmul,
    .matmul_backward = matmul_backward,
    .int8_outliers = int8_outliers,
    .int8_quantize = int8_quantize,
    .int8_dequantize = int8_dequantize,
    .int8_mm_dequant = int8_mm_dequant,
    .int8_matmul = int8_matmul,
};
