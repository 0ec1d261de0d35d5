// Owns the words of Metal that the translator knows, and those that it refuses, with the reason.

import { reservedTypes } from "./apple.ts";

const elements = ["bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "float"];

/** Vector types with their number of components. */
export const vectorTypes: ReadonlyMap<string, number> = new Map(
  elements.flatMap((element) => [2, 3, 4].map((n): [string, number] => [`${element}${n}`, n])),
);

/** Types that C++ converts to as Metal does. */
export const scalarTypes: ReadonlySet<string> = new Set([
  ...elements,
  ...["unsigned", "signed", "size_t", "ptrdiff_t"],
  ...[8, 16, 32, 64].flatMap((bits) => [`int${bits}_t`, `uint${bits}_t`]),
]);

/** Types that are neither, and have no arguments. */
export const otherTypes: ReadonlySet<string> = new Set([
  ...["void", "auto", "atomic_int", "atomic_uint", "simdgroup_float8x8", "simdgroup_half8x8", "nv_tensor"],
]);

/** Templates that are types once they have arguments. */
export const typeTemplates: ReadonlySet<string> = new Set([
  "vec",
  "atomic",
  "simdgroup_matrix",
  "conditional_t",
  "enable_if_t",
]);

/** Templates that take explicit arguments but are no types. */
export const otherTemplates: ReadonlySet<string> = new Set([
  ...["as_type", "static_cast", "reinterpret_cast", "make_filled_simdgroup_matrix", "numeric_limits", "decltype"],
  ...["is_same", "is_same_v", "conditional", "enable_if", "integral_constant", "bool_constant"],
  ...["is_floating_point_v", "is_integral_v", "is_signed_v", "is_unsigned_v", "is_floating_point", "is_integral"],
]);

/** Types that only third-party kernels may use; runtime/third_party.h has them. */
export const thirdPartyTypes: ReadonlySet<string> = new Set([
  ...["bfloat", "bfloat2", "bfloat4", "simdgroup_bfloat8x8"],
  ...["half", "float", "bfloat"].flatMap((element) => [`${element}2x4`, `${element}4x4`]),
  ...elements.flatMap((element) => [2, 3, 4].map((n) => `packed_${element}${n}`)),
]);

export const addressSpaces: ReadonlySet<string> = new Set(["device", "constant", "threadgroup", "thread"]);

const index = ["uint", "ushort"];
const grid = index.flatMap((element) => [element, `${element}2`, `${element}3`]);

/**
 * Attributes of kernel parameters that come from the thread's place: the runtime's name for the value, allowed
 * types.
 */
export const positionAttributes: ReadonlyMap<string, { value: string; types: readonly string[]; grid: boolean }> =
  new Map(
    (
      [
        ["thread_position_in_grid", grid, true],
        ["thread_position_in_threadgroup", grid, true],
        ["threadgroup_position_in_grid", grid, true],
        ["threads_per_threadgroup", grid, true],
        ["dispatch_threads_per_threadgroup", grid, true],
        ["threads_per_grid", grid, true],
        ["threadgroups_per_grid", grid, true],
        ["thread_index_in_threadgroup", index, false],
        ["thread_index_in_simdgroup", index, false],
        ["simdgroup_index_in_threadgroup", index, false],
        ["simdgroups_per_threadgroup", index, false],
        ["threads_per_simdgroup", index, false],
        ["thread_execution_width", index, false],
        ["thread_index_in_quadgroup", index, false],
        ["quadgroup_index_in_threadgroup", index, false],
        ["quadgroups_per_threadgroup", index, false],
      ] as const
    ).map(([name, types, isGrid]) => {
      const value = {
        dispatch_threads_per_threadgroup: "threads_per_threadgroup",
        thread_execution_width: "threads_per_simdgroup",
      }[name as string];
      return [name, { value: `SIM_${(value ?? name).toUpperCase()}`, types, grid: isGrid }];
    }),
  );

/** Types that a function constant may have, with their bytes. */
export const constantTypes: ReadonlyMap<string, number> = new Map([
  ...(["bool", "char", "uchar"] as const).map((type): [string, number] => [type, 1]),
  ...(["short", "ushort", "half", "uint16_t", "int16_t"] as const).map((type): [string, number] => [type, 2]),
  ...(["int", "uint", "float", "uint32_t", "int32_t"] as const).map((type): [string, number] => [type, 4]),
]);

/** Words that no kernel of ours may use, and why. */
export const refusedWords: ReadonlyMap<string, string> = new Map([
  ...reservedTypes.map((type): [string, string] => [
    type,
    "Apple's <metal_stdlib> keeps the name for itself; take another",
  ]),
  ["double", "Metal has no double precision"],
  ["bfloat", "bfloat needs Metal 3.1; hold bf16 as ushort and widen it by a shift"],
  ...["long3", "long4", "ulong3", "ulong4"].map((type): [string, string] => [
    type,
    "values over 16 bytes are not checked by the simulator; use two 16-byte values",
  ]),
  ["mem_none", "mem_none orders nothing; name the memory that the barrier orders"],
  ["mem_texture", "textures are not simulated"],
  ["thread_elements", "the layout of a fragment is not documented; use simdgroup_load and simdgroup_store"],
  ...["goto", "asm", "new", "delete", "throw", "try", "catch", "virtual", "dynamic_cast", "typeid", "friend"].map(
    (word): [string, string] => [word, "Metal has no such construct"],
  ),
  ...["const_cast", "union", "operator", "this", "mutable", "volatile", "register", "thread_local", "extern"].map(
    (word): [string, string] => [word, "the simulator does not support it; write it with plain functions and structs"],
  ),
  ...["co_await", "co_yield", "co_return", "concept", "requires", "consteval", "constinit"].map(
    (word): [string, string] => [word, "Metal 3.0 is C++14"],
  ),
  ...["atomic_float", "atomic_bool", "atomic_ulong", "atomic_thread_fence"].map((word): [string, string] => [
    word,
    "only 32-bit integer atomics are simulated",
  ]),
  ...["memory_order_seq_cst", "memory_order_acquire", "memory_order_release", "memory_order_acq_rel"].map(
    (word): [string, string] => [word, "Metal 3.0 has relaxed atomics only"],
  ),
  ...["sampler", "visible_function_table", "intersection_function_table", "object_data", "ray_data"].map(
    (word): [string, string] => [word, "it is not simulated"],
  ),
]);

/** Families of words that no kernel of ours may use. */
export const refusedPatterns: readonly (readonly [pattern: RegExp, reason: string])[] = [
  [/^bfloat\d/, "bfloat needs Metal 3.1; hold bf16 as ushort and widen it by a shift"],
  [/^(?:half|float)[234]x[234]$/, "matrices are not simulated; use vectors or simdgroup matrices"],
  [/^packed_/, "packed vectors are not simulated; use scalars"],
  [/^simdgroup_bfloat/, "bfloat needs Metal 3.1; use float"],
  [/^(?:texture|depth)\w*_?(?:1d|2d|3d|cube|buffer)/, "textures are not simulated"],
  [/^(?:tensor|cooperative)/, "tensor operations are not simulated"],
  [/^(?:sim|sim_\w*|SIM_\w*)$/, "the name is the simulator's"],
];
