// Owns the estimate of what a kernel takes on a GPU, where no Apple GPU can be asked: registers, and the instructions
// and bytes of its innermost loop. clang compiles the translated kernel for a GPU that it knows (RDNA 2: 32 lanes,
// scalar registers for what is uniform, threadgroup memory of its own), with only those loops unrolled that say so.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { libraryFolder, zig } from "../../scripts/msl/clang.ts";
import { familySource } from "../../scripts/msl/families.ts";
import { translate } from "../../scripts/msl/translate.ts";
import { cached, writeWhole } from "./toolchain.ts";

const header = join(import.meta.dir, "estimate");
const flags = [
  ...["clang", "-x", "hip", "--cuda-device-only", "--offload-arch=gfx1030", "-nogpuinc", "-nogpulib", "-nostdinc"],
  ...["-std=c++20", "-O3", "-fno-unroll-loops", "-ffp-contract=on", "-Wno-everything", "-S", "-o", "-"],
  // An array that is indexed by what is no constant lies in memory on Apple's GPUs: here too.
  ...["-mllvm", "-disable-promote-alloca-to-vector", "-mllvm", "-disable-promote-alloca-to-lds"],
  ...[`-I${header}`, `-I${libraryFolder}`],
];

/** A kernel with its function constants, by index. */
export interface Subject {
  readonly family: string;
  readonly kernel: string;
  readonly threads: number;
  readonly constants: readonly number[];
}

/** Of one pass through the innermost loop of the most instructions, for a thread. */
export interface Loop {
  /** All that the GPU's arithmetic units run, with the look-ups. */
  readonly instructions: number;
  readonly shifts: number;
  /** Reads of threadgroup memory. */
  readonly lookups: number;
  /** Products of 8 × 8 matrices. */
  readonly products: number;
  /** Bytes read from device memory. */
  readonly bytes: number;
}

export interface Estimate {
  /** 32-bit registers of a thread. */
  readonly registers: number;
  /** Bytes of a thread's arrays that are in memory: of kernels here, none. */
  readonly spilled: number;
  readonly loop: Loop;
}

/** Compiles and looks; the result is kept in .cache/metal. */
export function estimate({ family, kernel, threads, constants }: Subject, source = familySource(family)): Estimate {
  const { cpp } = translate(source, family, { target: "cuda", only: [kernel] });
  const defines = [`-DESTIMATE_THREADS=${threads}`, `-DESTIMATE_CONSTANTS=${constants.join(",")}`];
  const path = cached(".estimate.json", cpp, ...flags, ...defines, readFileSync(join(header, "cuda.h"), "utf8"));
  if (existsSync(path)) return JSON.parse(readFileSync(path, "utf8"));
  const file = path.replace(/json$/, "hip");
  writeWhole(file, cpp);
  const { ok, stdout, stderr } = zig([...flags, ...defines, file]);
  if (!ok) throw new Error(`${kernel} could not be compiled for an estimate:\n${stderr}`);
  const found = read(stdout);
  writeWhole(path, JSON.stringify(found));
  return found;
}

function read(assembly: string): Estimate {
  const number = (name: string) => Number(new RegExp(`^ *\\.${name}: +(\\d+)`, "m").exec(assembly)?.[1]);
  const loops = innermost(assembly.split("\n")).map(count);
  const loop = loops.reduce((most, one) => (one.instructions > most.instructions ? one : most), count([]));
  return { registers: number("vgpr_count"), spilled: number("private_segment_fixed_size"), loop };
}

/** The lines of loops that hold no other: from a label to the last branch back to it. */
function innermost(lines: readonly string[]): string[][] {
  const labels = new Map<string, number>();
  lines.forEach((line, at) => {
    const label = /^(\.L\w+):/.exec(line)?.[1];
    if (label) labels.set(label, at);
  });
  const loops: [from: number, to: number][] = [];
  lines.forEach((line, to) => {
    const from = labels.get(/^\ts_c?branch\w* (\.L\w+)/.exec(line)?.[1] ?? "");
    if (from !== undefined && from < to) loops.push([from, to]);
  });
  const inner = loops.filter(([from, to]) => !loops.some(([a, b]) => a >= from && b <= to && (a > from || b < to)));
  return inner.map(([from, to]) => lines.slice(from, to));
}

const loadBytes: Readonly<Record<string, number>> = {
  ...{ ubyte: 1, sbyte: 1, ushort: 2, sshort: 2, short_d16: 2, short_d16_hi: 2, ubyte_d16: 1, ubyte_d16_hi: 1 },
  ...{ dword: 4, dwordx2: 8, dwordx3: 12, dwordx4: 16 },
};

function count(lines: readonly string[]): Loop {
  const words = lines.map((line) => /^\t(?:; )?(\w+)/.exec(line)?.[1] ?? "");
  const of = (pattern: RegExp) => words.filter((word) => pattern.test(word)).length;
  const lookups = of(/^ds_(read|load)/) + of(/^ds_read2/); // one that reads two places is two elsewhere
  return {
    instructions: of(/^v_/) - of(/^v_(mov|readfirstlane)/) + lookups + of(/^(across|multiply|function)$/),
    shifts: of(/^v_(lshl|lshr|ashr|bfe|and_or|alignb|perm)/),
    lookups,
    products: of(/^multiply$/),
    bytes: words.reduce((sum, word) => sum + (loadBytes[/^global_load_(\w+)/.exec(word)?.[1] ?? ""] ?? 0), 0),
  };
}

/**
 * The threads that a threadgroup may have. A core of Apple's has 208 KB of registers: 104 registers leave 512 threads,
 * 116 leave 448, 128 leave 384, as Asahi's and philipturner's tables have it.
 */
export const threadsFor = (registers: number): number => Math.min(1024, Math.floor(53_248 / registers / 64) * 64);
