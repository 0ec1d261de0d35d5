/* Finding NVIDIA's driver, and saying in a sentence why it can't be had. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../internal.h"
#include "libcuda.h"

#define ABSENT(...) (fail(BNB_UNSUPPORTED, "CUDA is absent: " __VA_ARGS__), false)

/* The PTX of our kernels is of version 7.4, which CUDA 11.4 brought with driver 470. */
enum { VERSION_LEAST = 11040, DRIVER_LEAST = 470 };

struct libcuda libcuda;

const char *libcuda_error(CUresult result) {
    const char *text = NULL;
    return libcuda.cuGetErrorString && libcuda.cuGetErrorString(result, &text) == CUDA_SUCCESS && text
               ? text
               : "an unknown error";
}

/* ── The library ────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Where drivers lie that the loader does not look at by itself: under WSL, in containers, on NixOS. */
static const char *const folders[] = {
    "/usr/lib/wsl/lib",       "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib",
    "/run/opengl-driver/lib", "/usr/lib64/nvidia",
};

static void *open_library(void) {
    const char *given = getenv("BNB_CUDA_LIBRARY");
    if (given && *given) return dlopen(given, RTLD_NOW | RTLD_LOCAL);
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; !library && i < sizeof folders / sizeof *folders; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/libcuda.so.1", folders[i]);
        library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    return library;
}

static bool say_missing(void) {
#ifdef __APPLE__
    return ABSENT("NVIDIA has no driver for macOS; use the device \"metal\" or \"cpu\"");
#else
    const char *given = getenv("BNB_CUDA_LIBRARY"), *reason = dlerror();
    if (given && *given)
        return ABSENT("the library that BNB_CUDA_LIBRARY names could not be loaded: %s", reason ? reason : given);
    if (access("/proc/driver/nvidia/version", F_OK) == 0)
        return ABSENT("this machine has NVIDIA's kernel module, but its library libcuda.so.1 is not in this system or "
                      "container; start "
                      "the container with --gpus all, or use the device \"cpu\"");
    return ABSENT("there is no NVIDIA driver: libcuda.so.1 was not found; install the driver where there is an NVIDIA "
                  "GPU, or use the "
                  "device \"cpu\"");
#endif
}

static bool say_too_old(int version, const char *lacks) {
    return ABSENT(
        "the driver is for CUDA %d.%d%s%s, and %d.%d is needed; update it to %d or later, or use the device \"cpu\"",
        version / 1000, version % 1000 / 10, lacks ? " and lacks " : "", lacks ? lacks : "", VERSION_LEAST / 1000,
        VERSION_LEAST % 1000 / 10, DRIVER_LEAST);
}

/* The first function that is missing, or NULL. */
static const char *find_functions(void *library) {
    const char *missing = NULL;
#define FIND(name, parameters)                                                                                         \
    *(void **)&libcuda.name = dlsym(library, #name);                                                                   \
    if (!libcuda.name && !missing) missing = #name;
    CUDA_FUNCTIONS(FIND)
    const char *needed = missing;
    CUDA_FURTHER_FUNCTIONS(FIND)
#undef FIND
    return needed;
}

/* ── Starting ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool say_no_device(void) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (visible)
        return ABSENT("no GPU is visible, and CUDA_VISIBLE_DEVICES is \"%s\"; unset it, or use the device \"cpu\"",
                      visible);
    return ABSENT("NVIDIA's driver sees no GPU; a container needs --gpus all, a GPU in MIG mode an instance that "
                  "CUDA_VISIBLE_DEVICES "
                  "names; or use the device \"cpu\"");
}

static bool say_no_start(CUresult result) {
    if (result == CUDA_ERROR_NO_DEVICE) return say_no_device();
    if (result == CUDA_ERROR_DRIVER_MISMATCH)
        return ABSENT(
            "the kernel's part of NVIDIA's driver and its libraries are of different versions; restart the machine");
    if (result == CUDA_ERROR_SYSTEM_NOT_READY)
        return ABSENT("the system is not ready (%s): on machines with NVSwitch, nvidia-fabricmanager must run",
                      libcuda_error(result));
    if (access("/dev/nvidiactl", R_OK | W_OK) && errno == EACCES)
        return ABSENT(
            "this user may not open /dev/nvidiactl; add the user to the group that may, or use the device \"cpu\"");
    return ABSENT("cuInit failed: %s; nvidia-smi may say more", libcuda_error(result));
}

bool libcuda_load(void) {
    void *library = open_library();
    if (!library) return say_missing();
    const char *missing = find_functions(library);
    int         version = 0;
    if (libcuda.cuDriverGetVersion) libcuda.cuDriverGetVersion(&version);
    if (!version)
        return ABSENT("the library that was found is no NVIDIA driver: it lacks %s; use the device \"cpu\"",
                      missing ? missing : "a version");
    if (version < VERSION_LEAST || missing) return say_too_old(version, missing);
    CUresult result = libcuda.cuInit(0);
    return result == CUDA_SUCCESS || say_no_start(result);
}
