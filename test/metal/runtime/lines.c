// Owns the reading of a library's DWARF 4 line table, so that an address becomes a line of a .metal file.
#define _GNU_SOURCE
#include "lines.h"
#include <elf.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    const uint8_t *at, *end;
} cursor;

typedef struct {
    line_row *rows;
    size_t    count, capacity;
} table;

static uint64_t take(cursor *c, unsigned bytes) {
    uint64_t value = 0;
    if ((size_t)(c->end - c->at) < bytes) bytes = (unsigned)(c->end - c->at);
    memcpy(&value, c->at, bytes);
    c->at += bytes;
    return value;
}

static uint64_t take_uleb(cursor *c) {
    uint64_t value = 0;
    for (unsigned shift = 0; c->at < c->end && shift < 64; shift += 7) {
        uint8_t byte = *c->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (!(byte & 0x80)) break;
    }
    return value;
}

static int64_t take_sleb(cursor *c) {
    uint64_t value = 0;
    unsigned shift = 0;
    uint8_t  byte = 0x80;
    while (c->at < c->end && byte & 0x80) {
        byte = *c->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        shift += 7;
    }
    if (shift < 64 && byte & 0x40) value |= ~0ull << shift;
    return (int64_t)value;
}

static const char *take_string(cursor *c) {
    const char *text = (const char *)c->at;
    c->at += strnlen(text, (size_t)(c->end - c->at)) + 1;
    return text;
}

static void add_row(table *t, uint64_t address, const char *file, uint32_t line) {
    if (t->count == t->capacity) {
        size_t    capacity = t->capacity ? t->capacity * 2 : 1024;
        line_row *rows = realloc(t->rows, capacity * sizeof *rows);
        if (!rows) return;
        t->rows = rows;
        t->capacity = capacity;
    }
    t->rows[t->count++] = (line_row){address, file, line};
}

enum { MAX_FILES = 256 };

typedef struct {
    uint8_t        least_instruction, opcode_base, line_range;
    int8_t         line_base;
    const uint8_t *operands; // how many each standard opcode takes
    const char    *files[MAX_FILES];
    uint32_t       file_count;
} header;

// Opcodes that start with 0: end of a sequence, or a new address. Others are skipped by their length.
static void extended(cursor *c, header *h, table *t, uint64_t *address, uint64_t *file, uint64_t *line) {
    uint64_t       length = take_uleb(c);
    const uint8_t *next = c->at + length;
    uint8_t        opcode = (uint8_t)take(c, 1);
    if (opcode == 1) {
        add_row(t, *address, nullptr, 0);
        *address = 0;
        *file = *line = 1;
    } else if (opcode == 2) {
        *address = take(c, 8);
    } else if (opcode == 3 && h->file_count < MAX_FILES) {
        h->files[h->file_count++] = take_string(c);
    }
    c->at = next;
}

static void run_program(cursor c, header *h, table *t) {
    uint64_t address = 0, file = 1, line = 1;
    while (c.at < c.end) {
        uint8_t opcode = (uint8_t)take(&c, 1);
        bool    row = false;
        if (opcode >= h->opcode_base) {
            unsigned adjusted = opcode - h->opcode_base;
            address += adjusted / h->line_range * h->least_instruction;
            line += (uint64_t)(h->line_base + (int)(adjusted % h->line_range));
            row = true;
        } else if (opcode == 0) {
            extended(&c, h, t, &address, &file, &line);
        } else if (opcode == 1) {
            row = true;
        } else if (opcode == 2) {
            address += take_uleb(&c) * h->least_instruction;
        } else if (opcode == 3) {
            line += (uint64_t)take_sleb(&c);
        } else if (opcode == 4) {
            file = take_uleb(&c);
        } else if (opcode == 8) {
            address += (uint64_t)(255 - h->opcode_base) / h->line_range * h->least_instruction;
        } else if (opcode == 9) {
            address += take(&c, 2);
        } else {
            for (uint8_t i = 0; i < h->operands[opcode - 1]; i++) take_uleb(&c);
        }
        if (row) add_row(t, address, file >= 1 && file <= h->file_count ? h->files[file - 1] : "?", (uint32_t)line);
    }
}

static void read_unit(cursor *section, table *t) {
    uint64_t length = take(section, 4);
    cursor   unit = {section->at, section->at + length};
    section->at += length;
    if (unit.end > section->end || take(&unit, 2) != 4) return;
    header   h = {};
    uint64_t header_length = take(&unit, 4);
    cursor   program = {unit.at + header_length, unit.end};
    h.least_instruction = (uint8_t)take(&unit, 1);
    take(&unit, 2); // operations per instruction and the default of is_stmt matter to debuggers only
    h.line_base = (int8_t)take(&unit, 1);
    h.line_range = (uint8_t)take(&unit, 1);
    h.opcode_base = (uint8_t)take(&unit, 1);
    h.operands = unit.at;
    unit.at += h.opcode_base - 1;
    while (unit.at < unit.end && *unit.at) take_string(&unit); // directories
    unit.at++;
    while (unit.at < unit.end && *unit.at) {
        const char *name = take_string(&unit);
        if (h.file_count < MAX_FILES) h.files[h.file_count++] = name;
        for (int i = 0; i < 3; i++) take_uleb(&unit);
    }
    if (h.line_range) run_program(program, &h, t);
}

static int by_address(const void *a, const void *b) {
    const line_row *x = a, *y = b;
    if (x->address != y->address) return x->address < y->address ? -1 : 1;
    return (x->file != nullptr) - (y->file != nullptr); // where one sequence ends another may begin
}

size_t lines_read(const char *path, line_row **rows) {
    *rows = nullptr;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return 0;
    struct stat    info;
    const uint8_t *image = MAP_FAILED;
    if (!fstat(descriptor, &info)) image = mmap(nullptr, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    close(descriptor);
    if (image == MAP_FAILED) return 0;
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)image;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + elf->e_shoff);
    const char       *names = (const char *)image + sections[elf->e_shstrndx].sh_offset;
    table             t = {};
    for (int i = 0; i < elf->e_shnum; i++) {
        if (strcmp(names + sections[i].sh_name, ".debug_line")) continue;
        cursor section = {image + sections[i].sh_offset, image + sections[i].sh_offset + sections[i].sh_size};
        while (section.at < section.end) read_unit(&section, &t);
    }
    if (t.count) qsort(t.rows, t.count, sizeof *t.rows, by_address);
    *rows = t.rows;
    return t.count;
}

const line_row *lines_find(const line_row *rows, size_t count, uint64_t address) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (rows[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 && rows[low - 1].file ? &rows[low - 1] : nullptr;
}
