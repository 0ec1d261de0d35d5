// The running of kernels that Apple's compiler compiled: their AIR (an LLVM bitcode) lowered to this machine and
// linked to the simulator's runtime, in place of a translated kernel.

import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, relative } from "node:path";
import { zig } from "../../../scripts/msl/clang.ts";
import type { BufferInfo } from "../../../scripts/msl/translate.ts";
import { type MetalLibrary, openLibrary } from "../simulator.ts";
import { cached, kernelFlags, runtimeLibrary } from "../toolchain.ts";

function must(what: string, args: string[]): void {
  const { ok, stderr } = zig(args);
  if (!ok) throw new Error(`${what}: ${stderr}`);
}

interface AirArgument {
  readonly type: string;
  readonly buffer?: BufferInfo;
  /** The runtime's name for a position. */
  readonly value?: string;
}

/** The kernel's parameters, from the metadata that Metal itself binds by. */
function argumentsOf(ir: string): AirArgument[] {
  const node = (id: string): string => {
    const found = new RegExp(`^!${id} = (?:distinct )?!\\{(.*)\\}$`, "m").exec(ir);
    if (!found) throw new Error(`the AIR has no metadata !${id}`);
    return found[1]!;
  };
  const kernel = node(/^!air\.kernel = !\{!(\d+)\}$/m.exec(ir)![1]!);
  const list = node(/!(\d+)$/.exec(kernel)![1]!);
  return [...list.matchAll(/!(\d+)/g)].map(([, id]) => {
    const text = node(id!);
    const strings = [...text.matchAll(/!"([^"]*)"/g)].map((match) => match[1]!);
    const kind = strings[0]!.replace(/^air\./, "");
    const type = strings[strings.indexOf("air.arg_type_name") + 1]!;
    if (kind !== "buffer") return { type, value: `SIM_${kind.toUpperCase()}` };
    const index = Number(/"air\.location_index", i32 (\d+)/.exec(text)![1]);
    const space = /"air\.address_space", i32 2/.test(text) ? "constant" : "device";
    const readOnly = !strings.includes("air.read_write") && !strings.includes("air.write");
    const name = strings[strings.indexOf("air.arg_name") + 1]!;
    return { type: "void *", buffer: { index, name, space, readOnly, reference: false } };
  });
}

/** The wrapper that passes a lane's two elements of each 64-element vector to the runtime, in IR. */
function matrixMultiply(name: string): string {
  const elements = ["a", "b", "c"].flatMap((m) =>
    [0, 1].map((i) => `  %${m}${i} = extractelement <64 x float> %${m}, i32 ${i}\n`),
  );
  const passed = ["a0", "a1", "b0", "b1", "c0", "c1"].map((element) => `float %${element}`).join(", ");
  return `define internal <64 x float> @${name}(<64 x float> %a, <64 x float> %b, <64 x float> %c) alwaysinline {
  %out = alloca [2 x float]
${elements.join("")}  call void @sim_air_multiply_accumulate(${passed}, ptr %out)
  %x = load float, ptr %out
  %second = getelementptr float, ptr %out, i32 1
  %y = load float, ptr %second
  %half = insertelement <64 x float> poison, float %x, i32 0
  %whole = insertelement <64 x float> %half, float %y, i32 1
  ret <64 x float> %whole
}
declare void @sim_air_multiply_accumulate(float, float, float, float, float, float, ptr)
`;
}

/** Makes LLVM IR that any clang compiles of what zig's clang reads from the bitcode. */
function lower(ir: string): string {
  const multiply = "air.simdgroup_matrix_8x8_multiply_accumulate.v64f32.v64f32.v64f32.v64f32";
  const lowered = ir
    .replace(/^@llvm\.global_ctors.*$/m, "")
    .replace(/^.*@llvm\.lifetime\.(?:start|end)\..*$/gm, "")
    .replace(/^(define )weak_odr /m, "$1")
    .replace(new RegExp(`^declare .*@${multiply.replaceAll(".", "\\.")}\\(.*$`, "m"), "");
  return lowered === ir || !ir.includes(multiply) ? lowered : lowered + matrixMultiply(multiply);
}

function entry(name: string, list: readonly AirArgument[]): string {
  const parameters = list.map(({ buffer, value }, at) => {
    const kind = buffer ? "SIM_PARAMETER_BUFFER" : "SIM_PARAMETER_VALUE";
    const readOnly = buffer?.readOnly ? 1 : 0;
    return `{"${buffer?.name ?? ""}", ${kind}, ${buffer?.index ?? value}, ${readOnly}, entry::bytes[${at}]}`;
  });
  return `#include "air.h"
extern "C" void ${name}(${list.map((argument) => argument.type).join(", ")});
using entry = sim::entry<&${name}${list.map(({ value }) => `, ${value ?? -1}`).join("")}>;
static const sim_parameter parameters[] = {${parameters.join(",\n")}};
static const sim_kernel_entry kernels[] = {
  {"${name}", (const void *)&${name}, entry::run, parameters, ${list.length}, 1024, nullptr, 0}};
static void derive() {}
extern "C" __attribute__((visibility("default"), used)) const sim_module sim_translated_module = {
  kernels, 1, nullptr, 0, derive, &sim::variables, false};
`;
}

/** A library of one kernel, from its bitcode. Where Apple's compiler fused a product and a sum, an fma runs, as in
 * the fast build. */
export function loadAir(name: string, bitcode: Uint8Array): MetalLibrary {
  const path = cached(".air.so", name, Bun.hash(bitcode).toString(), readFileSync(`${import.meta.dir}/air.ts`, "utf8"));
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.bc`, bitcode);
  must("AIR is not read", [
    "cc",
    "-S",
    "-emit-llvm",
    `${path}.bc`,
    "-o",
    `${path}.ll`,
    "-Xclang",
    "-disable-llvm-passes",
    "-Wno-override-module",
  ]);
  const ir = readFileSync(`${path}.ll`, "utf8");
  const list = argumentsOf(ir);
  if (!existsSync(path)) {
    writeFileSync(`${path}.lowered.ll`, lower(ir));
    writeFileSync(`${path}.cpp`, entry(name, list));
    must("AIR does not compile", [
      "cc",
      "-c",
      "-O2",
      "-fPIC",
      "-march=x86_64_v3",
      "-fno-sanitize=all",
      `${path}.lowered.ll`,
      "-o",
      `${path}.kernel.o`,
    ]);
    must("the entry does not compile", [
      "c++",
      ...kernelFlags("fast"),
      `-I${import.meta.dir}`,
      "-c",
      `${path}.cpp`,
      "-o",
      `${path}.entry.o`,
    ]);
    const runtime = dirname(runtimeLibrary());
    must("AIR does not link", [
      ...[
        "ld.lld",
        "-shared",
        `${path}.kernel.o`,
        `${path}.entry.o`,
        "-o",
        `${path}.partial`,
        `-L${runtime}`,
        "-lsimulator",
      ],
      ...["-rpath", `$ORIGIN/${relative(dirname(path), runtime)}`],
    ]);
    renameSync(`${path}.partial`, path);
  }
  const buffers = list.flatMap(({ buffer }) => (buffer ? [buffer] : []));
  return openLibrary(path, [{ name, buffers, threadgroup: [], constants: [], maxThreads: undefined }]);
}
