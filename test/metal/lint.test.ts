// The proof of the lint, and the linting of every kernel of the product.

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { families, familySource } from "../../scripts/msl/families.ts";
import { lint } from "./lint.ts";
import { typeCheck } from "./toolchain.ts";

const head = "#include <metal_stdlib>\nusing namespace metal;\n";
/** A kernel whose body stands in line 6, after helpers in lines 3 and 4. */
const kernel = (body: string) => `${head}static float first(threadgroup const float *x) { return x[0]; }
struct Pair { float a, b; };
kernel void k(device float *o [[buffer(0)]], constant Pair &p [[buffer(1)]], uint i [[thread_position_in_grid]]) {
${body}
}`;

describe("the lint", () => {
  test.each([
    ["device memory for a threadgroup pointer", "o[i] = first(o);", "no matching function"],
    ["a thread array for a threadgroup pointer", "float s[4]; o[i] = first(s);", "no matching function"],
    [
      "a threadgroup variable kept as a device pointer",
      "threadgroup float s[4]; device float *q = s; o[i] = q[i];",
      "cannot initialize",
    ],
    ["a constant struct kept as a device pointer", "device const Pair *q = &p; o[i] = q->a;", "cannot initialize"],
    ["a cast from constant to device", "o[i] = ((device const float *)&p)[0];", "address space"],
    ["a cast from threadgroup to device", "threadgroup float s[4]; o[i] = ((device float *)s)[0];", "address space"],
    ["a thread reference to device memory", "thread float &r = o[i]; r = 1.0f;", "address space"],
    ["a write through constant", "p.a = 1.0f;", "const-qualified"],
    ["a sum of 64-bit integers across lanes", "o[i] = float(simd_sum(ulong(i)));", "no matching function"],
    ["a bool from another lane", "o[i] = simd_shuffle(i > 3, ushort(0)) ? 1.0f : 0.0f;", "no matching function"],
    ["bits of floats across lanes", "o[i] = simd_xor(o[i]);", "no matching function"],
    ["a mixture of integers", "o[i] = float(min(i, 3));", "call to 'min' is ambiguous"],
    ["a mixture of widths", "o[i] = float(max(i, ulong(3)));", "call to 'max' is ambiguous"],
    ["a mixture of integer and float", "o[i] = clamp(o[i], 0, 1);", "call to 'clamp' is ambiguous"],
    ["bits of a float", "o[i] = popcount(o[i]);", "ambiguous"],
    ["a precise function of half, which has none", "o[i] = precise::sqrt(half4(o[i])).x;", "no matching function"],
    ["what C++14 lacks", "} template <auto N> static int f() { return N;", "until C++17"],
  ])("rejects %s", (_, body, message) => {
    expect(() => lint(kernel(body), "x.metal")).toThrow(message);
    expect(() => lint(kernel(body), "x.metal")).toThrow("x.metal:6: ");
  });

  test.each([
    [
      "a type's name that Apple reserves",
      "struct float8 { float4 low, high; };",
      "float8: Apple's <metal_stdlib> keeps",
    ],
    [
      "the packed form of one",
      "struct packed_half16 { half all[16]; };",
      "packed_half16: Apple's <metal_stdlib> keeps",
    ],
    ["a word for a type that Metal has not", "static float f(float complex) { return complex; }", "complex: Apple's"],
    [
      "a function named as one of Metal's",
      "static float dot(float4 a, float4 b) { return a.x * b.x; }",
      "dot is a name",
    ],
    ["a struct named as a template of Metal's", "struct array { float all[4]; };", "array is a name of Metal's own"],
    ["a constant named so", "constant float step = 1.0f;", "step is a name of Metal's own"],
  ])("and the translator %s", (_, source, message) => {
    expect(() => lint(`${head}${source}`, "x.metal")).toThrow(`x.metal:3: ${message}`);
  });

  // What the translator refuses by name, Apple's header would refuse too: so its declarations clash.
  test("declares what Apple's header does", () => {
    const typed = (source: string) => () => typeCheck(`#include "lint.h"\n${source}`, "x.metal", "c++14");
    expect(typed("struct octet { float4 low, high; };")).not.toThrow();
    expect(typed("struct float8 { float4 low, high; };")).toThrow("float8");
    expect(typed("using namespace metal; float dot(float4, float4); float x = dot(float4(1), float4(2));")).toThrow(
      "ambiguous",
    );
  });

  test("accepts what is right", () => {
    lint(
      kernel("threadgroup float s[4]; s[i] = p.a; Pair q = p; device float *r = o + 1; r[i] = first(s) + q.b;"),
      "x.metal",
    );
    lint(readFileSync(join(import.meta.dir, "planted/correct.metal"), "utf8"), "correct.metal");
  });

  test.each(families)("accepts metal/%s.metal", (stem) => {
    expect(() => lint(familySource(stem), stem)).not.toThrow();
  });
});
