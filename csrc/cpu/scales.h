/* What the plain loop and the forms of the search for scales have in common: a block, and what is known of it before
 * any scale is tried. */
#ifndef BNB_CPU_SCALES_H
#define BNB_CPU_SCALES_H

#include "forms.h"

#include "../../metal/scales_rule.h"

struct span {
    size_t begin, end;
    float  largest, magnitude; /* of all elements, and of those that weigh anything */
    float  unit, power;        /* what brings the magnitude to about 1, and back */
};

static inline float weight_at(const struct scales_job *job, size_t i) {
    return job->importance ? job->importance[i % job->args.columns] : 1;
}

/* Magnitudes are compared as integers, in which a NaN is above an infinity, and that above every number. */
static inline struct span span_of(const struct scales_job *job, size_t block) {
    size_t      elements = job->x.rows * job->x.columns;
    struct span span = {.begin = block * job->block, .end = elements};
    if (job->block < elements - span.begin) span.end = span.begin + job->block;
    uint32_t all = 0, weighed = 0;
    for (size_t i = span.begin; i < span.end; i++) {
        uint32_t magnitude = float_bits(element_of(&job->x, i)) & 0x7fffffff;
        if (magnitude > all) all = magnitude;
        if (magnitude > weighed && weight_at(job, i) > 0) weighed = magnitude;
    }
    span.largest = bits_float(all), span.magnitude = bits_float(weighed);
    uint32_t exponent = exponent_of(span.magnitude);
    span.unit = power_of(254 - exponent), span.power = power_of(exponent);
    return span;
}

#endif
