// The agreement of csrc/bnb.h and src/native.ts: names, argument and return types, enum values, version.

import { FFIType } from "bun:ffi";
import { describe, expect, test } from "bun:test";
import { statuses } from "../src/error.ts";
import { version } from "../src/index.ts";
import {
  activations,
  attentionOptions,
  counters,
  dtypes,
  hyperparameters,
  optimizers,
  parts,
  precisions,
  scaleRules,
  sizes,
  symbols,
} from "../src/native.ts";
import { declarations, enumMembers, header } from "./header.ts";

/** The FFI type of a C declaration such as `const char *name`, `size_t rows` or `bnb_status`. */
function ffiType(declaration: string, isResult: boolean): FFIType {
  const type = declaration.trim();
  if (/^const char \*/.test(type)) return FFIType.cstring;
  if (type.includes("*")) return FFIType.ptr;
  if (/^void\b/.test(type)) return FFIType.void;
  if (/^size_t\b/.test(type)) return isResult ? FFIType.u64 : FFIType.ptr;
  if (/^uint32_t\b/.test(type)) return FFIType.u32;
  if (/^int32_t\b/.test(type)) return FFIType.i32;
  if (/^float\b/.test(type)) return FFIType.f32;
  if (/^double\b/.test(type)) return FFIType.f64;
  if (/^bnb_(status|dtype|precision|scales|part|counter|size|optimizer|activation)\b/.test(type)) return FFIType.i32;
  throw new Error(`bnb.h uses a type that the ABI has no row for: ${declaration}`);
}

const declared = Object.fromEntries(
  declarations.map(({ name, returns, parameters }) => [
    name,
    { args: parameters.map(({ type }) => ffiType(type, false)), returns: ffiType(returns, true) },
  ]),
);

test("every function of bnb.h has its row in native.ts, and no other row is there", () => {
  expect(Object.keys(declared).length).toBe(header.match(/BNB_API /g)!.length - 1); // less the macro's own line
  expect(symbols as unknown).toEqual(declared);
});

const camelCase = (name: string) => name.toLowerCase().replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());

test.each([
  ["bnb_hyperparameters", hyperparameters],
  ["bnb_attention_options", attentionOptions],
])("%s is an array of doubles, in native.ts's order", (struct, order) => {
  const members = new RegExp(`typedef struct ${struct} \\{([\\s\\S]*?)\\}`).exec(header)![1]!;
  const body = members.replace(/\/\*[\s\S]*?\*\//g, "");
  const declarations = body.split(";").filter((line) => line.trim());
  for (const declaration of declarations) expect(declaration.trim()).toStartWith("double ");
  const names = declarations.flatMap((line) => line.replace(/^\s*double/, "").split(",")).map((name) => name.trim());
  expect(order as readonly string[]).toEqual(names.map(camelCase));
});

/** An enum's members without their prefix, in camelCase. */
function enumOf(name: string, prefix: string): Record<string, number> {
  return Object.fromEntries(
    enumMembers(name).map(([member, value]) => [camelCase(member.slice(prefix.length)), value]),
  );
}

describe("enums", () => {
  test("bnb_dtype", () => {
    const names = { f32: "float32", f16: "float16", bf16: "bfloat16", i8: "int8", u8: "uint8", i32: "int32" };
    const members = Object.entries(enumOf("bnb_dtype", "BNB_"));
    expect(dtypes as unknown).toEqual(
      Object.fromEntries(members.map(([name, value]) => [names[name as keyof typeof names], value])),
    );
  });

  test.each([
    ["bnb_precision", "BNB_PRECISION_", precisions],
    ["bnb_scales", "BNB_SCALES_", scaleRules],
    ["bnb_part", "BNB_PART_", parts],
    ["bnb_counter", "BNB_COUNTER_", counters],
    ["bnb_size", "BNB_SIZE_", sizes],
    ["bnb_optimizer", "BNB_OPTIMIZER_", optimizers],
    ["bnb_activation", "BNB_ACTIVATION_", activations],
  ])("%s", (name, prefix, table) => {
    expect(table as unknown).toEqual(enumOf(name, prefix));
  });

  test("bnb_status", () => {
    const members = Object.keys(enumOf("bnb_status", "BNB_"));
    expect(members).toEqual(statuses.map(camelCase));
  });
});

test("the library has the package's version", async () => {
  expect(version).toBe((await Bun.file(`${import.meta.dir}/../package.json`).json()).version);
});
