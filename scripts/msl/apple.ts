// Owns what Apple's <metal_stdlib> declares, as data: the names that it keeps for itself, and its functions with the
// types that each takes. The translator refuses kernels that declare such a name, and the lint declares them as Apple
// does.

const sized = (elements: readonly string[], sizes: readonly number[]) =>
  elements.flatMap((element) => sizes.map((size) => `${element}${size}`));

const small = ["bool", "char", "uchar", "short", "ushort", "int", "uint", "half", "float", "long", "ulong"];
const absent = ["llong", "ullong", "double", "quad"];

/** Types that stand at global scope under the name `__Reserved_Name__Do_not_use_…`: no source may declare them. */
export const reservedTypes: readonly string[] = [
  ...sized([...small, ...absent], [8, 16]).flatMap((name) => [name, `packed_${name}`]),
  ...sized(absent, [2, 3, 4]),
  ...["llong", "ullong", "quad", "complex", "imaginary", "float8x8", "float16x16"],
];

/** Families of types: their scalars; vectors of 2, 3 and 4 of each belong to them too. */
export const typeFamilies = {
  float: ["half", "float"],
  single: ["float"],
  integer: ["char", "uchar", "short", "ushort", "int", "uint", "long", "ulong"],
  // __is_valid_simdgroup_type: no 64 bits, no bool.
  simd: ["half", "float", "char", "uchar", "short", "ushort", "int", "uint"],
  simdInteger: ["char", "uchar", "short", "ushort", "int", "uint"],
} as const;

/**
 * Functions by signature: T is any type of the families, E its element, B a bool for each element.
 *
 * Those with `overloads` are a function for each type, so that arguments convert, and a mixture is ambiguous; the
 * others are templates, so that the argument's own type must be in the family.
 */
export interface FunctionGroup {
  readonly signature: string;
  readonly families: readonly (keyof typeof typeFamilies)[];
  readonly overloads: boolean;
  readonly names: readonly string[];
  /** Whether float has a precise:: and a fast:: form: "math" of other bits, "nan" where only NaN differs. */
  readonly forms?: "math" | "nan";
}

const words = (text: string) => text.split(/\s+/);

export const functionGroups: readonly FunctionGroup[] = [
  {
    signature: "T(T)",
    families: ["float"],
    overloads: true,
    names: words("ceil fabs floor rint round trunc"),
  },
  {
    signature: "T(T)",
    families: ["float"],
    overloads: true,
    forms: "math",
    names: words("acos asin atan cos cosh exp exp10 exp2 fract log log10 log2 rsqrt sin sinh sqrt tan tanh"),
  },
  { signature: "T(T)", families: ["float"], overloads: true, names: words("sign") },
  { signature: "T(T)", families: ["float"], overloads: true, forms: "nan", names: words("saturate") },
  { signature: "T(T)", families: ["float", "integer"], overloads: true, names: words("abs") },
  { signature: "T(T,T)", families: ["float"], overloads: true, names: words("copysign") },
  {
    signature: "T(T,T)",
    families: ["float"],
    overloads: true,
    forms: "math",
    names: words("atan2 divide fmod pow powr"),
  },
  { signature: "T(T,T)", families: ["float"], overloads: true, forms: "nan", names: words("fmax fmin") },
  { signature: "T(T,T)", families: ["float", "integer"], overloads: true, forms: "nan", names: words("max min") },
  { signature: "T(T,T,T)", families: ["float", "integer"], overloads: true, forms: "nan", names: words("clamp") },
  { signature: "T(T,T,T)", families: ["float"], overloads: true, names: words("fma mix") },
  { signature: "T(T,int)", families: ["float"], overloads: true, names: words("ldexp") },
  { signature: "E(T,T)", families: ["float"], overloads: true, names: words("dot") },
  { signature: "B(T)", families: ["float"], overloads: true, names: words("isfinite isinf isnan signbit") },
  { signature: "T(T)", families: ["integer"], overloads: true, names: words("clz ctz popcount reverse_bits") },
  { signature: "T(T,T)", families: ["integer"], overloads: true, names: words("mulhi rotate") },
  { signature: "T(T,uint,uint)", families: ["integer"], overloads: true, names: words("extract_bits") },
  {
    signature: "T(T)",
    families: ["simd"],
    overloads: false,
    names: words(
      "quad_max quad_min quad_sum simd_broadcast_first simd_max simd_min simd_prefix_exclusive_sum " +
        "simd_prefix_inclusive_sum simd_product simd_sum",
    ),
  },
  { signature: "T(T)", families: ["simdInteger"], overloads: false, names: words("simd_and simd_or simd_xor") },
  {
    signature: "T(T,ushort)",
    families: ["simd"],
    overloads: false,
    names: words(
      "quad_broadcast quad_shuffle quad_shuffle_xor simd_broadcast simd_shuffle simd_shuffle_down simd_shuffle_up " +
        "simd_shuffle_xor",
    ),
  },
];

/**
 * Names of metal_stdlib's namespace that the lint declares in other ways, or not at all; none may be a global's
 * name.
 */
const otherNames = words(
  `all any select not simd_all simd_any simd_is_first simd_ballot simd_active_threads_mask threadgroup_barrier
  simdgroup_barrier atomic_thread_fence as_type simdgroup_load simdgroup_store simdgroup_multiply
  simdgroup_multiply_accumulate make_filled_simdgroup_matrix make_diagonal_simdgroup_matrix simdgroup_matrix vec matrix
  packed_vec array array_ref atomic sampler texture mem_flags memory_order numeric_limits is_same conditional enable_if
  acosh asinh atanh cospi sinpi tanpi sincos fdim fmax3 fmin3 fmedian3 max3 min3 median3 frexp ilogb modf nextafter
  smoothstep step isnormal isordered isunordered absdiff addsat subsat hadd rhadd insert_bits mad24 madhi madsat mul24
  cross distance distance_squared faceforward length length_squared normalize reflect refract determinant transpose
  dfdx dfdy fwidth discard_fragment quad_all quad_any quad_ballot quad_product quad_and quad_or quad_xor
  simd_shuffle_and_fill_down simd_shuffle_and_fill_up simd_shuffle_rotate_down simd_shuffle_rotate_up
  simd_prefix_exclusive_product simd_prefix_inclusive_product pack_float_to_snorm4x8 pack_float_to_unorm4x8
  unpack_snorm4x8_to_float unpack_unorm4x8_to_float swap get begin end`,
);

/** Everything that a global function or type of ours may not be called. */
export const metalNames: ReadonlySet<string> = new Set([
  ...functionGroups.flatMap(({ names }) => names),
  ...otherNames,
  ...["load", "store", "exchange", "fetch_add", "fetch_sub", "fetch_and", "fetch_or", "fetch_xor", "fetch_min"].map(
    (verb) => `atomic_${verb}_explicit`,
  ),
]);

const vectors = (scalar: string) =>
  [1, 2, 3, 4].map((size) => ({ scalar, size, type: size > 1 ? `${scalar}${size}` : scalar }));

/** C++14 that declares all of it, for the lint: what Apple's header says, where its compiler can't be asked. */
export function appleHeader(): string {
  const reserved = reservedTypes.map((name) => `typedef struct __Reserved_Name__Do_not_use_${name} ${name};`);
  const valid = (family: "simd" | "simdInteger") =>
    typeFamilies[family]
      .flatMap(vectors)
      .map(({ type }) => `template <> struct is_${family}<${type}> { static constexpr bool value = true; };`);
  const lines = [
    "// Made from scripts/msl/apple.ts.",
    "namespace metal {",
    ...(["simd", "simdInteger"] as const).flatMap((family) => [
      `template <class T> struct is_${family} { static constexpr bool value = false; };`,
      ...valid(family),
    ]),
    ...functionGroups.flatMap((group) => (group.overloads ? overloadsOf(group, group.families) : templatesOf(group))),
    ...["precise", "fast"].flatMap((form) => [
      `namespace ${form} {`,
      ...functionGroups.flatMap((group) => (group.forms ? overloadsOf(group, ["single"]) : [])),
      "}",
    ]),
    "}",
  ];
  return `${[...reserved, ...lines].join("\n")}\n`;
}

function overloadsOf({ signature, names }: FunctionGroup, families: FunctionGroup["families"]): string[] {
  const types = families.flatMap((family) => typeFamilies[family].flatMap(vectors));
  return names.flatMap((name) =>
    types.flatMap(({ scalar, size, type }) => {
      if (signature.startsWith("E") && size === 1) return [];
      const [gives, takes] = signature.slice(0, -1).split("(") as [string, string];
      const of: Record<string, string> = { T: type, E: scalar, B: size > 1 ? `bool${size}` : "bool" };
      const typed = (text: string) => of[text] ?? text;
      return [`${typed(gives)} ${name}(${takes.split(",").map(typed).join(", ")});`];
    }),
  );
}

function templatesOf({ signature, names, families: [family] }: FunctionGroup): string[] {
  const takes = signature.slice(2, -1).split(",").join(", ");
  return names.map((name) => `template <class T, class = enable_if_t<is_${family}<T>::value>> T ${name}(${takes});`);
}
