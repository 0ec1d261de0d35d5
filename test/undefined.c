/* What clang's sanitizer of undefined behaviour calls where it finds some: the place and the kind, and the end. zig's
 * own takes twenty seconds of a core on a machine that has never made it, and the tests have no other use for it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* The data of every kind begins with it. */
struct place {
    const char *file;
    uint32_t    line, column;
};

#define FOUND(kind)                                                                                                    \
    void __ubsan_handle_##kind(const struct place *at);                                                                \
    void __ubsan_handle_##kind(const struct place *at) {                                                               \
        fprintf(stderr, "%s:%u:%u: undefined behaviour: %s\n", at->file, at->line, at->column, #kind);                 \
        abort();                                                                                                       \
    }

FOUND(add_overflow_abort)
FOUND(sub_overflow_abort)
FOUND(mul_overflow_abort)
FOUND(negate_overflow_abort)
FOUND(divrem_overflow_abort)
FOUND(shift_out_of_bounds_abort)
FOUND(out_of_bounds_abort)
FOUND(pointer_overflow_abort)
FOUND(type_mismatch_v1_abort)
FOUND(alignment_assumption_abort)
FOUND(float_cast_overflow_abort)
FOUND(load_invalid_value_abort)
FOUND(invalid_builtin_abort)
FOUND(vla_bound_not_positive_abort)
FOUND(function_type_mismatch_abort)
FOUND(nonnull_arg_abort)
FOUND(builtin_unreachable)
FOUND(missing_return)
