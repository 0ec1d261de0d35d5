/* One step of an optimizer, its states updated in place: the checks, the rule's numbers, the launch and the plain
 * loop. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "launch.h"

#define REAL    float
#define ROOT(x) sqrtf(x)
#define RULE    static inline
#include "../../metal/optimizer_rule.h"

static_assert((int)RULE_ADAM == BNB_OPTIMIZER_ADAM && (int)RULE_ADEMAMIX == BNB_OPTIMIZER_ADEMAMIX &&
                  (int)RULE_MOMENTUM == BNB_OPTIMIZER_MOMENTUM && (int)RULE_LION == BNB_OPTIMIZER_LION &&
                  (int)RULE_RMSPROP == BNB_OPTIMIZER_RMSPROP && (int)RULE_ADAGRAD == BNB_OPTIMIZER_ADAGRAD,
              "kernels know the rules by these numbers");

/* What a step works on; `absmax` and `code` are NULL where the states are floats, and the second where there is
 * none. */
struct request {
    bnb_optimizer     kind;
    bnb_tensor       *p;
    const bnb_tensor *g;
    struct request_state {
        bnb_tensor         *state, *absmax;
        const bnb_codebook *code;
    } states[2];
    bnb_tensor           *unorm;                 /* NULL without a trust ratio */
    float                 max_unorm, correction; /* as in metal/args.h */
    struct optimizer_rule rule;
};

static bool   has_second(bnb_optimizer kind) { return kind == BNB_OPTIMIZER_ADAM || kind == BNB_OPTIMIZER_ADEMAMIX; }
static bool   is_coded(const struct request *r) { return r->states[0].state->dtype == BNB_U8; }
static size_t count_of(const struct request *r) { return r->p->rows * r->p->columns; }

/* ── The plain loop ─────────────────────────────────────────────────────────────────────────────────────────────── */

static float state_at(const struct optimizer_state *state, size_t i) {
    if (state->values) return state->values[i];
    return state->codes ? state->code->values[state->codes[i]] * state->absmax[i / OPTIMIZER_BLOCK] : 0;
}

static void put_states(const struct optimizer_state *state, size_t begin, size_t count, const float *values) {
    float absmax = 0;
    for (size_t j = 0; j < count; j++) {
        if (state->values) state->values[begin + j] = values[j];
        absmax = fmaxf(absmax, fabsf(values[j]));
    }
    if (!state->codes) return;
    state->absmax[begin / OPTIMIZER_BLOCK] = absmax;
    for (size_t j = 0; j < count; j++)
        state->codes[begin + j] = nearest_code(state->code, values[j] * inverse_of(absmax));
}

static void optimizer_plain(const void *argument, size_t first, size_t last) {
    const struct optimizer_job *job = argument;
    const struct dense          p = {job->p, job->p_dtype, 1, job->count}, g = {job->g, job->g_dtype, 1, job->count};
    for (size_t block = first; block < last; block++) {
        size_t         begin = block * OPTIMIZER_BLOCK, rest = job->count - begin,
                       count = rest < OPTIMIZER_BLOCK ? rest : OPTIMIZER_BLOCK;
        float          next[3][OPTIMIZER_BLOCK];
        struct squares squares = {0};
        for (size_t j = 0; j < count; j++) {
            size_t  i = begin + j;
            float   at = element_of(&p, i);
            moments m = {state_at(&job->first, i), state_at(&job->second, i), state_at(&job->slow, i)};
            stepped to = step_element(job->kind, job->rule, job->rate, at, element_of(&g, i), m);
            next[0][j] = to.m.first, next[1][j] = to.m.second, next[2][j] = to.m.slow;
            squares.p += at * at;
            squares.direction += to.direction * to.direction;
            if (!job->squares) put_element(job->p, job->p_dtype, i, to.p);
        }
        if (job->squares) {
            job->squares[block] = squares;
        } else {
            put_states(&job->first, begin, count, next[0]);
            put_states(&job->second, begin, count, next[1]);
            put_states(&job->slow, begin, count, next[2]);
        }
    }
}

/* ── Running on the host ────────────────────────────────────────────────────────────────────────────────────────── */

static struct optimizer_state host_state(struct host *host, const struct request_state *from) {
    void *state = host_updates(host, from->state->buffer);
    if (!from->code) return (struct optimizer_state){.values = state};
    return (struct optimizer_state){.codes = state,
                                    .absmax = host_updates(host, from->absmax->buffer),
                                    .code = host_codebook(host, from->code)};
}

/* The slow average lies behind the fast one. */
static struct optimizer_state second_half(struct optimizer_state both, size_t count) {
    if (both.values)
        both.values += count;
    else
        both.codes += count, both.absmax += ceil_div(count, OPTIMIZER_BLOCK);
    return both;
}

struct step_job {
    struct optimizer_job step;
    float               *unorm; /* NULL without a trust ratio */
    float                max_unorm, correction;
};

/* Writes the norm of the direction, and brings the rate down to where p moves by max_unorm × its own norm per unit of
 * the learning rate. */
static bnb_status apply_trust(struct step_job *both, size_t blocks, size_t grain,
                              void (*form)(const void *job, size_t first, size_t last)) {
    struct optimizer_job *job = &both->step;
    job->squares = malloc(blocks * sizeof *job->squares);
    if (!job->squares) return fail(BNB_OUT_OF_MEMORY, "optimizer_step: no memory for %zu sums", blocks);
    parallel_for(blocks, grain, form, job);
    double p = 0, direction = 0;
    for (size_t b = 0; b < blocks; b++) p += job->squares[b].p, direction += job->squares[b].direction;
    free(job->squares);
    job->squares = NULL;

    float most = both->max_unorm * sqrtf((float)p), norm = both->correction * sqrtf((float)direction);
    *both->unorm = norm;
    if (norm > most) job->rate *= most / norm;
    return BNB_OK;
}

static bnb_status step(const void *argument) {
    struct step_job       both = *(const struct step_job *)argument;
    struct optimizer_job *job = &both.step;
    size_t                blocks = ceil_div(job->count, OPTIMIZER_BLOCK), grain = (1 << 15) / OPTIMIZER_BLOCK;
    if (job->kind == BNB_OPTIMIZER_ADEMAMIX) job->slow = second_half(job->first, job->count);
    void (*form)(const void *job, size_t first, size_t last) =
        cpu_forms()->optimizer ? cpu_forms()->optimizer : optimizer_plain;
    bnb_status status = both.unorm ? apply_trust(&both, blocks, grain, form) : BNB_OK;
    if (status == BNB_OK) parallel_for(blocks, grain, form, job);
    return status;
}

enum { WORK_AN_ELEMENT = 32 }; /* a division, a root and two codes take as long as so many products */

static bnb_status step_on_host(const void *request, struct host *host) {
    const struct request *r = request;
    struct step_job       job = {
        .step =
            {
                .kind = r->kind,
                .rule = r->rule,
                .count = count_of(r),
                .p = host_updates(host, r->p->buffer),
                .g = host_reads(host, r->g->buffer),
                .p_dtype = r->p->dtype,
                .g_dtype = r->g->dtype,
                .coded = is_coded(r),
                .first = host_state(host, &r->states[0]),
                .rate = r->rule.rate,
            },
        .unorm = r->unorm ? host_writes(host, r->unorm->buffer) : NULL,
        .max_unorm = r->max_unorm,
        .correction = r->correction,
    };
    if (has_second(r->kind)) job.step.second = host_state(host, &r->states[1]);
    host->work = (double)job.step.count * WORK_AN_ELEMENT;
    return perform(host, step, &job, sizeof job);
}

/* ── Running on the GPU ─────────────────────────────────────────────────────────────────────────────────────────── */

/* Binds a state, its scales and its codebook. Kernels do not look at the last two where there are none, but Metal wants
 * something of their size in their places. */
static bnb_status bind_state(const struct request_state *from, bnb_device *device, struct binding bindings[3],
                             size_t *bytes) {
    bnb_codebook *code = from->code ? (bnb_codebook *)from->code : codebook_dynamic_signed();
    if (!code) return bnb_last_status();
    bindings[0] = updates(from->state->buffer);
    bindings[1] = from->absmax ? updates(from->absmax->buffer) : unused(from->state->buffer);
    *bytes += from->state->buffer->bytes;
    return bind_codebook(code, device, &bindings[2]);
}

/* A step or, with a trust ratio, three kernels: sums of squares, the ratio, and the step. */
static bnb_status launch(const void *request) {
    const struct request *r = request;
    bnb_device           *device = r->p->buffer->device;
    size_t                count = count_of(r), bytes = 2 * r->p->buffer->bytes + r->g->buffer->bytes;
    uint32_t              groups = groups_for(count, OPTIMIZER_THREADS / 32 * OPTIMIZER_BLOCK);
    struct optimizer_args args = {(uint32_t)count, (uint32_t)(count >> 32), groups,
                                  r->max_unorm,    r->correction,           r->rule};
    struct launch         step = {
        .family = "optimizer",
        .kernel = "optimizer",
        .constants = {r->kind, r->p->dtype, r->g->dtype, is_coded(r) ? STORE_CODE8 : STORE_F32, TRUST_NONE},
        .constant_count = 5,
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {updates(r->p->buffer), reads(r->g->buffer)},
        .binding_count = 9,
        .groups = {groups, 1, 1},
        .threads = OPTIMIZER_THREADS,
    };
    bnb_status status = bind_state(&r->states[0], device, &step.bindings[2], &bytes);
    if (status == BNB_OK) status = bind_state(&r->states[has_second(r->kind)], device, &step.bindings[5], &bytes);
    step.bindings[8] = unused(r->p->buffer);
    step.bytes_moved = 2 * bytes;
    if (status || !r->unorm) return status ? status : enqueue(device, &step);

    struct buffer *sums = buffer_new(device, (1 + (size_t)groups) * sizeof(float[2]));
    if (!sums) return bnb_last_status();
    step.bindings[8] = writes(sums);
    step.constants[4] = TRUST_MEASURE;
    status = enqueue(device, &step);
    struct launch trust = {
        .family = "optimizer",
        .kernel = "optimizer_trust",
        .args = &args,
        .args_bytes = sizeof args,
        .bindings = {updates(sums), writes(r->unorm->buffer)},
        .binding_count = 2,
        .groups = {1, 1, 1},
        .threads = OPTIMIZER_THREADS,
        .bytes_moved = sums->bytes,
    };
    if (status == BNB_OK) status = enqueue(device, &trust);
    step.constants[4] = TRUST_APPLY;
    step.bindings[8] = reads(sums);
    if (status == BNB_OK) status = enqueue(device, &step);
    buffer_release(sums);
    return status;
}

/* ── Checks ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool is_hyperparameter(const char *name, double value, double least, double below) {
    if (value >= least && value < below) return true;
    if (isinf(below))
        fail(BNB_INVALID, "optimizer_step: %s is %g, expected a finite number of at least %g", name, value, least);
    else
        fail(BNB_INVALID, "optimizer_step: %s is %g, expected at least %g and less than %g", name, value, least, below);
    return false;
}

static bool are_hyperparameters(const bnb_hyperparameters *h) {
    return is_hyperparameter("lr", h->lr, 0, INFINITY) && is_hyperparameter("beta1", h->beta1, 0, 1) &&
           is_hyperparameter("beta2", h->beta2, 0, 1) && is_hyperparameter("beta3", h->beta3, 0, 1) &&
           is_hyperparameter("alpha", h->alpha, -DBL_MAX, INFINITY) && is_hyperparameter("eps", h->eps, 0, INFINITY) &&
           is_hyperparameter("weight_decay", h->weight_decay, 0, INFINITY) &&
           is_hyperparameter("gnorm_scale", h->gnorm_scale, -DBL_MAX, INFINITY) &&
           is_hyperparameter("max_unorm", h->max_unorm, 0, INFINITY) && is_hyperparameter("step", h->step, 1, INFINITY);
}

/* The rule's numbers, rounded to fp32 once. A gradient whose magnitude is above 1e18 does not count: its square, and
 * sums of those, must be numbers. */
static bool make_rule(bnb_optimizer kind, const bnb_hyperparameters *h, struct optimizer_rule *rule) {
    bool   decoupled = has_second(kind) || kind == BNB_OPTIMIZER_LION;
    double correction1 = 1 - pow(h->beta1, h->step), correction2 = sqrt(1 - pow(h->beta2, h->step));
    double keep_first = h->beta1, take_first = 1 - h->beta1, rate = -h->lr, eps = h->eps;
    if (kind == BNB_OPTIMIZER_MOMENTUM || kind == BNB_OPTIMIZER_ADAGRAD) take_first = 1;
    if (kind == BNB_OPTIMIZER_ADAGRAD) keep_first = 1;
    if (has_second(kind))
        eps *= correction2; /* instead of dividing the root by it: the numerators have it as a factor */
    if (kind == BNB_OPTIMIZER_ADAM) rate *= correction2 / correction1;
    *rule = (struct optimizer_rule){
        .keep_first = (float)keep_first,
        .take_first = (float)take_first,
        .keep_second = (float)h->beta2,
        .take_second = (float)(1 - h->beta2),
        .keep_slow = (float)h->beta3,
        .take_slow = (float)(1 - h->beta3),
        .mix_first = (float)(correction2 / correction1),
        .mix_slow = (float)(h->alpha * correction2),
        .eps = (float)eps,
        .rate = (float)rate,
        .shrink = (float)(decoupled ? 1 - h->lr * h->weight_decay : 1),
        .decay = (float)(decoupled ? 0 : h->weight_decay),
        .gradient_scale = (float)h->gnorm_scale,
        .least = h->skip_zeros ? FLT_MIN : 0,
        .most = 1e18f,
    };
    float numbers[sizeof *rule / sizeof(float)];
    memcpy(numbers, rule, sizeof numbers);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!isfinite(numbers[i]))
            return fail(BNB_INVALID, "optimizer_step: the hyperparameters are beyond the range of float32"), false;
    return true;
}

/* Whether a tensor has that dtype and count of elements, and is where p is. */
static bool fits(const bnb_tensor *tensor, bnb_dtype dtype, size_t elements, const bnb_device *device,
                 const char *argument) {
    if (!is_tensor(tensor, "optimizer_step", argument) ||
        !on_device(tensor->buffer, device, "optimizer_step", argument))
        return false;
    if (tensor->dtype == dtype && tensor->rows * tensor->columns == elements) return true;
    fail(BNB_INVALID, "optimizer_step: %s is %s with %zu elements, expected %s with %zu", argument,
         dtype_name(tensor->dtype), tensor->rows * tensor->columns, dtype_name(dtype), elements);
    return false;
}

/* A state of `times` averages for each element of p. */
static bool is_state(const struct request *r, const struct request_state *state, bnb_dtype dtype, size_t times,
                     const char *const names[3]) {
    const bnb_device *device = r->p->buffer->device;
    if (!fits(state->state, dtype, times * count_of(r), device, names[0])) return false;
    if (dtype == BNB_F32) return true;
    if (!fits(state->absmax, BNB_F32, times * ceil_div(count_of(r), OPTIMIZER_BLOCK), device, names[1]) ||
        !is_codebook(state->code, "optimizer_step", names[2]))
        return false;
    if (state->code->book.bits == 8) return true;
    fail(BNB_INVALID, "optimizer_step: %s has %u values, expected 256", names[2], state->code->book.size);
    return false;
}

static bool is_request(struct request *r) {
    static const char *const names[2][3] = {{"state1", "absmax1", "code1"}, {"state2", "absmax2", "code2"}};
    if (!is_tensor(r->p, "optimizer_step", "p") || !is_float(r->p->dtype, "optimizer_step", "p") ||
        !is_tensor(r->g, "optimizer_step", "g") || !is_float(r->g->dtype, "optimizer_step", "g") ||
        !fits(r->g, r->g->dtype, count_of(r), r->p->buffer->device, "g") ||
        !is_tensor(r->states[0].state, "optimizer_step", "state1"))
        return false;
    bnb_dtype dtype = is_coded(r) ? BNB_U8 : BNB_F32;
    if (!is_state(r, &r->states[0], dtype, r->kind == BNB_OPTIMIZER_ADEMAMIX ? 2 : 1, names[0])) return false;
    if (has_second(r->kind) && !is_state(r, &r->states[1], dtype, 1, names[1])) return false;
    for (int s = 0; s < 2 && dtype == BNB_F32; s++) r->states[s].absmax = NULL, r->states[s].code = NULL;
    if (r->max_unorm == 0) r->unorm = NULL;
    return !(r->max_unorm > 0) || fits(r->unorm, BNB_F32, 1, r->p->buffer->device, "unorm");
}

bnb_status bnb_optimizer_step(bnb_optimizer kind, const bnb_hyperparameters *hyperparameters, bnb_tensor *p,
                              const bnb_tensor *g, bnb_tensor *state1, bnb_tensor *absmax1, const bnb_codebook *code1,
                              bnb_tensor *state2, bnb_tensor *absmax2, const bnb_codebook *code2, bnb_tensor *unorm) {
    if ((unsigned)kind > BNB_OPTIMIZER_ADAGRAD)
        return fail(BNB_INVALID, "optimizer_step: kind is %d, expected 0 to %d", (int)kind, BNB_OPTIMIZER_ADAGRAD);
    if (!hyperparameters) return fail(BNB_INVALID, "optimizer_step: hyperparameters is NULL");
    const bnb_hyperparameters h = *hyperparameters; /* another thread may be writing to the caller's */
    if (!are_hyperparameters(&h)) return BNB_INVALID;
    struct request request = {
        .kind = kind,
        .p = p,
        .g = g,
        .states = {{state1, absmax1, code1}, {state2, absmax2, code2}},
        .unorm = unorm,
        .max_unorm = (float)h.max_unorm,
    };
    if (!make_rule(kind, &h, &request.rule) || !is_request(&request)) return BNB_INVALID;
    request.correction = kind == BNB_OPTIMIZER_ADAM ? request.rule.mix_first : 1;
    count_operation(p->buffer->device);
    return run(&(struct operation){"optimizer_step", p->buffer->device, launch, step_on_host, &request});
}
