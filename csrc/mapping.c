/* Bytes of files as memory: read into a buffer's own, or mapped in its place.
 *
 * A file that is cut short under its mapping, or whose disk is gone, has pages that can't be had: whoever looks at one
 * gets a SIGBUS, which ends the process. So there is a handler, once there is a mapping. It puts zeros in the place of
 * the whole mapping and marks it as torn, as libwayland does with the memory of its clients; what was computed of it is
 * refused (`mapping_intact`). Every other SIGBUS goes to whoever was asked for it before. */
#define _DEFAULT_SOURCE /* mmap, pread */
#define _DARWIN_C_SOURCE
#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

/* ── Files ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

bool file_has(const struct file_range *range, const char *function) {
    struct stat file;
    if (fstat(range->descriptor, &file) || !S_ISREG(file.st_mode))
        return fail(BNB_INVALID, "%s: descriptor is %d, expected an ordinary file's that is open for reading", function,
                    range->descriptor),
               false;
    size_t size = (size_t)file.st_size;
    if (range->offset <= size && range->bytes <= size - range->offset) return true;
    fail(BNB_INVALID,
         "%s: %s has %zu bytes, expected %zu from %zu on: it was replaced or cut short while it was open, so open it "
         "again",
         function, range->path, size, range->bytes, range->offset);
    return false;
}

bnb_status file_read(const struct file_range *range, size_t at, void *to, size_t count) {
    enum { MOST = 1 << 30 }; /* macOS reads no more than 2^31 - 1 bytes at once */
    for (size_t done = 0; done < count;) {
        size_t  part = count - done < MOST ? count - done : MOST;
        ssize_t got = pread(range->descriptor, (char *)to + done, part, (off_t)(range->offset + at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return fail(BNB_INVALID, "%s could not be read at byte %zu: %s", range->path, range->offset + at + done,
                        strerror(errno));
        if (!got)
            return fail(BNB_INVALID, "%s ended at byte %zu while it was read: open it again", range->path,
                        range->offset + at + done);
        done += (size_t)got;
    }
    return BNB_OK;
}

/* ── Pages that are gone ────────────────────────────────────────────────────────────────────────────────────────── */

/* All that there have ever been. A handler of signals walks through them, so that none is ever freed: one that has no
 * references left is given to the next file. */
static struct mapping *_Atomic mappings;

static struct sigaction before;

static struct mapping *mapping_at(size_t address) {
    for (struct mapping *m = mappings; m; m = m->next)
        if (address >= m->first && address < m->end) return m;
    return NULL;
}

static void *zeros(void *at, size_t bytes) {
    return mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANON, -1, 0);
}

static void on_bus_error(int signal, siginfo_t *info, void *context) {
    int             error = errno;
    struct mapping *m = mapping_at((size_t)info->si_addr);
    if (m) {
        m->torn = true;
        if (zeros(m->pages, m->page_bytes) != MAP_FAILED) {
            errno = error;
            return;
        }
    }
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(signal, info, context);
    else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)
        sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL); /* the next attempt ends the process */
    else
        before.sa_handler(signal);
}

static void handle_bus_errors(void) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGBUS, NULL, &before); /* known before the handler can run */
    sigaction(SIGBUS, &action, NULL);
}

/* ── Mappings ───────────────────────────────────────────────────────────────────────────────────────────────────── */

/* One that nobody has, with one reference and nothing mapped; NULL where there is no memory. */
static struct mapping *take(void) {
    for (struct mapping *m = mappings; m; m = m->next) {
        int none = 0;
        if (atomic_compare_exchange_strong(&m->refs, &none, 1)) return m;
    }
    enum { PAGE = 4096, AT_ONCE = PAGE / sizeof(struct mapping) };
    struct mapping *more = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (more == MAP_FAILED) return NULL;
    for (size_t i = 0; i + 1 < AT_ONCE; i++) more[i].next = &more[i + 1];
    more->refs = 1;
    struct mapping *last = &more[AT_ONCE - 1];
    last->next = mappings;
    while (!atomic_compare_exchange_weak(&mappings, &last->next, more)) {}
    return more;
}

static void give_back(struct mapping *m) {
    m->first = m->end = 0;
    if (m->pages) munmap(m->pages, m->span);
    free(m->path);
    m->pages = NULL, m->path = NULL;
    m->refs = 0; /* last: somebody may take it at once */
}

/* Room for all of it first, so that what lies behind the file's last page is ours, then the file over its beginning. */
static bool map(struct mapping *m, const struct file_range *range, bool writable) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    m->lead = range->offset % page;
    m->page_bytes = ceil_div(m->lead + range->bytes, page) * page;
    m->span = ceil_div(m->lead + range->bytes + READ_SLACK, page) * page;
    char *pages = mmap(NULL, m->span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) return false;
    m->pages = pages;
    int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    int flags = MAP_FIXED | (writable ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED);
    return mmap(pages, m->page_bytes, protection, flags, range->descriptor, (off_t)(range->offset - m->lead)) !=
           MAP_FAILED;
}

struct mapping *mapping_new(const struct file_range *range, bool writable) {
    static pthread_once_t handled = PTHREAD_ONCE_INIT;
    pthread_once(&handled, handle_bus_errors);
    struct mapping *m = take();
    if (!m) return NULL;
    m->torn = false;
    size_t length = strlen(range->path) + 1;
    m->path = malloc(length);
    if (!m->path || !map(m, range, writable)) {
        give_back(m);
        return NULL;
    }
    memcpy(m->path, range->path, length);
    m->first = (size_t)m->pages;
    m->end = m->first + m->page_bytes;
    return m;
}

struct mapping *mapping_share(struct mapping *mapping) {
    mapping->refs++;
    return mapping;
}

/* The last one unmaps before the reference goes: with 0 of them it would be another's. */
void mapping_release(struct mapping *mapping) {
    if (!mapping) return;
    int refs = mapping->refs;
    while (refs > 1 && !atomic_compare_exchange_weak(&mapping->refs, &refs, refs - 1)) {}
    if (refs == 1) give_back(mapping);
}

bnb_status mapping_intact(const struct mapping *mapping) {
    if (!mapping || !mapping->torn) return BNB_OK;
    return fail(BNB_INVALID,
                "%s was cut short, or could not be read any more, while a tensor was mapped to it: load the tensor "
                "again",
                mapping->path);
}
