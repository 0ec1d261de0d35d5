// The map from a file to the tests that are to notice what becomes of it, likeliest first: in stages, each a process of
// its own, so that most changes cost a second or two and one that nothing notices costs a minute.
import { existsSync } from "node:fs";
import { basename, dirname } from "node:path";
import { root } from "../../scripts/run.ts";

const own = (...names: string[]) => names.map((name) => `test/${name}.test.ts`);
const inFolder = (folder: string, ...names: string[]) => own(...names.map((name) => `${folder}/${name}`));

/** What sees whether files are durable when they get their names. */
const powerCuts = ["test/faults/faults.test.ts", "-t", "power cut"];

/** By the beginning of a path; the first that fits. */
const byPath: [prefix: string, ...stages: string[][]][] = [
  ["csrc/cpu/matmul_backward", own("matmul_backward"), own("nn", "nn_init")],
  ["csrc/cpu/matmul_vector_codes", own("kbits", "layout"), own("mlx", "gguf_models")],
  ["csrc/cpu/matmul", own("matmul", "kbits"), own("layout", "bitsandbytes_doc")],
  ["csrc/cpu/codes", own("gguf_models", "layout"), own("mlx", "kbits")],
  ["csrc/cpu/runs", own("layout", "gguf_models"), own("matmul", "kbits")],
  ["csrc/cpu/int8", own("int8"), own("nn", "checkpoint")],
  ["csrc/cpu/kbits", own("kbits"), own("quantize", "scales")],
  ["csrc/cpu/scales", own("scales"), own("kbits", "quantize")],
  ["csrc/cpu/optimizer", own("optim"), own("optim_classes")],
  ["csrc/cpu/dequantize", own("quantize", "layout"), own("kbits", "format", "matmul")],
  ["csrc/cpu/quantize", own("quantize"), own("codebook", "kbits", "scales", "format")],
  ["csrc/cpu/embedding", own("embedding"), own("nn")],
  ["csrc/cpu/cast", own("tensor"), own("elementwise", "quantize", "matmul")],
  ["csrc/cpu/pool", own("threads"), own("matmul")],
  ["csrc/cpu/dispatch", own("tensor"), own("isa")],
  ["csrc/cpu/", own("quantize"), own("matmul")],
  ["csrc/fit", own("matmul"), own("layout")],
  ["csrc/codebook", own("codebook"), own("quantize", "kbits")],
  ["csrc/quantized", own("layout"), own("quantize", "format", "slice", "move", "join")],
  ["csrc/cache", own("attention"), inFolder("model", "generate", "pages")],
  ["csrc/dtype", own("tensor", "arguments")],
  ["csrc/tensor", own("tensor", "slice", "error"), own("move", "empty", "quantize", "layout", "threads")],
  ["csrc/buffer", own("tensor"), own("threads", "empty", "move", "slice", "attention", "queue")],
  ["csrc/job", own("queue", "tensor"), own("quantize", "matmul", "threads"), inFolder("drivers", "drivers")],
  ["csrc/ops/launch", own("layout", "mlx", "matmul"), own("quantize", "kbits")],
  ["csrc/ops/run", own("tensor", "quantize"), own("queue"), inFolder("drivers", "drivers")],
  ["csrc/ops/attention", own("attention"), inFolder("model", "families")],
  ["csrc/ops/gguf", own("gguf"), own("gguf_models")],
  ["csrc/ops/record", own("recording"), inFolder("model", "generate")],
  ["csrc/ops/int8", own("int8"), own("arguments")],
  ["csrc/ops/optimizer", own("optim"), own("optim_classes", "state")],
  ["csrc/ops/dequantize", own("quantize", "layout"), own("kbits", "format")],
  ["csrc/ops/transpose", own("slice"), own("layout", "matmul_backward")],
  ["csrc/ops/matmul_backward", own("matmul_backward"), own("nn")],
  ["csrc/ops/matmul", own("matmul"), own("kbits", "layout", "arguments")],
  ["csrc/ops/elementwise", own("elementwise"), own("tensor", "arguments")],
  ["csrc/device", own("tensor"), own("threads", "arguments")],
  ["csrc/handle", own("arguments"), own("tensor", "threads")],
  ["csrc/error", own("abi"), own("arguments", "threads")],
  ["csrc/ops/finite", own("quantize", "int8_refused"), inFolder("drivers", "drivers")],
  ["csrc/ops/nested", own("quantize", "scales"), own("recording")],
  ["csrc/ops/quantize_affine", own("mlx"), own("quantize")],
  ["csrc/ops/quantize", own("quantize"), own("scales", "layout"), own("threads", "kbits")],
  ["csrc/ops/scatter_add", own("embedding"), own("nn")],
  ["csrc/ops/sort", own("embedding"), own("recording")],
  ["csrc/ops/softmax", own("attention"), own("topk")],
  ["csrc/", own("tensor"), own("quantize", "layout", "matmul", "threads")],
  ["src/optim/", own("optim_classes"), own("optim", "state", "nn")],
  ["src/nn/", own("nn"), own("nn_init", "matmul_backward", "adapter", "embedding")],
  [
    "src/model/",
    inFolder("model", "families", "generate", "gguf"),
    inFolder("model", "cli", "save", "adapter", "format"),
  ],
  [
    "src/serve/",
    inFolder("serve", "server", "refusals"),
    inFolder("serve", "clients", "tools", "page", "batch", "lines"),
    inFolder("serve", "process"),
  ],
  ["src/coreml/", own("coreml")],
  ["src/ai", inFolder("serve", "clients")],
  ["src/bench/tune", own("tune")],
  ["src/bench/", own("bench"), own("bench_energy", "tune", "performance")],
  ["src/cli/bench", own("bench"), own("cli")],
  ["src/cli/tune", own("tune")],
  ["src/cli/doctor", own("doctor")],
  ["src/cli/selftest", own("doctor")],
  ["src/cli/machine", own("doctor"), own("bench")],
  ["src/cli/", own("cli"), own("printing", "output_commit", "hub"), own("doctor"), inFolder("model", "cli")],
  ["src/checkpoint/gguf", own("gguf"), own("gguf_models", "checkpoint", "inspect")],
  ["src/checkpoint/mlx", own("mlx")],
  ["src/checkpoint/transform_mlx", own("mlx")],
  ["src/checkpoint/transpose", own("gguf", "huggingface"), own("checkpoint", "gguf_models", "adapter")],
  ["src/checkpoint/hub", own("hub")],
  [
    "src/checkpoint/pieces",
    own("checkpoint", "huggingface", "safetensors", "mlx"),
    own("gguf", "gguf_models", "state", "printing"),
  ],
  ["src/checkpoint/commit", own("output_commit", "output"), powerCuts],
  ["src/checkpoint/journal", own("output", "output_commit"), powerCuts],
  ["src/checkpoint/plan", own("output_plan"), own("output_commit")],
  [
    "src/checkpoint/checkpoint",
    own("huggingface", "state", "inspect"),
    own("cli", "output_commit", "strange", "workflow"),
  ],
  ["src/checkpoint/folder", own("output_plan", "output_commit"), own("checkpoint", "strange", "hub")],
  ["src/checkpoint/staging", own("output", "output_commit"), own("safetensors"), powerCuts],
  ["src/checkpoint/writer", own("safetensors"), own("checkpoint", "output", "output_plan"), powerCuts],
  ["src/checkpoint/pattern", own("checkpoint", "modules"), own("cli")],
  ["src/checkpoint/modules", own("modules"), own("checkpoint", "workflow")],
  ["src/checkpoint/merge", own("adapter"), own("cli")],
  [
    "src/checkpoint/",
    own("checkpoint", "huggingface", "safetensors", "state", "inspect"),
    own("output_commit", "strange", "workflow", "adapter", "mlx", "modules"),
  ],
  ["src/concat", own("slice")],
  ["src/handle", own("tensor", "inspect", "types")],
  ["src/open", own("stranger", "tensor"), own("doctor")],
  ["src/parameter", own("nn", "optim_classes")],
  ["src/quantized", own("layout", "kbits", "move"), own("slice", "join", "inspect", "quantize")],
  ["src/device", own("tensor", "queue"), own("move", "stranger", "doctor")],
  ["src/tensor", own("slice", "move", "empty"), own("elementwise", "inspect", "matmul")],
  ["src/native", own("tensor"), own("abi", "arguments", "quantize", "matmul", "threads")],
  ["src/dtype", own("tensor"), own("safetensors", "quantize", "checkpoint")],
  ["src/environment", own("stranger", "tensor"), own("doctor", "hub")],
  ["src/printable", own("printing")],
  ["src/executable", own("doctor", "stranger")],
  ["src/error", own("abi"), own("tensor", "printing", "arguments")],
  ["src/inspect", own("inspect")],
  ["src/signature", own("arguments")],
  ["src/shape", own("arguments"), own("tensor", "quantize")],
  ["src/tuning", own("tune"), own("matmul")],
  ["src/quantize_affine", own("mlx"), own("quantize")],
  ["src/int8_weight", own("int8", "weight"), own("checkpoint", "nn")],
  ["src/gguf", own("gguf")],
];

/**
 * What has a look at everything: of a change in TypeScript that its own tests did not notice. What only they notice
 * must fail twice, as a busy machine may fail one of so many by itself.
 */
export const everything: readonly string[] = own(
  "tensor",
  "codebook",
  "layout",
  "int8",
  "embedding",
  "nn",
  "optim_classes",
  "checkpoint",
  "huggingface",
  "safetensors",
  "bitsandbytes_doc",
  "format",
  "scales",
  "quantize",
  "arguments",
  "matmul",
  "matmul_backward",
);

/** Of kernels, what has them run on the simulated GPU; a kernel that has a test of its own name needs no row. */
const byKernel: Record<string, string[]> = {
  dequantize: own("quantize", "layout"),
  embedding: own("embedding", "layout"),
  finite: own("int8"),
  int8_matmul: own("int8"),
  int8_quantize: own("int8"),
  matmul_tile: own("matmul", "layout"),
  matmul_vector: own("matmul", "layout"),
  nested: own("quantize", "scales"),
  optimizer: own("optim"),
  quantize: own("quantize", "kbits"),
  scatter_add: own("topk"),
  softmax: own("elementwise", "topk"),
  sort: own("embedding", "recording"),
  transpose: own("slice"),
};

/**
 * What launches a kernel by itself at small sizes, and sees each access: beyond the end of a buffer, of what nobody
 * wrote, of what another thread writes. Kernels that are not here run on the checked GPU, which costs them no more.
 */
const checkedByKernel: Record<string, string[]> = {
  compare: ["kernels", "compare"],
  dequantize: ["kernels", "dequantize"],
  embedding: ["nn", "embedding"],
  finite: ["scales", "finite"],
  nested: ["nested", "nested"],
  int8_matmul: ["int8", "int8_matmul"],
  int8_quantize: ["int8", "int8_quantize"],
  layer_norm: ["nn", "layer_norm"],
  matmul_backward: ["nn", "matmul_backward"],
  matmul_tile: ["kernels", "matmul_tile"],
  matmul_vector: ["kernels", "matmul_vector"],
  optimizer: ["optimizer", "optimizer"],
  quantize: ["kernels", "quantize"],
  scales: ["scales", "scales"],
  sort: ["sort", "sort"],
};

/**
 * Arguments for `bun test`, and where they run: here, here with the plain loops, on the simulated GPU, or on one that
 * compiles no kernel, so that the CPU does the work in memory whose end is guarded.
 */
export interface Stage {
  readonly tests: readonly string[];
  readonly on:
    | "this machine"
    | "plain loops"
    | "guarded memory"
    | "plain loops, guarded memory"
    | "gpu"
    | "checked gpu";
}

function testsOfKernel(stem: string): Stage[] {
  const tests = byKernel[stem] ?? own(stem);
  const checked = checkedByKernel[stem];
  if (!checked)
    return [
      { tests, on: "gpu" },
      { tests, on: "checked gpu" },
    ];
  const [file, part] = checked;
  return [
    { tests: [`test/metal/${file}.test.ts`, "-t", `^${part}, `], on: "this machine" },
    { tests, on: "gpu" },
  ];
}

/** The test of a file's own name, which lies as the file does or above that: `test/` mirrors `src/` and `csrc/`. */
function mirrored(file: string, stem: string): string[][] {
  const folders = dirname(file).split("/").slice(1);
  const found = [[...folders, stem].join("/"), stem].flatMap((name) => own(name));
  return found
    .filter((test) => existsSync(`${root}/${test}`))
    .slice(0, 1)
    .map((test) => [test]);
}

/** A file's tests, in stages. */
export function testsOf(file: string): Stage[] {
  const stem = basename(file).replace(/(-inl)?\.\w+$/, "");
  if (file.startsWith("metal/")) return testsOfKernel(stem);
  const [, ...listed] = byPath.find(([prefix]) => file.startsWith(prefix)) ?? [""];
  const stages = [...mirrored(file, stem), ...listed, ...(file.startsWith("src/") ? [[...everything]] : [])];
  const seen = new Set<string>();
  const here = stages
    .map((stage) => stage.filter((test) => !seen.has(test) && seen.add(test)))
    .filter((stage) => stage.length > 0)
    .map((tests) => ({ tests, on: "this machine" }) as const);
  if (file.startsWith("csrc/cpu/"))
    return [here[0]!, { tests: here[0]!.tests, on: "guarded memory" }, ...here.slice(1)];
  if (!file.startsWith("csrc/ops/")) return here;
  // Operations have a plain loop each, and launch kernels. A minute goes far, but not to whole products with checks.
  const { tests } = here[0]!;
  const gpu = { tests, on: stem.startsWith("matmul") ? "gpu" : "checked gpu" } as const;
  return [here[0]!, { tests, on: "plain loops" }, { tests, on: "plain loops, guarded memory" }, ...here.slice(1), gpu];
}
