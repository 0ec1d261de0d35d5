/* The fake's modules and launches: a text of PTX says of which family and kernel it is and what its constants are, and
 * the simulator runs that kernel's Metal. What the driver patched is read back out of the text. */
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../../metal/runtime/simulator.h"

enum {
    NOWHERE = 1 << 16,
    CONSTANTS = 10,
    PARAMETERS = 32,
    ERROR_JIT = 218,
    ERROR_NOT_FOUND = 500,
    ERROR_NOT_SUPPORTED = 801
};

struct CUmod_st {
    char                family[64], kernel[64];
    uint32_t            constants[CONSTANTS];
    unsigned            threads_most;
    size_t              args_bytes; /* of parameter 0 where it is a struct, or 0 */
    unsigned            parameters;
    bool                waits, waits_first; /* for the launch before: at all, and before all else */
    struct sim_library *code;
};

struct CUfunc_st {
    struct CUmod_st  *module;
    const sim_kernel *kernel;
    unsigned          shared_most;
};

/* ── Simulated code ─────────────────────────────────────────────────────────────────────────────────────────────── */

/* Translated and compiled once for a family. */
static struct sim_library *code_of(const char *family) {
    static struct known {
        char                family[64];
        struct sim_library *code;
    } known[128];
    struct known *place = known;
    while (place->code && strcmp(place->family, family)) place++;
    if (place->code) return place->code;

    const char *mode = getenv("BNB_SIM"), *bun = getenv("BNB_SIM_BUN");
    char        command[4096], path[4096] = "";
    snprintf(command, sizeof command, "cd '%s' && '%s' test/cuda/host/compile.ts '%s' '%s'", SIM_ROOT,
             bun ? bun : "bun", family, mode ? mode : "fast");
    FILE *pipe = popen(command, "r");
    if (!pipe) violation("popen: %s", command);
    size_t length = fread(path, 1, sizeof path - 1, pipe);
    if (pclose(pipe)) violation("%s could not be compiled for the simulator: %s", family, path);
    path[strcspn(path, "\n")] = 0;
    struct sim_library *code = length ? sim_library_open(path) : NULL;
    if (!code) violation("%s: %s", family, sim_errors());
    snprintf(place->family, sizeof place->family, "%s", family);
    return place->code = code;
}

/* ── Modules ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Reads what the text says; false where it is not a text of ours, whole and patched. */
static bool parse(struct CUmod_st *module, const char *text) {
    int length = 0;
    if (sscanf(text, "// %63s %63s constants%n", module->family, module->kernel, &length) != 2 || !length) return false;
    const char *at = text + length;
    for (int i = 0; i < CONSTANTS; i++) module->constants[i] = (uint32_t)strtoul(at, (char **)&at, 10);
    if (*at != '\n' || strstr(text, "BNB")) return false;
    const char *threads = strstr(text, "\n.maxntid ");
    if (!threads || sscanf(threads, "\n.maxntid %u", &module->threads_most) != 1) return false;
    const char *entry = strstr(text, ".entry "), *close = entry ? strstr(entry, "\n)") : NULL;
    if (!entry || !close) return false;
    for (const char *p = entry; (p = strstr(p, ".param ")) && p < close; p++) {
        if (!module->parameters++) {
            const char *size = strchr(p, '[');
            if (size && size < strchr(p, '\n')) module->args_bytes = strtoul(size + 1, NULL, 10);
        }
    }
    const char *body = strstr(close, "\n{\n");
    const char  first[] = "griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n";
    module->waits = strstr(text, "griddepcontrol.wait;");
    module->waits_first = body && !strncmp(body + 3, first, sizeof first - 1);
    if (module->waits && (faults.capability < 90 || !strstr(text, "\n.target sm_90"))) return false;
    return module->parameters <= PARAMETERS;
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, int *options, void **values) {
    CUresult result = enter("cuModuleLoadDataEx");
    if (result) return leave(result);
    counters.compiles++;
    if (strikes(&faults.fail_compile)) {
        for (unsigned i = 0; i < count; i++)
            if (options[i] == JIT_ERROR_LOG)
                strcpy(values[i], "ptxas injected, line 7; error: this fault was asked for");
        return leave(ERROR_JIT);
    }
    if (strstr(image, "\n.target sm_90a") && faults.capability != 90) return leave(ERROR_JIT);
    *module = calloc(1, sizeof **module);
    if (!*module || !parse(*module, image))
        violation("cuModuleLoadDataEx: a text that is not ours, or not patched: %.200s", (const char *)image);
    (*module)->code = code_of((*module)->family);
    return leave(CUDA_SUCCESS);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    CUresult result = enter("cuModuleGetFunction");
    if (result) return leave(result);
    if (strncmp(name, "bnb_", 4) || strcmp(name + 4, module->kernel)) return leave(ERROR_NOT_FOUND);
    const sim_kernel *kernel = sim_library_kernel(module->code, module->kernel);
    if (!kernel) return leave(ERROR_NOT_FOUND);
    *function = calloc(1, sizeof **function);
    **function = (struct CUfunc_st){module, kernel, 48 << 10};
    return leave(CUDA_SUCCESS);
}

CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction function) {
    CUresult result = enter("cuFuncGetAttribute");
    if (attribute != FUNCTION_THREADS_MOST) violation("cuFuncGetAttribute: %d", attribute);
    return *value = (int)function->module->threads_most, leave(result);
}

CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    CUresult result = enter("cuFuncSetAttribute");
    if (attribute != FUNCTION_SHARED_MOST) violation("cuFuncSetAttribute: %d", attribute);
    if (value > SIM_MOST_THREADGROUP_BYTES) return leave(1);
    function->shared_most = (unsigned)value;
    return leave(result);
}

/* ── Matrices whose tiles are brought ───────────────────────────────────────────────────────────────────────────── */

/* What the simulator's nv_tensor is (test/metal/runtime/hopper.h). */
struct described {
    const void *at;
    uint64_t    columns, rows, pitch;
    uint32_t    size, box_columns, box_rows, turns;
};

/* Halves 64 by 64 with lines of 128 bytes, or bytes 32 by 128 with lines of 32. */
static bool is_taken(int type, const unsigned *box, int swizzle) {
    if (type == TENSOR_U16) return box[0] == 64 && box[1] == 64 && swizzle == TENSOR_SWIZZLE_128;
    return type == TENSOR_U8 && box[0] == 32 && box[1] == 128 && swizzle == TENSOR_SWIZZLE_32;
}

CUresult cuTensorMapEncodeTiled(struct tensor_map *map, int type, unsigned rank, void *at, const uint64_t *sides,
                                const uint64_t *pitches, const unsigned *box, const unsigned *steps, int interleave,
                                int swizzle, int promotion, int outside) {
    CUresult result = enter("cuTensorMapEncodeTiled");
    if (result || !faults.tensors) return leave(result ? result : ERROR_NOT_SUPPORTED);
    if (rank != 2 || !is_taken(type, box, swizzle) || steps[0] != 1 || steps[1] != 1 || interleave ||
        promotion != TENSOR_L2_128 || outside)
        violation("cuTensorMapEncodeTiled: type %d, box %u × %u: not what kernels take", type, box[0], box[1]);
    unsigned size = type == TENSOR_U16 ? 2 : 1;
    if ((uintptr_t)map % 64 || (uintptr_t)at % 16 || pitches[0] % 16 || pitches[0] < size * sides[0] || !sides[0] ||
        !sides[1] || sides[0] > UINT32_MAX || sides[1] > UINT32_MAX)
        return leave(1);
    find_allocation((CUdeviceptr)(uintptr_t)at, pitches[0] * (sides[1] - 1) + size * sides[0],
                    "cuTensorMapEncodeTiled");
    *(struct described *)map = (struct described){at,   sides[0], sides[1], pitches[0],
                                                  size, box[0],   box[1],   swizzle == TENSOR_SWIZZLE_128 ? 7 : 1};
    return leave(CUDA_SUCCESS);
}

/* ── Launches ───────────────────────────────────────────────────────────────────────────────────────────────────── */

struct launched {
    CUfunction         function;
    char               args[4096];
    CUdeviceptr        at[PARAMETERS]; /* by index of the buffer */
    struct allocation *of[PARAMETERS]; /* where that lies; memory that is freed after the launch lives until then */
    unsigned           groups[3], threads, shared_bytes;
    bool               overlaps;
};

/* A launch that overlaps may begin while all since the last one that does not are under way: what those write it may
 * read behind its wait alone. */
static long last_whole;
static bool after_graph, after_copy;

void order_graph(void) {
    last_whole = ++counters.launches;
    after_graph = true;
}

void order_copy(void) { after_copy = true; }

void all_is_done(void) {
    last_whole = counters.launches + 1;
    after_copy = false;
}

void launch_begins(struct launched *launch) {
    bool     overlaps = launch->overlaps;
    uint32_t buffers = sim_kernel_buffers(launch->function->kernel);
    counters.launches++;
    if (overlaps && !launch->function->module->waits)
        violation("%s: overlaps, and waits for nothing", launch->function->module->kernel);
    for (uint32_t i = 2; overlaps && !launch->function->module->waits_first && i <= 9; i++)
        if (i != 7 && i != 8 && launch->of[i] && launch->of[i]->written >= last_whole) /* bias and y come later */
            violation("%s: begins by reading buffer %u, which a launch that is under way writes",
                      launch->function->module->kernel, i);
    if (!overlaps) last_whole = counters.launches;
    counters.overlapped += overlaps;
    for (uint32_t i = 1; i < PARAMETERS; i++)
        if (launch->of[i] && buffers >> i & 1 && !sim_kernel_read_only(launch->function->kernel, i))
            launch->of[i]->written = counters.launches;
}

static void find_memory(struct launched *launch) {
    for (unsigned i = 1; i < PARAMETERS; i++) /* as it is now, not when it runs */
        if (sim_kernel_buffers(launch->function->kernel) >> i & 1 && launch->at[i])
            launch->of[i] = find_allocation(launch->at[i], 0, launch->function->module->kernel);
}

struct launched *launch_new(CUfunction function, const struct launch_config *config, void **parameters) {
    const struct CUmod_st *module = function->module;
    struct launched       *launch = calloc(1, sizeof *launch);
    if (!launch) violation("the host has no memory left");
    *launch = (struct launched){.function = function,
                                .groups = {config->groups[0], config->groups[1], config->groups[2]},
                                .threads = config->threads[0],
                                .shared_bytes = config->shared_bytes};
    if (config->attribute_count) launch->overlaps = config->attributes->value.allowed;
    if (module->args_bytes > sizeof launch->args)
        violation("%s: %zu bytes of arguments", module->kernel, module->args_bytes);
    if (module->args_bytes) memcpy(launch->args, parameters[0], module->args_bytes);
    unsigned first = module->args_bytes ? 1 : 0;
    for (unsigned i = first; i < module->parameters; i++) launch->at[i + 1 - first] = *(CUdeviceptr *)parameters[i];
    find_memory(launch);
    return launch;
}

/* Memory of the graph's own is freed in it, and there all the same. */
struct launched *launch_again(const struct launched *launch) {
    struct launched *again = malloc(sizeof *again);
    if (!again) violation("the host has no memory left");
    *again = *launch;
    for (unsigned i = 1; i < PARAMETERS; i++)
        if (launch->of[i] && launch->at[i] && !is_of_graph(launch->at[i]))
            again->of[i] = find_allocation(launch->at[i], 0, launch->function->module->kernel);
    return again;
}

CUresult cuLaunchKernelEx(const struct launch_config *config, CUfunction function, void **parameters, void **) {
    CUresult result = enter("cuLaunchKernel");
    if (result) return leave(result);
    if (strikes(&faults.fail_launch)) return leave(CUDA_ERROR_OUT_OF_RESOURCES);
    const unsigned *groups = config->groups, *threads = config->threads;
    const char     *name = function->module->kernel;
    if (threads[1] != 1 || threads[2] != 1 || !threads[0] || threads[0] > function->module->threads_most ||
        !groups[0] || !groups[1] || !groups[2] || groups[1] > 65535 || groups[2] > 65535)
        violation("%s: %u × %u × %u threads in %u × %u × %u groups", name, threads[0], threads[1], threads[2],
                  groups[0], groups[1], groups[2]);
    if (config->shared_bytes > function->shared_most)
        violation("%s: %u bytes of shared memory, of which it asked for %u", name, config->shared_bytes,
                  function->shared_most);
    for (unsigned i = 0; i < config->attribute_count; i++)
        if (config->attributes[i].id != LAUNCH_PROGRAMMATIC)
            violation("%s: the attribute %d", name, config->attributes[i].id);
    struct launched *launch = launch_new(function, config, parameters);
    bool             captured = captured_by(config->stream);
    if (launch->overlaps && captured && faults.version < 12030)
        violation("%s: overlaps in a graph of CUDA before 12.3", name);
    if (launch->overlaps && !captured && (after_graph || after_copy)) violation("%s: overlaps a graph or a copy", name);
    if (!captured) launch_begins(launch), after_graph = after_copy = false;
    enqueue(config->stream, (struct command){.kind = LAUNCH, .launch = launch});
    return leave(CUDA_SUCCESS);
}

CUresult cuLaunchKernel(CUfunction function, unsigned groups_x, unsigned groups_y, unsigned groups_z,
                        unsigned threads_x, unsigned threads_y, unsigned threads_z, unsigned shared_bytes,
                        CUstream stream, void **parameters, void **extra) {
    const struct launch_config config = {.groups = {groups_x, groups_y, groups_z},
                                         .threads = {threads_x, threads_y, threads_z},
                                         .shared_bytes = shared_bytes,
                                         .stream = stream};
    return cuLaunchKernelEx(&config, function, parameters, extra);
}

/* What stands where a kernel has a place and no memory was given: it must not be touched. */
static void *nowhere(void) {
    static void *memory;
    if (!memory) memory = mmap(NULL, NOWHERE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory;
}

static int bind(sim_launch *sim, const struct launched *launch) {
    const struct CUmod_st *module = launch->function->module;
    uint32_t               buffers = sim_kernel_buffers(launch->function->kernel);
    int                    status = buffers & 1 ? sim_launch_bytes(sim, 0, launch->args, module->args_bytes) : 0;
    for (unsigned i = 1; i < PARAMETERS && !status; i++) {
        if (buffers >> i & 1 && !launch->of[i]) status = sim_launch_buffer(sim, i, nowhere(), NOWHERE, 0);
        if (!launch->of[i]) continue;
        char *at = (char *)(uintptr_t)launch->at[i];
        status = sim_launch_buffer(sim, i, at, (size_t)(launch->of[i]->memory + launch->of[i]->bytes - at), 0);
    }
    for (uint32_t i = 0; i < CONSTANTS && !status; i++)
        if (sim_library_constant_bytes(module->code, i))
            status = sim_launch_constant(sim, i, &module->constants[i], sizeof *module->constants);
    if (!status && launch->shared_bytes && sim_kernel_threadgroup_arguments(launch->function->kernel) & 1)
        status = sim_launch_threadgroup(sim, 0, launch->shared_bytes);
    return status;
}

static int simulate(const struct launched *launch) {
    const char *seed = getenv("BNB_SIM_SEED");
    sim_launch *sim = sim_launch_new(launch->function->kernel);
    int         errors = sim ? bind(sim, launch) : -1;
    if (!errors)
        errors = sim_run(sim, launch->groups[0], launch->groups[1], launch->groups[2], launch->threads, 1, 1,
                         seed ? (uint32_t)strtoul(seed, NULL, 10) : 0, SIM_RUN_LARGE);
    sim_launch_free(sim);
    return errors;
}

CUresult launch_run(struct launched *launch) {
    counters.runs++;
    if (strikes(&faults.lose))
        lose(CUDA_ERROR_ILLEGAL_ADDRESS, "this fault was asked for");
    else if (simulate(launch))
        lose(CUDA_ERROR_ILLEGAL_ADDRESS, sim_errors());
    free(launch);
    return is_lost();
}
