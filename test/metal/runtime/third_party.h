// Owns what third-party kernels use of Metal beyond what the product's kernels may: the dialect "any" includes it.
#pragma once

typedef __bf16 bfloat;

namespace metal {

template <class T> using remove_addrspace_t = remove_cv_t<remove_reference_t<T>>;
template <> inline constexpr bool is_floating_point_v<bfloat> = true;
template <> struct numeric_limits<bfloat> {
    static constexpr bfloat max() { return as_type<bfloat>((ushort)0x7F7F); }
    static constexpr bfloat infinity() { return as_type<bfloat>((ushort)0x7F80); }
};

template <class T> SIM_INLINE T simd_shuffle_and_fill_up(T value, T filling, ushort delta, SIM_SITE("simd_shuffle_and_fill_up")) {
    const int from = (int)sim_lane() - delta;
    const T filled = sim::from_lane(filling, (from + SIM_LANES) % SIM_LANES, site);
    const T shifted = sim::from_lane(value, sim::neighbour(from), site);
    return from < 0 ? filled : shifted;
}

} // namespace metal

#define METAL_FUNC inline __attribute__((always_inline))
