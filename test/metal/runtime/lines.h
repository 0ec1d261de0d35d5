// Owns the interface of the line table reader.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct line_row {
    uint64_t    address;
    const char *file; // NULL where a sequence ends
    uint32_t    line;
} line_row;

// Decodes the .debug_line section (DWARF 4) of a shared library; *rows is sorted by address and stays allocated.
size_t lines_read(const char *path, line_row **rows);
// The row that covers an address relative to the library's start, or NULL.
const line_row *lines_find(const line_row *rows, size_t count, uint64_t address);
