/* Which instruction sets this library has forms for, and which of them this processor can run. The build defines
 * FORMS_<name> for each set of csrc/sources.json that it compiles. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forms.h"

static bool always(void) { return true; }

static const struct cpu_forms plain = {.isa = "plain"};

#ifdef __x86_64__
#include <cpuid.h>

extern const struct cpu_forms cpu_forms_avx512vnni, cpu_forms_avx512, cpu_forms_avx2, cpu_forms_base;

/* The registers that the operating system saves: bit 2 the halves of AVX, bits 5 to 7 those of AVX-512. */
static uint32_t saved_registers(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

[[maybe_unused]] static bool has_avx2(void) {
    uint32_t a, b, c, d, needs = bit_FMA | bit_F16C | bit_AVX;
    if ((saved_registers() & 0x6) != 0x6 || !__get_cpuid(1, &a, &b, &c, &d) || (c & needs) != needs) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_AVX2;
}

[[maybe_unused]] static bool has_avx512(void) {
    uint32_t a, b, c, d, needs = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ | bit_AVX512CD;
    if (!has_avx2() || (saved_registers() & 0xe6) != 0xe6) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & needs) == needs;
}

[[maybe_unused]] static bool has_avx512vnni(void) {
    uint32_t a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && c & bit_AVX512VNNI;
}

#else

extern const struct cpu_forms cpu_forms_i8mm, cpu_forms_dotprod, cpu_forms_neon;

#ifdef __APPLE__
#include <sys/sysctl.h>

static bool has_feature(const char *name) {
    int32_t has = 0;
    size_t  size = sizeof has;
    return sysctlbyname(name, &has, &size, NULL, 0) == 0 && has;
}

[[maybe_unused]] static bool has_dotprod(void) { return has_feature("hw.optional.arm.FEAT_DotProd"); }
[[maybe_unused]] static bool has_i8mm(void) { return has_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
#include <sys/auxv.h>

[[maybe_unused]] static bool has_dotprod(void) { return getauxval(AT_HWCAP) & 1 << 20; } /* HWCAP_ASIMDDP */
[[maybe_unused]] static bool has_i8mm(void) {
    return has_dotprod() && getauxval(AT_HWCAP2) & 1 << 13;
} /* HWCAP2_I8MM */
#endif

#endif

static const struct {
    const struct cpu_forms *forms;
    bool (*available)(void);
} instruction_sets[] = {
/* best first */
#ifdef __x86_64__
#ifdef FORMS_avx512vnni
    {&cpu_forms_avx512vnni, has_avx512vnni},
#endif
#ifdef FORMS_avx512
    {&cpu_forms_avx512, has_avx512},
#endif
#ifdef FORMS_avx2
    {&cpu_forms_avx2, has_avx2},
#endif
#ifdef FORMS_base
    {&cpu_forms_base, always},
#endif
#else
#ifdef FORMS_i8mm
    {&cpu_forms_i8mm, has_i8mm},
#endif
#ifdef FORMS_dotprod
    {&cpu_forms_dotprod, has_dotprod},
#endif
#ifdef FORMS_neon
    {&cpu_forms_neon, always},
#endif
#endif
    {&plain, always},
};

const struct cpu_forms *cpu_forms_named(const char *isa) {
    for (size_t i = 0; i < sizeof instruction_sets / sizeof *instruction_sets; i++) {
        bool wanted = !isa || !strcmp(isa, instruction_sets[i].forms->isa);
        if (wanted && instruction_sets[i].available()) return instruction_sets[i].forms;
    }
    return NULL;
}

const char *bad_isa(void) {
    static _Thread_local char sentence[256];
    const char               *isa = getenv("BNB_ISA");
    if (!isa || !*isa || cpu_forms_named(isa)) return NULL;
    char *end = sentence, *limit = sentence + sizeof sentence; /* the names are few: all fits */
    end += snprintf(end, (size_t)(limit - end), "BNB_ISA is \"%.40s\", expected one that this processor has:", isa);
    for (size_t i = 0; i < sizeof instruction_sets / sizeof *instruction_sets; i++)
        if (instruction_sets[i].available())
            end += snprintf(end, (size_t)(limit - end), " %s,", instruction_sets[i].forms->isa);
    snprintf(end - 1, (size_t)(limit - end + 1), "; unset it for the first of them");
    return sentence;
}

const struct cpu_forms *cpu_forms(void) {
    static const struct cpu_forms *_Atomic chosen; /* two threads that race here find the same */
    const struct cpu_forms *forms = atomic_load_explicit(&chosen, memory_order_acquire);
    if (forms) return forms;
    const char *isa = getenv("BNB_ISA");
    forms = isa && *isa ? cpu_forms_named(isa) : NULL;
    if (!forms) forms = cpu_forms_named(NULL);
    atomic_store_explicit(&chosen, forms, memory_order_release);
    return forms;
}
