// The proof that the translator refuses what it must, by name and line, and reports kernels as the host sees them.

import { describe, expect, test } from "bun:test";
import { TranslateError, translate } from "../../scripts/msl/translate.ts";
import { compile } from "./simulator.ts";

const head = "#include <metal_stdlib>\nusing namespace metal;\n";
const messageOf = (run: () => unknown): string => {
  try {
    run();
    return "accepted";
  } catch (error) {
    if (error instanceof TranslateError) return error.message;
    throw error;
  }
};
/** A kernel whose body stands in line 4. */
const inBody = (body: string) =>
  `kernel void k(device float *o [[buffer(0)]], uint i [[thread_position_in_grid]]) {\n${body}\n}`;

describe("the translator refuses", () => {
  // What it is, the source from line 3 on, the line, and what the message says.
  const rows: [string, string, number, string][] = [
    [
      "a pointer parameter without an address space",
      "static float f(const float *x) { return x[0]; }",
      3,
      "a pointer without an address space: const float *",
    ],
    [
      "a reference without an address space",
      "static void f(float &x) { x = 0.0f; }",
      3,
      "a reference without an address space: float &",
    ],
    [
      "a pointer to a template parameter",
      "template <typename T> static T f(const T *x) { return x[0]; }",
      3,
      "a pointer without an address space",
    ],
    [
      "a pointer to a vec",
      "static float f(vec<float, 4> *x) { return x[0].x; }",
      3,
      "a pointer without an address space",
    ],
    ["a local pointer", inBody("float *p = 0;"), 4, "a pointer without an address space: float *"],
    [
      "a cast to a pointer",
      inBody("o[i] = *(const float *)(o + 1);"),
      4,
      "a pointer without an address space: const float *",
    ],
    [
      "a reinterpret_cast",
      inBody("o[i] = *reinterpret_cast<float *>(o);"),
      4,
      "a pointer without an address space: float *",
    ],
    ["auto by reference", inBody("auto &x = o[i];"), 4, "a reference without an address space: auto &"],
    ["a pointer in a struct", "struct S { float *x; };", 3, "a pointer without an address space: float *"],
    ["a pointer to a pointer", inBody("device float *device *p = 0;"), 4, "a pointer to a pointer"],
    ["an array parameter", "static float f(float x[4]) { return x[0]; }", 3, "the array parameter float x[4]"],
    ["an rvalue reference", "static void f(thread float &&x) {}", 3, "an rvalue reference"],
    [
      "an initialised threadgroup variable",
      inBody("threadgroup float s = 0.0f;"),
      4,
      "an initialiser of a threadgroup variable",
    ],
    [
      "a braced threadgroup variable",
      inBody("threadgroup float s[2]{};"),
      4,
      "an initialiser of a threadgroup variable",
    ],
    [
      "a threadgroup variable in a helper",
      "static void f() {\nthreadgroup float s[4];\n}",
      4,
      "a threadgroup variable outside a kernel",
    ],
    [
      "a threadgroup variable in a block",
      inBody("{ threadgroup float s[4]; }"),
      4,
      "a threadgroup variable in an inner block",
    ],
    [
      "a threadgroup variable of an unknown type",
      inBody("threadgroup Unknown s[4];"),
      4,
      "of the unknown type Unknown",
    ],
    [
      "a threadgroup variable at file scope",
      "threadgroup float s[4];",
      3,
      "the global s is not in the constant address space",
    ],
    ["a global variable", "float s = 0.0f;", 3, "the global s is not in the constant address space"],
    ["a device variable", inBody("device float x;"), 4, "a device variable inside a function"],
    [
      "a constant variable in a function",
      inBody("constant float x = 1.0f;"),
      4,
      "a constant variable inside a function",
    ],
    ["an unsuffixed number", inBody("o[i] = 0.5;"), 4, "the number 0.5 is a double without a suffix"],
    ["an unsuffixed exponent", inBody("o[i] = 1e-3;"), 4, "the number 1e-3 is a double"],
    ["double", inBody("double x = 1;"), 4, "double: Metal has no double precision"],
    ["bfloat", inBody("bfloat x = 1;"), 4, "bfloat: bfloat needs Metal 3.1"],
    ["bfloat4", inBody("bfloat4 x;"), 4, "bfloat4: bfloat needs Metal 3.1"],
    ["a value over 16 bytes", inBody("ulong4 x;"), 4, "ulong4: values over 16 bytes"],
    ["a vec over 16 bytes", inBody("vec<ulong, 4> x;"), 4, "vec<ulong, 4>: values over 16 bytes"],
    ["long long", inBody("long long x = 1;"), 4, "long long: Metal has no such type"],
    ["mem_none", inBody("simdgroup_barrier(mem_flags::mem_none);"), 4, "mem_none: mem_none orders nothing"],
    [
      "thread_elements",
      inBody("simdgroup_float8x8 m; m.thread_elements()[0] = 1.0f;"),
      4,
      "thread_elements: the layout",
    ],
    ["a matrix", inBody("float4x4 m;"), 4, "float4x4: matrices are not simulated"],
    ["a packed vector", inBody("packed_float3 v;"), 4, "packed_float3: packed vectors"],
    ["a texture", "kernel void k(texture2d<float> t [[texture(0)]]) {}", 3, "the attribute [[texture(0)]]"],
    ["a three-component vector in a struct", "struct S { float a; float3 b; };", 3, "float3 in a struct"],
    [
      "a member function",
      "struct S { float a; float get() { return a; } };",
      3,
      "a member function with an implicit this",
    ],
    ["an operator", "struct S { float a; }; static S operator+(S x, S y) { return x; }", 3, "operator: "],
    ["a union", "union U { float f; uint u; };", 3, "union"],
    ["goto", inBody("goto end; end:;"), 4, "goto: Metal has no such construct"],
    ["a lambda", inBody("auto f = [](float x) { return x; };"), 4, "lambdas are not in Metal 3.0"],
    ["a static variable", inBody("static int x = 0;"), 4, "static inside a function"],
    ["volatile", inBody("volatile float x = 0.0f;"), 4, "volatile: "],
    [
      "an ordering that Metal lacks",
      inBody("x(memory_order_seq_cst);"),
      4,
      "memory_order_seq_cst: Metal 3.0 has relaxed atomics only",
    ],
    [
      "a float atomic",
      "kernel void k(device atomic_float *x [[buffer(0)]]) {}",
      3,
      "atomic_float: only 32-bit integer atomics",
    ],
    [
      "recursion",
      "static int f(int x);\nstatic int g(int x) { return f(x); }\nstatic int f(int x) { return x > 0 ? g(x - 1) : 0; }",
      4,
      "calls itself",
    ],
    [
      "an unknown attribute of a parameter",
      "kernel void k(device float *o [[buffer(0)]], uint i [[thread_position]]) {}",
      3,
      "the attribute [[thread_position]]",
    ],
    ["an unknown attribute of a function", "[[fragment]] void k() {}", 3, "the attribute [[fragment]]"],
    ["an attribute in a body", inBody("[[unlikely]] o[i] = 0.0f;"), 4, "the attribute [[unlikely]]"],
    [
      "a parameter without an attribute",
      "kernel void k(device float *o) {}",
      3,
      "the kernel parameter device float *o has no attribute",
    ],
    [
      "a position of the wrong type",
      "kernel void k(float i [[thread_position_in_grid]]) {}",
      3,
      "[[thread_position_in_grid]] must be uint, uint2",
    ],
    [
      "a lane of two components",
      "kernel void k(uint2 i [[thread_index_in_simdgroup]]) {}",
      3,
      "[[thread_index_in_simdgroup]] must be uint, ushort",
    ],
    [
      "places that differ in components",
      "kernel void k(uint2 i [[thread_position_in_grid]],\nuint3 g [[threadgroup_position_in_grid]]) {}",
      3,
      "differ in components",
    ],
    [
      "a place without components beside one that has some",
      "kernel void k(uint2 i [[thread_position_in_grid]], uint n [[threads_per_grid]]) {}",
      3,
      "uint2 i and uint n differ in components",
    ],
    [
      "a buffer index twice",
      "kernel void k(device float *x [[buffer(0)]], device float *y [[buffer(0)]]) {}",
      3,
      "[[buffer(0)]] is used twice",
    ],
    ["a buffer index too great", "kernel void k(device float *x [[buffer(31)]]) {}", 3, "the greatest index is 30"],
    [
      "a buffer in threadgroup memory",
      "kernel void k(threadgroup float *x [[buffer(0)]]) {}",
      3,
      "[[buffer(n)]] takes a device or constant pointer",
    ],
    [
      "a buffer by value",
      "kernel void k(constant float x [[buffer(0)]]) {}",
      3,
      "[[buffer(n)]] takes a device or constant pointer",
    ],
    ["a kernel that returns something", "kernel float k() { return 0.0f; }", 3, "must return void"],
    [
      "two kernels of one name",
      "kernel void k() {}\nkernel void k(device float *x [[buffer(0)]]) {}",
      4,
      "two kernels are named k",
    ],
    [
      "two kernels of one host name",
      '[[host_name("a")]] kernel void k() {}\n[[host_name("a")]] kernel void m() {}',
      4,
      "two kernels have the host name a",
    ],
    [
      "an instance without a host name",
      "template <int N> kernel void k() {}\ntemplate [[kernel]] decltype(k<1>) k<1>;",
      4,
      "an explicit instantiation must be",
    ],
    [
      "an instance of no kernel",
      'template <int N> static void k() {}\ntemplate [[host_name("a")]] [[kernel]] decltype(k<1>) k<1>;',
      4,
      "which is no kernel template",
    ],
    ["a parameter pack", "template <typename... T> static void f(T... x) {}", 3, "a parameter pack"],
    [
      "a function constant of a struct",
      "struct S { int a; };\nconstant S s [[function_constant(0)]];",
      4,
      "a function constant must be",
    ],
    [
      "two function constants of one index",
      "constant int a [[function_constant(0)]];\nconstant int b [[function_constant(0)]];",
      4,
      "have one index",
    ],
    [
      "a constexpr that depends on a function constant",
      "constant int a [[function_constant(0)]];\nconstant constexpr int b = a + 1;",
      4,
      "cannot be constexpr",
    ],
    ["another header", "#include <algorithm>", 3, "'algorithm' file not found"],
    ["a pragma", "#pragma pack(1)", 3, "the pragma pack(1)"],
    ["a character", inBody("o[i] = 1.0f @ 2;"), 4, 'the character "@" is not Metal'],
    ["an unclosed bracket", "kernel void k() {", 3, "the bracket { is never closed"],
    ["a name of the simulator's", inBody("sim_lane();"), 4, "sim_lane: the name is the simulator's"],
    ["a failed assertion of the preprocessor", "#error no", 3, "no"],
  ];

  test.each(rows)("%s", (_, source, line, message) => {
    const actual = messageOf(() => translate(head + source, "rows.metal"));
    expect(actual).toStartWith(`rows.metal:${line}: `);
    expect(actual).toContain(message);
  });

  // What C++ sees once it is translated: the messages are clang's, the lines are the source's.
  const compiled: [string, string, number, string][] = [
    ["an unknown name", inBody("o[i] = frobnicate(1.0f);"), 4, "undeclared identifier 'frobnicate'"],
    ["a write to constant memory", "kernel void k(constant float *x [[buffer(0)]]) { x[0] = 1.0f; }", 3, "read-only"],
    [
      "a write through device const",
      "kernel void k(device const float *x [[buffer(0)]]) { x[0] = 1.0f; }",
      3,
      "read-only",
    ],
    [
      "vectors of different sizes",
      inBody("float4 v = float4(float2(1.0f), 1.0f);"),
      4,
      "the parts do not fill the vector",
    ],
    ["a vector for a scalar", inBody("o[i] = float(float2(1.0f));"), 4, "vector"],
    ["an implicit conversion of vectors", inBody("float4 v = int4(1);"), 4, "cannot initialize"],
    ["a min of mixed types", inBody("o[i] = min(o[i], 1);"), 4, "no matching function for call to 'min'"],
    [
      "narrowing in braces",
      `struct Pair { float a, b; };\n${inBody("Pair q = {o[i], i}; o[i] = q.a;")}`,
      5,
      "cannot be narrowed",
    ],
    ["a variable-length array", inBody("float s[i];"), 4, "variable length array"],
    [
      "a fragment loaded from memory of another type",
      inBody("simdgroup_half8x8 m; simdgroup_load(m, o, 8);"),
      4,
      "matrix's type",
    ],
  ];
  test.each(compiled)("%s (when it compiles)", (_, source, line, message) => {
    const actual = messageOf(() => compile(head + source, { name: "rows.metal" }));
    expect(actual).toContain(message);
    expect(actual).toStartWith(`rows.metal:${line}: `);
  });
});

// What third parties write otherwise than we do: Metal, and not a dialect of ours, is what the translator reads.
describe("of third parties the translator accepts", () => {
  const third = (source: string) => compile(`${head}${source}`, { dialect: "any", name: "third.metal" });

  test("attributes in one list, Metal's smaller headers, and assertions", () => {
    const library = third(`#include <metal_compute>
      #include <metal_common>
      #include <metal_geometric>
      template <typename T>
      [[kernel, max_total_threads_per_threadgroup(64)]] void twice(device const T *x, device T *y,
                                                                   uint i [[thread_position_in_grid]]) {
        assert(i < 64);
        y[i] = 2 * x[i];
      }
      template [[host_name("twice_float")]] [[kernel]] decltype(twice<float>) twice<float>;`);
    const y = new Float32Array(4);
    library.run("twice_float", { buffers: { 0: Float32Array.of(1, 2, 3, 4), 1: y }, grid: 1, group: 4 });
    expect([...y]).toEqual([2, 4, 6, 8]);
    expect(library.kernels[0]!.maxThreads).toBe("64");
    expect(() => library.run("twice_float", { buffers: { 0: y, 1: y }, grid: 1, group: 128 })).toThrow(
      "1 to 64 are allowed",
    );
  });

  test("a parameter that a function constant decides on", () => {
    const library = third(`constant bool has_bias [[function_constant(0)]];
      kernel void add(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                      device const float *bias [[buffer(2), function_constant(has_bias)]],
                      uint i [[thread_position_in_grid]]) {
        y[i] = has_bias ? x[i] + bias[i] : x[i];
      }`);
    const y = new Float32Array(2);
    const buffers = { 0: Float32Array.of(1, 2), 1: y, 2: Float32Array.of(10, 20) };
    library.run("add", { constants: { 0: true }, buffers, grid: 1, group: 2 });
    expect([...y]).toEqual([11, 22]);
  });

  test("products of vectors and matrices", () => {
    const library =
      third(`kernel void product(device const float4x4 *m [[buffer(0)]], device const float4 *v [[buffer(1)]],
                                               device float4 *y [[buffer(2)]]) {
        y[0] = v[0] * m[0];
        y[1] = m[0] * v[0];
      }`);
    const m = Float32Array.from({ length: 16 }, (_, i) => i); // by columns
    const v = Float32Array.of(1, 2, 3, 4);
    const y = new Float32Array(8);
    library.run("product", { buffers: { 0: m, 1: v, 2: y }, grid: 1, group: 1 });
    const at = (column: number, row: number) => m[4 * column + row]!;
    const sum = (term: (j: number) => number) => [0, 1, 2, 3].reduce((all, j) => all + term(j), 0);
    expect([...y.subarray(0, 4)]).toEqual([0, 1, 2, 3].map((i) => sum((j) => v[j]! * at(i, j))));
    expect([...y.subarray(4)]).toEqual([0, 1, 2, 3].map((i) => sum((j) => v[j]! * at(j, i))));
  });

  test("but of ours none of it", () => {
    for (const [source, message] of [
      [
        "kernel void k(device float *y [[buffer(0), function_constant(0)]]) {}",
        "the attribute [[buffer(0), function_constant(0)]]",
      ],
      [inBody("assert(i < 4);"), "assert"],
    ] as const)
      expect(() => compile(head + source, { name: "rows.metal" })).toThrow(message);
  });
});

describe("the translator", () => {
  test("keeps the lines of #line directives", () => {
    const source = `#line 1 "args.h"\nstruct Shape { uint n; };\n#line 10 "family.metal"\n${inBody("\n\no[i] = 0.5;")}`;
    expect(messageOf(() => translate(source, "x"))).toStartWith("family.metal:13: the number 0.5");
  });

  test("names the line of a fault in an included part", () => {
    const source = `${head}#line 7 "part.h"\nstatic float f(device const float *x, uint i) {\n return x[i + 1];\n}\n#line 1 "family.metal"\n${inBody("o[i] = f(o, i);")}`;
    const library = compile(source, { mode: "check" });
    expect(() => library.run("k", { buffers: { 0: new Float32Array(4) }, grid: 1, group: 4 })).toThrow(
      "part.h:8: read out of bounds",
    );
  });

  test("reports kernels as the host sees them", () => {
    const { kernels } = translate(
      `${head}
      struct Shape { uint n; };
      constant bool biased [[function_constant(2)]];
      constant uint unused [[function_constant(3)]];
      constant int offset [[function_constant(1 + 3)]];
      constant bool shifted = is_function_constant_defined(offset) ? offset > 0 : false;
      static float bias(float x) { return biased ? x + 1.0f : x; }
      template <typename T, int N>
      [[kernel]] void scale(device const T *x [[buffer(3)]], device T *y [[buffer(1)]], constant Shape &shape [[buffer(0)]],
                            threadgroup float *s [[threadgroup(2)]], uint i [[thread_position_in_grid]]) {
        threadgroup T own[N];
        own[i] = x[i];
        y[i] = shifted ? T(0) : T(bias(float(own[i])) + s[i] + float(shape.n));
      }
      template [[host_name("scale_" "half")]] [[kernel]] decltype(scale<half, 4>) scale<half, 4>;`,
      "kernels.metal",
    );
    expect(kernels).toMatchObject([
      {
        name: "scale_half",
        buffers: [
          { index: 3, name: "x", space: "device", readOnly: true, reference: false },
          { index: 1, name: "y", space: "device", readOnly: false, reference: false },
          { index: 0, name: "shape", space: "constant", readOnly: true, reference: true },
        ],
        threadgroup: [{ index: 2, name: "s" }],
        constants: [
          { index: 2, name: "biased", type: "bool", bytes: 1, required: true },
          { index: 4, name: "offset", type: "int", bytes: 4, required: false },
        ],
      },
    ]);
  });

  test("rounds half arithmetic after every operation", () => {
    const source = `${head}kernel void k(device const half *x [[buffer(0)]], device half *y [[buffer(1)]], uint i [[thread_position_in_grid]]) {
      y[i] = x[0] * x[1] + 1.0h / 3.0h;
    }`;
    const y = new Float16Array(1);
    const x = new Float16Array([0.1, 3.3]);
    compile(source, { mode: "check" }).run("k", { buffers: { 0: x, 1: y }, grid: 1, group: 1 });
    expect(y[0]).toBe(Math.f16round(Math.f16round(x[0]! * x[1]!) + Math.f16round(1 / 3)));
  });

  test("gives every position attribute its value", () => {
    const source = `${head}kernel void k(device uint *o [[buffer(0)]], uint3 a [[thread_position_in_grid]], uint3 b [[thread_position_in_threadgroup]],
      uint3 c [[threadgroup_position_in_grid]], uint3 d [[threads_per_threadgroup]], uint3 e [[threads_per_grid]],
      ushort3 f [[threadgroups_per_grid]], uint g [[thread_index_in_threadgroup]], ushort h [[thread_index_in_simdgroup]],
      uint j [[simdgroup_index_in_threadgroup]], uint l [[simdgroups_per_threadgroup]], uint m [[threads_per_simdgroup]]) {
      if (a.x != 5 || a.y != 7 || a.z != 1) return;
      const uint all[23] = {a.x, a.y, a.z, b.x, b.y, b.z, c.x, c.y, c.z, d.x, d.y, d.z, e.x, e.y, e.z, f.x, f.y, f.z, g, h, j, l, m};
      for (int n = 0; n < 23; n++) o[n] = all[n];
    }`;
    const o = new Uint32Array(23);
    compile(source).run("k", { buffers: { 0: o }, grid: [2, 3, 2], group: [4, 3, 4] });
    expect([...o]).toEqual([5, 7, 1, 1, 1, 1, 1, 2, 0, 4, 3, 4, 8, 9, 8, 2, 3, 2, 17, 17, 0, 2, 32]);
  });
});
