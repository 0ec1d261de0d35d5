// Holds csrc/gpu/metal/selectors.h to Apple's interface, as two others wrote it down: the objc2 crates, which are
// generated from Apple's headers, have every method with its types; Apple's own metal-cpp has the selectors' names.
//
// Run by `bun run test:oracle`, never by `bun test`: it downloads.
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { crates, wheel } from "./download.ts";

const gpu = resolve(import.meta.dir, "../../../csrc/gpu/metal");

interface Method {
  class: string;
  selector: string;
  types: string[]; // what is returned, then the arguments
}

/** C's types, as far as the calling convention tells them apart. */
const cTypes: Record<string, string> = {
  id: "object",
  "id *": "error",
  SEL: "selector",
  void: "void",
  bool: "bool",
  double: "double",
  "const char *": "pointer",
  "void *": "pointer",
  "const void *": "pointer",
  NSUInteger: "unsigned",
  uint64_t: "unsigned",
  NSInteger: "signed",
  MTLSize: "MTLSize",
  NSOperatingSystemVersion: "NSOperatingSystemVersion",
};

function ourMethods(): Method[] {
  const text = readFileSync(join(gpu, "selectors.h"), "utf8")
    .split("#define")[2]!
    .replaceAll(/\s*\\\n\s*/g, " ");
  const rows = text.matchAll(/METHOD\((\w+), (\w+), "([^"]+)", ([^)]+)\)/g);
  return [...rows].map(([, owner, , selector, types]) => ({
    class: owner!,
    selector: selector!,
    types: types!.split(",").map((type) => {
      const known = cTypes[type.trim()];
      if (!known) throw new Error(`selectors.h: ${selector} has the type ${type}, which this test does not know`);
      return known;
    }),
  }));
}

// ── objc2 ───────────────────────────────────────────────────────────────────────────────────────────────────────────

const folders = crates({ "objc2-metal": "0.3.2", "objc2-foundation": "0.3.2" });
const sources = ["objc2-metal", "objc2-foundation"].flatMap((name) => {
  const folder = join(folders[name]!, "src/generated");
  return [...new Bun.Glob("*.rs").scanSync(folder)].map((file) => readFileSync(join(folder, file), "utf8"));
});

/** Enumerations are structs around an integer there. */
const enumerations = new Map(
  sources.flatMap((text) =>
    [...text.matchAll(/pub struct (\w+)\(pub (NSU?Integer)\);/g)].map(
      ([, name, integer]) => [name!, integer === "NSInteger" ? "signed" : "unsigned"] as const,
    ),
  ),
);

function rustType(type: string): string {
  const bare = type.trim().replace(/^Option<(.*)>$/, "$1");
  if (bare.startsWith("&block2::")) return "pointer";
  if (/^(&|Retained<|Allocated<)/.test(bare)) return "object";
  if (/^(NonNull<|\*const |\*mut )/.test(bare)) return "pointer";
  if (["NSUInteger", "u64", "c_ulonglong"].includes(bare)) return "unsigned";
  if (bare === "NSInteger") return "signed";
  if (bare === "CFTimeInterval") return "double";
  return enumerations.get(bare) ?? bare;
}

function rustMethods(text: string): Method[] {
  const pattern =
    /(?:pub unsafe trait|impl(?:<[^>]*>)?) (\w+)|#\[unsafe\(method\(([\w:]+)\)\)\][^;]*?fn \w+(?:<[^>]*>)?\s*\(([^)]*(?:\([^)]*\)[^)]*)*)\)(?:\s*->\s*([^;{]+?))?\s*;/g;
  const methods: Method[] = [];
  let owner = "";
  for (const [, opened, selector, parameters, returned] of text.matchAll(pattern)) {
    if (opened) owner = opened;
    if (!selector) continue;
    const types = parameters!.split(/,(?![^<]*>)/).filter((parameter) => /\w:/.test(parameter));
    const result = /^Result<\(\)/.test(returned ?? "")
      ? "bool"
      : /^Result</.test(returned ?? "")
        ? "Retained<"
        : (returned ?? "void");
    methods.push({
      class: owner,
      selector: selector.replace(/:_$/, ":"),
      types: [
        rustType(result),
        ...types.map((parameter) => rustType(parameter.slice(parameter.search(/\w:/) + 2))),
        ...(selector.endsWith(":_") ? ["error"] : []),
      ],
    });
  }
  return methods;
}

const theirs = sources.flatMap(rustMethods);

// ── The tests ───────────────────────────────────────────────────────────────────────────────────────────────────────

const ours = ourMethods();
/** The crates write the root class by hand, and metal-cpp lacks these two: each is then confirmed by the other only. */
const notInCrates = ["retain", "release", "respondsToSelector:"];
const notInCpp = ["new", "stringWithUTF8String:"];
/** A method may come from what its class builds on. */
const builtOn: Record<string, string> = { MTLComputeCommandEncoder: "MTLCommandEncoder", MTLBuffer: "MTLResource" };

test("there are methods to compare", () => {
  expect(ours.length).toBeGreaterThan(40);
  expect(theirs.length).toBeGreaterThan(5000);
});

test.each(ours.filter(({ selector }) => !notInCrates.includes(selector)))(
  "$class $selector has objc2's types",
  (method) => {
    const same = theirs.filter(({ selector }) => selector === method.selector);
    const classes = [method.class, builtOn[method.class]];
    const own = method.class === "NSObject" ? same : same.filter((their) => classes.includes(their.class));
    expect(own.map(({ types }) => types)).toContainEqual(method.types);
  },
);

test.each(ours.filter(({ selector }) => !notInCpp.includes(selector)))("$class $selector is in metal-cpp", (method) => {
  expect(names.has(method.selector)).toBe(true);
});

const headers = join(wheel("mlx-metal", "0.32.4", "macosx_14_0_arm64"), "mlx/include/metal_cpp");
const names = new Set(
  [...new Bun.Glob("*/*.hpp").scanSync(headers)].flatMap((file) =>
    [...readFileSync(join(headers, file), "utf8").matchAll(/PRIVATE_DEF_SEL\(\s*\w+,\s*"([^"]+)"/g)].map(
      ([, name]) => name!,
    ),
  ),
);

/** Our names for Apple's constants, and the crates'. */
const constants: [string, string][] = [
  ["MTL_GPU_FAMILY_APPLE7", "pub const Apple7: Self = Self(1007);"],
  ["MTL_GPU_FAMILY_METAL3", "pub const Metal3: Self = Self(5001);"],
  ["MTL_LANGUAGE_VERSION_3_0", "pub const Version3_0: Self = Self((3 << 16) + 0);"],
  ["MTL_MATH_MODE_SAFE", '#[doc(alias = "MTLMathModeSafe")]\n    pub const Safe: Self = Self(0);'],
  ["MTL_DATA_TYPE_UINT", "pub const UInt: Self = Self(33);"],
  ["MTL_CAPTURE_GPU_TRACE_DOCUMENT", "pub const GPUTraceDocument: Self = Self(2);"],
  ["MTL_COMMAND_BUFFER_COMPLETED", "pub const Completed: Self = Self(4);"],
  ["MTL_COMMAND_BUFFER_ERROR", '#[doc(alias = "MTLCommandBufferStatusError")]\n    pub const Error: Self = Self(5);'],
];

test.each(constants)("%s has Apple's value", (name, rust) => {
  const header = readFileSync(join(gpu, "objc.h"), "utf8");
  const value = header.match(new RegExp(`\\b${name} += ([^,]+),`))?.[1];
  const theirValue = rust.match(/Self\((.*)\);/)?.[1];
  expect(sources.some((text) => text.includes(rust))).toBe(true);
  expect(value?.replaceAll(/\s/g, "")).toBe(theirValue?.replaceAll(/\s|[()]|\+ 0/g, "") ?? "");
});
