/* One instruction set's forms. Compiled once for each, with -DISA=<name> and that set enabled, as a single unit: its
 * table is all that the rest of the library sees. */
#include <stdatomic.h>

#include "forms.h"
#include "pool.h"
#include "simd.h"

#include "quantize-inl.h"
#include "cast-inl.h"
#include "kbits-inl.h"
#include "codes-inl.h"
#include "scales-inl.h"
#include "dequantize-inl.h"
#include "matmul_round-inl.h"
#include "matmul_panel-inl.h"
#include "runs-inl.h"
#include "matmul_vector-inl.h"
#include "matmul_vector_int-inl.h"
#include "matmul_vector8-inl.h"
#include "matmul_vector_codes-inl.h"
#include "matmul_strips-inl.h"
#include "matmul_lanes-inl.h"
#include "matmul-inl.h"
#include "matmul_backward-inl.h"
#include "embedding-inl.h"
#include "optimizer-inl.h"
#include "rms_norm-inl.h"
#include "activate-inl.h"
#include "elementwise-inl.h"
#include "attention-inl.h"
#include "int8_quantize-inl.h"
#include "int8_matmul-inl.h"

#define TEXT(name)         #name
#define NAME_TEXT(name)    TEXT(name)
#define JOIN(prefix, name) prefix##name
#define TABLE(name)        JOIN(cpu_forms_, name)

const struct cpu_forms TABLE(ISA) = {
    .isa = NAME_TEXT(ISA),
    .quantize = quantize,
    .scales = scales,
    .dequantize = dequantize,
    .cast = cast,
    .unary = unary_form,
    .binary = binary_form,
    .softmax = softmax_form,
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
