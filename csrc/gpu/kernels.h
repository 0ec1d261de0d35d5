/* The text of metal/, embedded, as a GPU driver compiles it at run time. */
#ifndef BNB_KERNELS_H
#define BNB_KERNELS_H

struct kernel_source {
    const char *name; /* NULL past the last */
    const char *text;
};

/* What every family sees before its own text, in order; the name is a file's in metal/. */
extern const struct kernel_source kernel_headers[];

/* One library each; the name is the stem of metal/<name>.metal. */
extern const struct kernel_source kernel_families[];

#endif
