// What Hopper alone has (sm_90a): products that four simdgroups issue together and that run on their own, out of
// threadgroup memory, and tiles that come there on their own. test/metal/runtime/hopper.h is the same for the
// simulator.
//
// A tile in threadgroup memory has rows of 128 bytes, whose pieces of 16 change places as `piece ^ (row & 7)`, and
// begins at a multiple of 1024 bytes; a product takes the 32 bytes of each row from where `at` points within the first.
#pragma once

// ── Products ────────────────────────────────────────────────────────────────────────────────────────────────────────

// Of a pair the address says in higher bits which threadgroup's it is. 1024 bytes lie from 8 rows to the next.
SIM_INLINE ulong sim_tile(const uchar *at, ulong to_next = 16) {
    return (ulong)(sim_shared_address(at) & 0x3ffffu) >> 4 | to_next >> 4 << 16 | 64ul << 32 | 1ul << 62;
}

// Shared memory that ordinary stores or copies wrote is seen by what follows the next barrier.
SIM_INLINE void nv_wgmma_see() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
SIM_INLINE void nv_wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SIM_INLINE void nv_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Left>
SIM_INLINE void nv_wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}

// %0 to %9 where `p` is "", %10 to %19 where it is "1", and so on.
#define SIM_TEN(p) "%" p "0,%" p "1,%" p "2,%" p "3,%" p "4,%" p "5,%" p "6,%" p "7,%" p "8,%" p "9,"
#define SIM_THIRTY(a, b, c) SIM_TEN(a) SIM_TEN(b) SIM_TEN(c)
#define SIM_NAMES_32 SIM_THIRTY("", "1", "2") "%30,%31"
#define SIM_NAMES_64 SIM_THIRTY("", "1", "2") SIM_THIRTY("3", "4", "5") "%60,%61,%62,%63"
#define SIM_NAMES_128                                                                                                  \
    SIM_THIRTY("", "1", "2") SIM_THIRTY("3", "4", "5") SIM_THIRTY("6", "7", "8") SIM_THIRTY("9", "10", "11")          \
    "%120,%121,%122,%123,%124,%125,%126,%127"
#define SIM_FOUR(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define SIM_SIXTEEN(c, i) SIM_FOUR(c, i), SIM_FOUR(c, i + 4), SIM_FOUR(c, i + 8), SIM_FOUR(c, i + 12)
#define SIM_SUMS_32(c, i) SIM_SIXTEEN(c, i), SIM_SIXTEEN(c, i + 16)
#define SIM_SUMS_64(c, i) SIM_SUMS_32(c, i), SIM_SUMS_32(c, i + 32)
#define SIM_SUMS_128(c, i) SIM_SUMS_64(c, i), SIM_SUMS_64(c, i + 64)

namespace sim {
template <uint Dtype, uint Columns> struct wgmma;
template <uint Columns> struct wgmma_s8;
} // namespace sim

// `one` and so on are the numbers of the operands behind the sums.
#define SIM_WGMMA(dtype, type, columns, sums, one, two, three, four, five, six)                                        \
    template <> struct sim::wgmma<dtype, columns> {                                                                    \
        static SIM_INLINE void registers(float (&d)[sums], uint4 a, ulong b, bool adds) {                              \
            asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds,%" #six ",0;\n"                                       \
                         "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" SIM_NAMES_##sums   \
                         "},{%" #one ",%" #two ",%" #three ",%" #four "},%" #five ",adds,1,1,0;\n}"                    \
                         : SIM_SUMS_##sums("+f", 0)                                                                    \
                         : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"((uint)adds));                           \
        }                                                                                                              \
        template <int A, int B> static SIM_INLINE void tiles(float (&d)[sums], ulong a, ulong b, bool adds) {          \
            asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds,%" #three ",0;\n"                                     \
                         "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" SIM_NAMES_##sums   \
                         "},%" #one ",%" #two ",adds,1,1,BNB%" #four ",BNB%" #five ";\n}"                              \
                         : SIM_SUMS_##sums("+f", 0)                                                                    \
                         : "l"(a), "l"(b), "r"((uint)adds), "n"(A), "n"(B));                                           \
        }                                                                                                              \
    };
SIM_WGMMA(1, "f16", 64, 32, 32, 33, 34, 35, 36, 37)
SIM_WGMMA(2, "bf16", 64, 32, 32, 33, 34, 35, 36, 37)
SIM_WGMMA(1, "f16", 128, 64, 64, 65, 66, 67, 68, 69)
SIM_WGMMA(2, "bf16", 128, 64, 64, 65, 66, 67, 68, 69)
SIM_WGMMA(1, "f16", 256, 128, 128, 129, 130, 131, 132, 133)
SIM_WGMMA(2, "bf16", 256, 128, 128, 129, 130, 131, 132, 133)
#undef SIM_WGMMA

#define SIM_WGMMA_S8(columns, sums, one, two)                                                                          \
    template <> struct sim::wgmma_s8<columns> {                                                                        \
        static SIM_INLINE void tiles(int (&d)[sums], ulong a, ulong b) {                                               \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k32.s32.s8.s8 {" SIM_NAMES_##sums               \
                         "},%" #one ",%" #two ",1;"                                                                    \
                         : SIM_SUMS_##sums("+r", 0)                                                                    \
                         : "l"(a), "l"(b));                                                                            \
        }                                                                                                              \
    };
SIM_WGMMA_S8(64, 32, 32, 33)
SIM_WGMMA_S8(128, 64, 64, 65)
SIM_WGMMA_S8(256, 128, 128, 129)
#undef SIM_WGMMA_S8

// d += a · bᵀ, where a is 64 × 16, 16 rows a simdgroup, and b has N rows: d[4j + e] is row g + 8 (e / 2), column
// 8j + 2t + e % 2. `a` in registers as nv_mma has it; it must not change until its group is waited for.
// What was in the sums before counts if it `adds`.
template <uint Dtype, uint N> SIM_INLINE void nv_wgmma(float (&d)[N / 2], uint4 a, const uchar *b, bool adds) {
    sim::wgmma<Dtype, N>::registers(d, a, sim_tile(b), adds);
}
// The same with `a` in threadgroup memory too, 64 rows. Of a factor that is transposed, as a function constant says,
// a tile has the depth for rows, 64 of them, and 64 of the factor's rows side by side; the next such tile lies 8,192
// bytes on.
template <uint Dtype, uint N, int A, int B>
SIM_INLINE void nv_wgmma_tiles(float (&d)[N / 2], const uchar *a, const uchar *b, sim::patched<A>, sim::patched<B>,
                               bool adds) {
    sim::wgmma<Dtype, N>::template tiles<A, B>(d, sim_tile(a, 8192), sim_tile(b, 8192), adds);
}
// For int8, 32 deep.
template <uint N> SIM_INLINE void nv_wgmma_s8(int (&d)[N / 2], const uchar *a, const uchar *b) {
    sim::wgmma_s8<N>::tiles(d, sim_tile(a), sim_tile(b));
}
// Sums that nobody has set, for a product that does not add to them.
template <uint N> SIM_INLINE void nv_wgmma_fresh(float (&d)[N]) {
    _Pragma("clang loop unroll(full)") for (uint i = 0; i < N; i++) asm volatile("" : "=f"(d[i]));
}
// The sums may be looked at only behind this, which follows the wait: the compiler must not move them before it.
template <uint N> SIM_INLINE void nv_wgmma_done(float (&d)[N]) {
    _Pragma("clang loop unroll(full)") for (uint i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <uint N> SIM_INLINE void nv_wgmma_done(int (&d)[N]) {
    _Pragma("clang loop unroll(full)") for (uint i = 0; i < N; i++) asm volatile("" : "+r"(d[i])::"memory");
}

// The reverse of nv_ldmatrix, and of nv_ldmatrix_transposed: lane 8i + r names where row r of the ith matrix goes.
#define SIM_STMATRIX(name, trans)                                                                                      \
    SIM_INLINE void name(uchar *row, uint4 words) {                                                                    \
        asm volatile("stmatrix.sync.aligned.m8n8.x4" trans                                                             \
                     ".shared.b16 [%0],{%1,%2,%3,%4};" ::"r"(sim_shared_address(row)),                                 \
                     "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)                                            \
                     : "memory");                                                                                      \
    }
SIM_STMATRIX(nv_store_matrix, "")
SIM_STMATRIX(nv_store_transposed, ".trans")
#undef SIM_STMATRIX

// ── Tiles that come on their own ────────────────────────────────────────────────────────────────────────────────────
//
// Two threadgroups on neighbouring multiprocessors are a pair, where the kernel has `.reqnctapercluster 2,1,1`
// (scripts/ptx.ts): what one brings can come to both. In the simulator a threadgroup is alone.

SIM_INLINE constexpr uint nv_pair_size() { return 2; }
SIM_INLINE uint nv_pair_rank() {
    uint rank;
    asm volatile("mov.u32 %0,%%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// All threads of both have come, and see what each other did before.
SIM_INLINE void nv_pair_barrier() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// A count in threadgroup memory: of so many arrivals and of the bytes that are expected, whereupon a phase ends. Phases
// are 0 and 1 in turn. One thread makes them; nv_pair_barrier follows.
SIM_INLINE void nv_count_make(ulong *count, uint arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;\nfence.mbarrier_init.release.cluster;" ::"r"(
                     sim_shared_address(count)),
                 "r"(arrivals)
                 : "memory");
}
// Arrives, and expects bytes besides.
SIM_INLINE void nv_count_expect(ulong *count, uint bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(sim_shared_address(count)), "r"(bytes)
                 : "memory");
}
// Arrives at the count of that one of the pair.
SIM_INLINE void nv_count_arrive(ulong *count, uint rank) {
    uint there;
    asm volatile("mapa.shared::cluster.u32 %0,%1,%2;" : "=r"(there) : "r"(sim_shared_address(count)), "r"(rank));
    asm volatile("mbarrier.arrive.shared::cluster.b64 _,[%0];" ::"r"(there) : "memory");
}
// Returns when that phase has ended.
SIM_INLINE void nv_count_wait(ulong *count, uint phase) {
    uint ended;
    do {
        asm volatile("{\n.reg .pred ended;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 ended,[%1],%2;\n"
                     "selp.u32 %0,1,0,ended;\n}"
                     : "=r"(ended)
                     : "r"(sim_shared_address(count)), "r"(phase)
                     : "memory");
    } while (!ended);
}

// A matrix of 16-bit numbers in device memory, as cuTensorMapEncodeTiled describes it: boxes of 64 by 64.
struct alignas(64) nv_tensor {
    uchar bytes[128];
};

// Brings a box, with zeros for what lies outside the matrix, to a tile of 8,192 bytes, which are counted there; where
// it is `shared` to the same place in both of the pair.
SIM_INLINE void nv_bring(uchar *tile, const nv_tensor &from, uint column, uint row, ulong *count, bool shared) {
    const ulong map = (ulong)&from;
    if (shared)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                     "[%0],[%1,{%2,%3}],[%4],%5;" ::"r"(sim_shared_address(tile)),
                     "l"(map), "r"(column), "r"(row), "r"(sim_shared_address(count)), "h"((ushort)3)
                     : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0],[%1,{%2,%3}],[%4];" ::"r"(sim_shared_address(tile)),
                     "l"(map), "r"(column), "r"(row), "r"(sim_shared_address(count))
                     : "memory");
}

// Of 384 threads four simdgroups give registers away, and the others take them: all of a four come here together.
template <uint Most> SIM_INLINE void nv_give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Most));
}
template <uint Most> SIM_INLINE void nv_take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Most));
}
