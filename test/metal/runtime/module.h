// Owns the contract between a translated kernel library (C++) and the simulator's runtime (C): tables and calls.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

typedef __UINT32_TYPE__ sim_u32;
typedef __SIZE_TYPE__   sim_size;

// Where a thread's position values live in its `values` array. Values with three components take three entries.
enum sim_value {
    SIM_THREAD_POSITION_IN_GRID = 0,
    SIM_THREAD_POSITION_IN_THREADGROUP = 3,
    SIM_THREADGROUP_POSITION_IN_GRID = 6,
    SIM_THREADS_PER_THREADGROUP = 9,
    SIM_THREADS_PER_GRID = 12,
    SIM_THREADGROUPS_PER_GRID = 15,
    SIM_THREAD_INDEX_IN_THREADGROUP = 18,
    SIM_THREAD_INDEX_IN_SIMDGROUP = 19,
    SIM_SIMDGROUP_INDEX_IN_THREADGROUP = 20,
    SIM_SIMDGROUPS_PER_THREADGROUP = 21,
    SIM_THREADS_PER_SIMDGROUP = 22,
    SIM_THREAD_INDEX_IN_QUADGROUP = 23,
    SIM_QUADGROUP_INDEX_IN_THREADGROUP = 24,
    SIM_QUADGROUPS_PER_THREADGROUP = 25,
    SIM_VALUE_COUNT = 26
};

enum sim_parameter_kind { SIM_PARAMETER_BUFFER, SIM_PARAMETER_THREADGROUP, SIM_PARAMETER_VALUE };

typedef struct {
    const char *name;
    sim_u32     kind;      // enum sim_parameter_kind
    sim_u32     index;     // [[buffer(n)]], [[threadgroup(n)]], or an enum sim_value
    sim_u32     read_only; // a `constant` or `device const` buffer
    sim_size    bytes;     // the size of what a buffer refers or points to: at least so much must be bound
} sim_parameter;

// A threadgroup variable of one kernel; a constructor of the translated library links it into the list.
typedef struct sim_variable {
    struct sim_variable *next;
    const void          *function; // the kernel that declares it
    const char          *name;
    sim_size             bytes, alignment;
    sim_size             offset; // set by the runtime
} sim_variable;

typedef struct {
    const char *name;     // the host name
    const void *function; // identifies the kernel in the list of threadgroup variables
    void (*run)(void *const *slots, const sim_u32 *values);
    const sim_parameter *parameters;
    sim_u32              parameter_count;
    sim_u32              max_threads; // 0 where the kernel does not say
    const sim_u32       *constants;   // indices of the function constants it needs
    sim_u32              constant_count;
} sim_kernel_entry;

typedef struct {
    const char *name;
    sim_u32     index, bytes;
    void       *value;
    bool       *defined;
} sim_constant_entry;

typedef struct {
    const sim_kernel_entry   *kernels;
    sim_u32                   kernel_count;
    const sim_constant_entry *constants;
    sim_u32                   constant_count;
    void (*derive_constants)(void); // recomputes the globals that are computed from function constants
    sim_variable **variables;
    bool           checked; // compiled with instrumentation
} sim_module;

// Where an operation stands in the .metal source, and what it is called there.
typedef struct {
    const char *file;
    sim_u32     line;
    const char *operation;
} sim_site;

enum { SIM_LANES = 32, SIM_SLOT_BYTES = 64, SIM_OWN_LANE = -1, SIM_FIRST_LANE = -2 };
enum { SIM_MEM_DEVICE = 1, SIM_MEM_THREADGROUP = 2 };

// Runs once a simdgroup operation when all lanes have arrived: `slots` is 32 × SIM_SLOT_BYTES, a bit of `active` a
// lane.
typedef void (*sim_combine)(char *slots, sim_u32 active);

sim_u32 sim_lane(void);
sim_u32 sim_thread(void); // its place in the threadgroup
void    sim_threadgroup_barrier(sim_u32 flags, sim_site site);
void    sim_simdgroup_barrier(sim_u32 flags, sim_site site);
// Publishes `bytes` of `in`, waits for the simdgroup, combines, and copies the slot of lane `source` to `out`.
sim_u32 sim_exchange(const void *in, void *out, sim_u32 bytes, int source, sim_combine combine, sim_site site);
void    sim_report_different_tiles(sim_site site);
// For simdgroup operations whose arguments leave the result undefined; `what` is the end of a sentence.
void sim_report_lanes(sim_site site, const char *what);
// The order in which reductions take the lanes, and products of matrices their terms: a permutation of 32.
const unsigned char *sim_lane_order(void);
// Says that threadgroup memory belongs to the simdgroup of the thread that runs, and to no other.
void  sim_own_slice(const void *at, sim_size bytes);
void *sim_threadgroup_variable(const sim_variable *variable);
// Lets others run before the thread looks again at what it waits for; one that changes that says so. When all have only
// looked for long, nothing will come any more: an error.
void sim_pause(sim_site site);
void sim_changed(void);
// Says that no thread wrote threadgroup memory, and that it may be read.
void sim_brought(const void *at, sim_size bytes);

#ifdef __cplusplus
}
#endif
