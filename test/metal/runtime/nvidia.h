// Owns what NVIDIA's GPUs have beyond Metal, as scripts/msl/library/cuda/nvidia.h names it: tensor cores, whose
// fragments lie as PTX lays them out, and copies that are asynchronous there.
#pragma once

namespace sim {

struct nv_fragment {
    uint4  a;
    uint2  b;
    float4 c;
};

// Of any type, where Metal's own shuffles take no 64 bits.
template <class T>
SIM_INLINE T nv_from_lane(T value, int lane, sim_site site) {
    T result;
    sim_exchange(&value, &result, sizeof value, lane, nullptr, site);
    return result;
}

enum nv_kind { NV_F16, NV_BF16, NV_S8 };

// Element e of a word, of which there are 2, or 4 for NV_S8.
template <nv_kind Kind>
SIM_UNCHECKED inline double nv_element(uint word, int e) {
    if constexpr (Kind == NV_S8)
        return (signed char)(word >> (8 * e));
    else if constexpr (Kind == NV_BF16)
        return __builtin_bit_cast(float, word >> (16 * e) << 16);
    else
        return (float)__builtin_bit_cast(half, (ushort)(word >> (16 * e)));
}

// Lane 4g + t: a.x is row g, a.y row g + 8, a.z and a.w the same rows half of the depth on; b is column g; c rows g, g
// + 8.
template <nv_kind Kind>
SIM_UNCHECKED void nv_multiply(char *slots, sim_u32) {
    constexpr int each = Kind == NV_S8 ? 4 : 2, depth = 8 * each;
    double        a[16][32], b[32][8];
    for (int lane = 0; lane < SIM_LANES; lane++) {
        nv_fragment f;
        __builtin_memcpy(&f, slots + lane * SIM_SLOT_BYTES, sizeof f);
        const int g = lane / 4, k = lane % 4 * each;
        for (int e = 0; e < each; e++) {
            for (int word = 0; word < 4; word++)
                a[g + word % 2 * 8][k + e + word / 2 * depth / 2] = nv_element<Kind>(f.a[word], e);
            for (int word = 0; word < 2; word++) b[k + e + word * depth / 2][g] = nv_element<Kind>(f.b[word], e);
        }
    }
    for (int lane = 0; lane < SIM_LANES; lane++) {
        nv_fragment f;
        __builtin_memcpy(&f, slots + lane * SIM_SLOT_BYTES, sizeof f);
        for (int i = 0; i < 4; i++) {
            const int   row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            const float before = f.c[i]; // by itself: clang takes the bits of a vector's element from its first
            double      sum = Kind == NV_S8 ? (double)__builtin_bit_cast(int, before) : (double)before;
            for (int k = 0; k < depth; k++) sum += a[row][k] * b[k][column];
            f.c[i] = Kind == NV_S8 ? __builtin_bit_cast(float, (int)sum) : (float)sum;
        }
        __builtin_memcpy(slots + lane * SIM_SLOT_BYTES, &f.c, sizeof f.c);
    }
}

template <nv_kind Kind, class C>
SIM_INLINE void nv_mma(C &d, uint4 a, uint2 b, sim_site site) {
    const nv_fragment in = {a, b, __builtin_bit_cast(float4, d)};
    char              out[sizeof in];
    sim_exchange(&in, out, sizeof in, SIM_OWN_LANE, nv_multiply<Kind>, site);
    __builtin_memcpy(&d, out, sizeof d);
}

SIM_INLINE uint nv_round_bf16(float value) {
    const uint bits = __builtin_bit_cast(uint, value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

} // namespace sim

SIM_INLINE void nv_mma_f16(float4 &d, uint4 a, uint2 b, SIM_SITE("nv_mma_f16")) {
    sim::nv_mma<sim::NV_F16>(d, a, b, site);
}
SIM_INLINE void nv_mma_bf16(float4 &d, uint4 a, uint2 b, SIM_SITE("nv_mma_bf16")) {
    sim::nv_mma<sim::NV_BF16>(d, a, b, site);
}
SIM_INLINE void nv_mma_s8(int4 &d, uint4 a, uint2 b, SIM_SITE("nv_mma_s8")) { sim::nv_mma<sim::NV_S8>(d, a, b, site); }

SIM_INLINE uint4 nv_ldmatrix(const uchar *row, SIM_SITE("nv_ldmatrix")) {
    uint4 words;
    for (int i = 0; i < 4; i++) {
        const ulong at = sim::nv_from_lane((ulong)row, 8 * i + (int)sim_lane() / 4, site);
        words[i] = ((const uint *)at)[sim_lane() % 4];
    }
    return words;
}

SIM_INLINE uint4 nv_ldmatrix_transposed(const uchar *row, SIM_SITE("nv_ldmatrix_transposed")) {
    uint4 words;
    for (int i = 0; i < 4; i++) {
        uint word = 0;
        for (int e = 0; e < 2; e++) {
            const ulong at = sim::nv_from_lane((ulong)row, 8 * i + (int)sim_lane() % 4 * 2 + e, site);
            word |= (uint)((const ushort *)at)[sim_lane() / 4] << (16 * e);
        }
        words[i] = word;
    }
    return words;
}

// At once, where a GPU's comes by the time that it is waited for: a missing wait does not show here.
SIM_INLINE void nv_copy(uchar *to, const uchar *from, bool there) {
    *(uint4 *)to = there ? *(const uint4 *)from : uint4(0);
}
SIM_INLINE void nv_copy_commit() {}
template <int Left>
SIM_INLINE void nv_copy_wait() {}

SIM_INLINE void nv_let_next_start() {}
SIM_INLINE void nv_wait_for_last() {}

SIM_INLINE uint2 nv_stream8(const uchar *at) { return *(const uint2 *)at; }
SIM_INLINE uint4 nv_stream16(const uchar *at) { return *(const uint4 *)at; }

template <class T>
SIM_INLINE T nv_from_lane(T value, uint from, SIM_SITE("nv_from_lane")) {
    return sim::nv_from_lane(value, (int)(from & 31u), site);
}

SIM_INLINE uint nv_pack_bf16(float first, float second) {
    return sim::nv_round_bf16(first) | sim::nv_round_bf16(second) << 16;
}
SIM_INLINE uint nv_mul_bf16(uint a, uint b) {
    const float low = __builtin_bit_cast(float, a << 16) * __builtin_bit_cast(float, b << 16);
    return nv_pack_bf16(low, __builtin_bit_cast(float, a & 0xffff0000u) * __builtin_bit_cast(float, b & 0xffff0000u));
}
SIM_INLINE uint nv_permute(uint a, uint b, uint select) {
    uint bytes = 0;
    for (int i = 0; i < 4; i++) {
        const uint n = select >> (4 * i) & 15u, byte = (n & 4 ? b : a) >> (8 * (n & 3)) & 255u;
        bytes |= (n & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
    return bytes;
}
