// Owns the proof of the lint, and the linting of every kernel of the product.

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { families, familySource } from "../../scripts/msl/families.ts";
import { lint } from "./lint.ts";

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
    ["what C++14 lacks", "} template <auto N> static int f() { return N;", "until C++17"],
  ])("rejects %s", (_, body, message) => {
    expect(() => lint(kernel(body), "x.metal")).toThrow(message);
    expect(() => lint(kernel(body), "x.metal")).toThrow("x.metal:6: ");
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
