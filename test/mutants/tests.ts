// Owns the map from a file to the tests that are to notice what becomes of it: few enough that a mutant costs a minute.
import { existsSync } from "node:fs";
import { basename } from "node:path";
import { root } from "../../scripts/run.ts";

const own = (...names: string[]) => names.map((name) => `test/${name}.test.ts`);

/** By the beginning of a path; the first that fits. */
const byPath: [prefix: string, tests: string[]][] = [
  ["csrc/cpu/matmul_backward", own("matmul_backward")],
  ["csrc/cpu/matmul", own("matmul", "layout")],
  ["csrc/cpu/int8", own("int8")],
  ["csrc/cpu/kbits", own("kbits", "quantize")],
  ["csrc/cpu/scales", own("scales")],
  ["csrc/cpu/optimizer", own("optim")],
  ["csrc/cpu/dequantize", own("quantize", "layout")],
  ["csrc/cpu/quantize", own("quantize", "codebook")],
  ["csrc/cpu/embedding", own("embedding")],
  ["csrc/cpu/cast", own("tensor")],
  ["csrc/cpu/pool", own("threads", "isa")],
  ["csrc/cpu/", own("matmul", "quantize", "isa")],
  ["csrc/codebook", own("codebook", "quantize", "kbits")],
  ["csrc/quantized", own("layout", "quantize", "format")],
  ["csrc/device", own("tensor", "isa", "add")],
  ["csrc/", own("tensor", "quantize", "threads")],
  ["src/optim/", own("optim", "optim_classes", "state")],
  ["src/nn/", own("nn")],
  ["src/cli/", own("cli", "doctor")],
  ["src/checkpoint/gguf", own("gguf")],
  ["src/checkpoint/", own("checkpoint", "huggingface", "safetensors", "output")],
  ["src/bench/", own("bench")],
  ["src/native", own("tensor", "quantize")],
  ["src/", own("tensor", "quantize", "matmul")],
];

/** The tests of a file: those of its own name, or what the table says. */
export function testsOf(file: string): string[] {
  const stem = basename(file).replace(/(-inl)?\.\w+$/, "");
  const named = `test/${stem.replace(/^matmul_(vector|tile)$/, "matmul")}.test.ts`;
  const isOperation = /^(csrc\/ops|metal|src)\/[^/]+$/.test(file);
  if (isOperation && existsSync(`${root}/${named}`)) return [named];
  return byPath.find(([prefix]) => file.startsWith(prefix))?.[1] ?? own("matmul", "quantize");
}
