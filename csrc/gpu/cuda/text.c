/* A kernel's text as the driver takes it: numbers in full, a launch's constants in their places, and a wait in front
 * where one is due. */
#include "cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What texts count: labels, and registers of four kinds. Where a number is near the first of its kind in the last line
 * above that has one, the pack has the distance, with its sign (scripts/ptx.ts). */
static const char *const kinds[] = {"$L__BB0_", "%p", "%r", "%rd", "%rs"};

enum { KINDS = sizeof kinds / sizeof *kinds, DIGITS = 10 };

/* A text that is being written, and for each kind of number what distances are from, in this line and in the next. */
struct writing {
    const char *from, *end;
    char       *to;
    uint32_t    here[KINDS], next[KINDS];
    bool        met[KINDS]; /* in this line */
};

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool begins(const struct writing *w, const char *word) {
    size_t length = strlen(word);
    return length < (size_t)(w->end - w->from) && !memcmp(w->from, word, length);
}

/* Of which kind the number is that stands here; KINDS where there is none. */
static uint32_t kind_of(const struct writing *w) {
    uint32_t kind = 0;
    for (; kind < KINDS; kind++) {
        if (!begins(w, kinds[kind])) continue;
        char first = w->from[strlen(kinds[kind])];
        if (is_digit(first) || first == '+' || first == '-') break;
    }
    return kind;
}

static void copy(struct writing *w, size_t bytes) {
    memcpy(w->to, w->from, bytes);
    w->to += bytes;
    w->from += bytes;
}

static void write_number(struct writing *w, uint32_t kind) {
    copy(w, strlen(kinds[kind]));
    char     sign = *w->from;
    uint32_t number = 0; /* a damaged text's goes round, and the driver refuses it */
    if (!is_digit(sign)) w->from++;
    while (w->from < w->end && is_digit(*w->from)) number = number * 10 + (uint32_t)(*w->from++ - '0');
    if (sign == '+') number = w->here[kind] + number;
    if (sign == '-') number = w->here[kind] - number;
    if (!w->met[kind]) w->next[kind] = number;
    w->met[kind] = true;
    w->to += sprintf(w->to, "%u", number);
}

/* Writes a constant, of which those not given are 0, or the threads; false where neither's name stands here. */
static bool write_given(struct writing *w, const struct launch *launch) {
    static const char threads[] = "BNB_THREADS";
    uint32_t          value = launch->threads;
    if (!begins(w, "BNB")) return false;
    if (is_digit(w->from[3])) {
        uint32_t index = (uint32_t)(w->from[3] - '0');
        value = index < launch->constant_count ? launch->constants[index] : 0;
        w->from += 4;
    } else if (begins(w, threads)) {
        w->from += sizeof threads - 1;
    } else {
        return false;
    }
    w->to += sprintf(w->to, "%u", value);
    return true;
}

static void write_all(struct writing *w, const struct launch *launch) {
    while (w->from < w->end) {
        uint32_t kind = *w->from == '%' || *w->from == '$' ? kind_of(w) : KINDS;
        if (kind < KINDS) {
            write_number(w, kind);
        } else if (*w->from != 'B' || !write_given(w, launch)) {
            if (*w->from == '\n') {
                memcpy(w->here, w->next, sizeof w->here);
                memset(w->met, 0, sizeof w->met);
            }
            copy(w, 1);
        }
    }
    *w->to = 0;
}

static const char waiting[] = "\n{\ngriddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n";

/* Has a text that has room for it wait first, which PTX can say from version 7.8 on, for compute capability 9.0. */
static void make_wait(char *text, const struct kernel *kernel) {
    static const char version[] = ".version 7.8", target[] = ".target sm_90", body[] = "\n{\n";
    if (kernel->capability < 90) { /* as long as what was there */
        memcpy(strstr(text, ".version"), version, sizeof version - 1);
        memcpy(strstr(text, ".target"), target, sizeof target - 1);
    }
    char *at = strstr(text, body), *rest = at + sizeof body - 1;
    memmove(at + sizeof waiting - 1, rest, strlen(rest) + 1);
    memcpy(at, waiting, sizeof waiting - 1);
}

char *ptx_text(const struct kernel *kernel, const struct launch *launch, bool waits) {
    const char *text = kernel->text, *end = text + kernel->bytes;
    size_t      numbers = 0;
    for (const char *at = text; at < end; at++) numbers += *at == '%' || *at == '$' || *at == 'B';
    struct writing w = {.from = text, .end = end, .to = malloc(kernel->bytes + numbers * DIGITS + sizeof waiting)};
    char          *written = w.to;
    if (!written) return NULL;
    write_all(&w, launch);
    if (waits) make_wait(written, kernel);
    return written;
}
