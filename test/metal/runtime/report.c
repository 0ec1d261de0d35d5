// Owns the text of what went wrong: one line an error, each said once, with its place in the .metal source.
#include "internal.h"
#include "lines.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ERRORS = 50, MAX_TEXT = 64 << 10 };

static char   text[MAX_TEXT];
static size_t used;
static int    count;
static struct {
    const char *kind;
    const void *where;
    const char *file;
    uint32_t    line;
} seen[MAX_ERRORS];

void report_clear(void) {
    count = 0;
    used = 0;
    text[0] = 0;
}

int report_count(void) { return count; }

const char *report_place(const void *where, char *place, size_t size) {
    sim_library *library = now.launch->kernel->library;
    if (!library->lines) library->line_count = lines_read(library->path, &library->lines);
    uint64_t        address = (uintptr_t)where - library->image_begin - 1; // a return address: the call is before it
    const line_row *row = lines_find(library->lines, library->line_count, address);
    if (row)
        snprintf(place, size, "%s:%u", row->file, row->line);
    else
        snprintf(place, size, "%s+0x%llx", library->path, (unsigned long long)address);
    return place;
}

static void append(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(text + used, MAX_TEXT - used, format, arguments);
    va_end(arguments);
    used += (size_t)written < MAX_TEXT - used ? (size_t)written : MAX_TEXT - used - 1;
}

void report(const char *kind, const void *where, const sim_site *site, const char *format, ...) {
    for (int i = 0; i < count; i++) {
        if (!strcmp(seen[i].kind, kind) && seen[i].where == where && seen[i].line == (site ? site->line : 0) &&
            seen[i].file == (site ? site->file : nullptr)) {
            return;
        }
    }
    if (count == MAX_ERRORS) return;
    seen[count].kind = kind;
    seen[count].where = where;
    seen[count].file = site ? site->file : nullptr;
    seen[count++].line = site ? site->line : 0;

    char place[512];
    if (site)
        append("%s:%u: ", site->file, site->line);
    else if (where)
        append("%s: ", report_place(where, place, sizeof place));
    append("%s: ", kind);
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(text + used, MAX_TEXT - used, format, arguments);
    va_end(arguments);
    used += (size_t)written < MAX_TEXT - used ? (size_t)written : MAX_TEXT - used - 1;
    append(" [kernel %s", now.launch->kernel->entry->name);
    const thread *one = threads_current();
    if (one) {
        const sim_u32 *inside = one->values + SIM_THREAD_POSITION_IN_THREADGROUP;
        append(", thread (%u, %u, %u) of threadgroup (%u, %u, %u)", inside[0], inside[1], inside[2], now.group[0],
               now.group[1], now.group[2]);
    }
    append("]\n");
}

int report_failure(const char *format, ...) {
    report_clear();
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(text, MAX_TEXT, format, arguments);
    va_end(arguments);
    used = (size_t)written < MAX_TEXT ? (size_t)written : MAX_TEXT - 1;
    return -1;
}

#pragma GCC visibility push(default)
const char            *sim_errors(void) { return text; }
#pragma GCC visibility pop
