/* The embedded text of metal/: a new family is an array here and a row. The build gives the folder as an embed path. */
#include "kernels.h"

#include <stddef.h>

static const char args_h[] = {
#embed <args.h> suffix(, 0)
};
static const char common_h[] = {
#embed <common.h> suffix(, 0)
};
static const char optimizer_rule_h[] = {
#embed <optimizer_rule.h> suffix(, 0)
};
static const char scales_rule_h[] = {
#embed <scales_rule.h> suffix(, 0)
};
static const char nested_rule_h[] = {
#embed <nested_rule.h> suffix(, 0)
};
static const char attention_rows_h[] = {
#embed <attention_rows.h> suffix(, 0)
};
static const char elementwise_rule_h[] = {
#embed <elementwise_rule.h> suffix(, 0)
};
static const char elementwise[] = {
#embed <elementwise.metal> suffix(, 0)
};
static const char transpose[] = {
#embed <transpose.metal> suffix(, 0)
};
static const char softmax[] = {
#embed <softmax.metal> suffix(, 0)
};
static const char quantize[] = {
#embed <quantize.metal> suffix(, 0)
};
static const char scales[] = {
#embed <scales.metal> suffix(, 0)
};
static const char dequantize[] = {
#embed <dequantize.metal> suffix(, 0)
};
static const char finite[] = {
#embed <finite.metal> suffix(, 0)
};
static const char nested[] = {
#embed <nested.metal> suffix(, 0)
};
static const char compare[] = {
#embed <compare.metal> suffix(, 0)
};
static const char optimizer[] = {
#embed <optimizer.metal> suffix(, 0)
};
static const char matmul_vector[] = {
#embed <matmul_vector.metal> suffix(, 0)
};
static const char matmul_tile[] = {
#embed <matmul_tile.metal> suffix(, 0)
};
static const char matmul_backward[] = {
#embed <matmul_backward.metal> suffix(, 0)
};
static const char embedding[] = {
#embed <embedding.metal> suffix(, 0)
};
static const char sort[] = {
#embed <sort.metal> suffix(, 0)
};
static const char layer_norm[] = {
#embed <layer_norm.metal> suffix(, 0)
};
static const char rms_norm[] = {
#embed <rms_norm.metal> suffix(, 0)
};
static const char activate[] = {
#embed <activate.metal> suffix(, 0)
};
static const char attention[] = {
#embed <attention.metal> suffix(, 0)
};
static const char topk[] = {
#embed <topk.metal> suffix(, 0)
};
static const char scatter_add[] = {
#embed <scatter_add.metal> suffix(, 0)
};
static const char int8_quantize[] = {
#embed <int8_quantize.metal> suffix(, 0)
};
static const char int8_matmul[] = {
#embed <int8_matmul.metal> suffix(, 0)
};

const struct kernel_source kernel_headers[] = {
    {"args.h", args_h},
    {"common.h", common_h},
    {"attention_rows.h", attention_rows_h},
    {"elementwise_rule.h", elementwise_rule_h},
    {"nested_rule.h", nested_rule_h},
    {"optimizer_rule.h", optimizer_rule_h},
    {"scales_rule.h", scales_rule_h},
    {NULL, NULL},
};

const struct kernel_source kernel_families[] = {
    {"elementwise", elementwise},
    {"softmax", softmax},
    {"transpose", transpose},
    {"quantize", quantize},
    {"scales", scales},
    {"dequantize", dequantize},
    {"finite", finite},
    {"nested", nested},
    {"compare", compare},
    {"optimizer", optimizer},
    {"matmul_vector", matmul_vector},
    {"matmul_tile", matmul_tile},
    {"matmul_backward", matmul_backward},
    {"embedding", embedding},
    {"sort", sort},
    {"layer_norm", layer_norm},
    {"rms_norm", rms_norm},
    {"activate", activate},
    {"attention", attention},
    {"topk", topk},
    {"scatter_add", scatter_add},
    {"int8_quantize", int8_quantize},
    {"int8_matmul", int8_matmul},
    {NULL, NULL},
};
