/* Device memory in the order of the stream, and copies to and from it: a few bytes go along with their command, more by
 * way of pinned memory, which all threads fill with large ones. */
#include "cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* So many bytes out of pageable memory have been taken when the call returns, and wait for nothing ("API
 * synchronization behavior" in CUDA's documentation). For what is pinned a copy engine would be started. */
enum { TAKEN_MOST = 64 << 10 };
enum { STAGE_BYTES = 16 << 20, STAGE_FROM = 8 << 20, STAGE_ALIGNMENT = 256, PIECE = 256 << 10 };

/* ── Allocating ─────────────────────────────────────────────────────────────────────────────────────────────────── */

static size_t pool_attribute(const struct gpu *gpu, int attribute) {
    uint64_t value = 0;
    return libcuda.cuMemPoolGetAttribute(gpu->pool, attribute, &value) == CUDA_SUCCESS ? (size_t)value : 0;
}

static bnb_status no_room(struct gpu *gpu, size_t bytes) {
    size_t available = 0, total = 0;
    libcuda.cuMemGetInfo_v2(&available, &total);
    return fail(BNB_OUT_OF_MEMORY,
                "%zu bytes can't be had on %s: this process has %zu in use, and of %zu in all %zu are free; free "
                "tensors that are no "
                "longer used, or end other processes on it",
                bytes, gpu->name, pool_attribute(gpu, POOL_USED), total ? total : gpu->total, available);
}

/* Where there is no room, all work is waited for and what the pool keeps is given back, once. */
static CUresult allocate(struct gpu *gpu, CUdeviceptr *at, size_t bytes) {
    CUresult result = libcuda.cuMemAllocAsync(at, bytes, cuda_stream(gpu));
    if (result != CUDA_ERROR_OUT_OF_MEMORY) return result;
    result = libcuda.cuStreamSynchronize(gpu->stream);
    if (result == CUDA_SUCCESS) result = libcuda.cuMemPoolTrimTo(gpu->pool, 0);
    return result == CUDA_SUCCESS ? libcuda.cuMemAllocAsync(at, bytes, cuda_stream(gpu)) : result;
}

void *cuda_alloc_within(struct gpu *gpu, size_t bytes) {
    struct memory *memory = calloc(1, sizeof *memory);
    if (!memory) return refuse(BNB_OUT_OF_MEMORY, "the host has no memory left");
    memory->bytes = bytes ? bytes : 1;
    CUresult result = allocate(gpu, &memory->at, memory->bytes);
    if (result == CUDA_SUCCESS) return memory;
    free(memory);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        no_room(gpu, bytes);
    else
        cuda_failed(gpu, result, "an allocation");
    return NULL;
}

void *cuda_alloc(void *gpu, size_t bytes) {
    void *memory = cuda_enter(gpu) ? cuda_alloc_within(gpu, bytes) : NULL;
    cuda_leave();
    return memory;
}

void cuda_free(void *on, void *freed) {
    struct gpu    *gpu = on;
    struct memory *memory = freed;
    if (!memory) return;
    if (cuda_enter(gpu))
        libcuda.cuMemFreeAsync(memory->at, cuda_stream(gpu)); /* with its context, memory is gone already */
    cuda_leave();
    free(memory);
}

/* In a graph it is memory that all graphs share, where that is enough: what is left there is read before more is left,
 * as launches run in order but for what they read of weights. */
void *cuda_scratch(struct gpu *gpu, size_t bytes) {
    return cuda_capture(gpu) && bytes <= SCRATCH_BYTES ? gpu->scratch : cuda_alloc(gpu, bytes);
}

void cuda_leave_scratch(struct gpu *gpu, void *memory) {
    if (memory != gpu->scratch) cuda_free(gpu, memory);
}

size_t cuda_cached(void *gpu) {
    size_t reserved = 0, used = 0;
    if (cuda_enter(gpu)) reserved = pool_attribute(gpu, POOL_RESERVED), used = pool_attribute(gpu, POOL_USED);
    cuda_leave();
    return reserved > used ? reserved - used : 0;
}

/* What no process has, and what this one has and keeps. */
size_t cuda_room(void *gpu) {
    size_t available = 0, total = 0;
    if (cuda_enter(gpu)) libcuda.cuMemGetInfo_v2(&available, &total);
    cuda_leave();
    return available + cuda_cached(gpu);
}

/* ── Copying ────────────────────────────────────────────────────────────────────────────────────────────────────── */

struct copy {
    char       *to;
    const char *from;
    size_t      bytes;
};

static void copy_pieces(const void *argument, size_t first, size_t last) {
    const struct copy *copy = argument;
    size_t             from = first * PIECE, to = last * PIECE < copy->bytes ? last * PIECE : copy->bytes;
    memcpy(copy->to + from, copy->from + from, to - from);
}

static void copy_on_host(void *to, const void *from, size_t bytes) {
    parallel_for(ceil_div(bytes, PIECE), 4, copy_pieces, &(struct copy){to, from, bytes});
}

/* False where there is no pinned memory to be had: then the driver's own way must do. */
static bool has_stage(struct stage *stage) {
    if (stage->memory) return true;
    void *memory = NULL;
    if (!stage->done && libcuda.cuEventCreate(&stage->done, EVENT_NO_TIMING)) return false;
    if (libcuda.cuMemAllocHost_v2(&memory, STAGE_BYTES)) return false;
    stage->memory = memory;
    return true;
}

static bool has_stages(struct gpu *gpu) {
    bool has = true;
    for (int i = 0; i < STAGES; i++) has = has && has_stage(&gpu->stages[i]);
    return has;
}

/* Where the next so many bytes of small writes go; NULL where there is no pinned memory, or a wait has failed. A stage
 * is used again when the copies out of it are done, which began before the other one was filled. */
static char *take_staged(struct gpu *gpu, size_t bytes, CUresult *result) {
    struct stage *stage = &gpu->stages[gpu->stage];
    if (bytes > STAGE_BYTES - stage->used) {
        stage = &gpu->stages[(gpu->stage + 1) % STAGES];
        if (!has_stage(stage)) return NULL;
        if ((*result = libcuda.cuEventSynchronize(stage->done))) return NULL;
        gpu->stage = (gpu->stage + 1) % STAGES;
        stage->used = 0;
    }
    if (!has_stage(stage)) return NULL;
    char *at = stage->memory + stage->used;
    stage->used += ceil_div(bytes, STAGE_ALIGNMENT) * STAGE_ALIGNMENT;
    return at;
}

/* Nobody waits for its copy. */
static CUresult write_later(struct gpu *gpu, CUdeviceptr to, char *staged, const void *from, size_t bytes) {
    copy_on_host(staged, from, bytes);
    CUresult result = libcuda.cuMemcpyHtoDAsync_v2(to, staged, bytes, gpu->stream);
    if (result == CUDA_SUCCESS) result = libcuda.cuEventRecord(gpu->stages[gpu->stage].done, gpu->stream);
    return result;
}

static size_t part_of(size_t bytes, size_t done) { return bytes - done < STAGE_BYTES ? bytes - done : STAGE_BYTES; }

/* One stage is filled while the other's copy is under way. */
static CUresult write_staged(struct gpu *gpu, CUdeviceptr to, const char *from, size_t bytes) {
    CUresult result = CUDA_SUCCESS;
    for (size_t done = 0, turn = 0; result == CUDA_SUCCESS && done < bytes; done += STAGE_BYTES, turn++) {
        struct stage *stage = &gpu->stages[turn % STAGES];
        result = libcuda.cuEventSynchronize(stage->done); /* of the last round, or of small writes */
        if (result != CUDA_SUCCESS) break;
        copy_on_host(stage->memory, from + done, part_of(bytes, done));
        result = libcuda.cuMemcpyHtoDAsync_v2(to + done, stage->memory, part_of(bytes, done), gpu->stream);
        if (result == CUDA_SUCCESS) result = libcuda.cuEventRecord(stage->done, gpu->stream);
    }
    return result;
}

static CUresult read_staged(struct gpu *gpu, char *to, CUdeviceptr from, size_t bytes) {
    CUresult result = CUDA_SUCCESS;
    size_t   parts = ceil_div(bytes, STAGE_BYTES);
    for (size_t turn = 0; result == CUDA_SUCCESS && turn < parts + 1; turn++) {
        if (turn < parts) { /* the next part is under way while the last is copied */
            struct stage *stage = &gpu->stages[turn % STAGES];
            size_t        done = turn * STAGE_BYTES;
            result = libcuda.cuMemcpyDtoHAsync_v2(stage->memory, from + done, part_of(bytes, done), gpu->stream);
            if (result == CUDA_SUCCESS) result = libcuda.cuEventRecord(stage->done, gpu->stream);
        }
        if (!turn || result != CUDA_SUCCESS) continue;
        struct stage *stage = &gpu->stages[(turn - 1) % STAGES];
        size_t        done = (turn - 1) * STAGE_BYTES;
        result = libcuda.cuEventSynchronize(stage->done);
        if (result == CUDA_SUCCESS) copy_on_host(to + done, stage->memory, part_of(bytes, done));
    }
    return result;
}

static CUresult write_now(struct gpu *gpu, CUdeviceptr to, const void *from, size_t bytes) {
    CUresult result = bytes >= STAGE_FROM && has_stages(gpu)
                          ? write_staged(gpu, to, from, bytes)
                          : libcuda.cuMemcpyHtoDAsync_v2(to, from, bytes, gpu->stream);
    if (result == CUDA_SUCCESS) result = libcuda.cuStreamSynchronize(gpu->stream); /* `from` is the caller's again */
    if (result == CUDA_SUCCESS) cuda_note_done(gpu, gpu->launches);
    return result;
}

static CUresult write(struct gpu *gpu, CUdeviceptr to, const void *from, size_t bytes) {
    CUresult result = CUDA_SUCCESS;
    gpu->after_other = true;
    if (bytes <= TAKEN_MOST) return libcuda.cuMemcpyHtoDAsync_v2(to, from, bytes, gpu->stream);
    char *staged = bytes < STAGE_FROM ? take_staged(gpu, bytes, &result) : NULL;
    if (staged) return write_later(gpu, to, staged, from, bytes);
    return result == CUDA_SUCCESS ? write_now(gpu, to, from, bytes) : result;
}

bnb_status cuda_write(void *on, void *given, size_t offset, const void *from, size_t bytes) {
    struct gpu    *gpu = on;
    struct memory *memory = given;
    bnb_status     status = cuda_enter(gpu) ? BNB_OK : bnb_last_status();
    if (status == BNB_OK && bytes) {
        CUresult result = write(gpu, memory->at + offset, from, bytes);
        if (result != CUDA_SUCCESS) status = cuda_failed(gpu, result, "a copy to the GPU");
    }
    cuda_leave();
    return status;
}

bnb_status cuda_read(void *on, void *given, size_t offset, void *to, size_t bytes) {
    struct gpu    *gpu = on;
    struct memory *memory = given;
    CUresult       result = CUDA_SUCCESS;
    bnb_status     status = cuda_enter(gpu) ? BNB_OK : bnb_last_status();
    if (status == BNB_OK && bytes) {
        CUdeviceptr from = memory->at + offset;
        if (bytes >= STAGE_FROM && has_stages(gpu))
            result = read_staged(gpu, to, from, bytes);
        else
            result = libcuda.cuMemcpyDtoHAsync_v2(to, from, bytes, gpu->stream);
        if (result == CUDA_SUCCESS) result = libcuda.cuStreamSynchronize(gpu->stream);
        if (result == CUDA_SUCCESS)
            cuda_note_done(gpu, gpu->launches);
        else
            status = cuda_failed(gpu, result, "a copy from the GPU");
    }
    cuda_leave();
    return status;
}

bnb_status cuda_copy(void *on, void *written, size_t to_offset, void *read, size_t from_offset, size_t bytes) {
    struct gpu          *gpu = on;
    struct memory       *to = written;
    const struct memory *from = read;
    bnb_status           status = cuda_enter(gpu) ? BNB_OK : bnb_last_status();
    if (status == BNB_OK && bytes) {
        CUdeviceptr at = to->at + to_offset;
        CUresult    result = from ? libcuda.cuMemcpyDtoDAsync_v2(at, from->at + from_offset, bytes, gpu->stream)
                                  : libcuda.cuMemsetD8Async(at, 0, bytes, gpu->stream);
        gpu->after_other = true;
        if (result != CUDA_SUCCESS) status = cuda_failed(gpu, result, "a copy within the GPU");
    }
    cuda_leave();
    return status;
}
