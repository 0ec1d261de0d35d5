// The changes that an attack from outside made and no test noticed: `bun run test:mutants --named` tries each, and each
// dies.
import { readFileSync } from "node:fs";
import type { Mutant } from "./operators.ts";

/** What stands in a file, once, and what takes its place. */
const named: [name: string, file: string, before: string, after: string][] = [
  [
    "the default precision of half types is medium",
    "csrc/ops/matmul.c",
    "BNB_PRECISION_HIGHEST : BNB_PRECISION_HIGH;",
    "BNB_PRECISION_HIGHEST : BNB_PRECISION_MEDIUM;",
  ],
  [
    "precision is ignored",
    "src/matmul.ts",
    'return precision === undefined ? precisions.default : me.code(precision, "precision", namedPrecisions);',
    'return precisions.default + 0 * me.code(precision ?? "high", "precision", namedPrecisions);',
  ],
  [
    "steps of LAMB and LARS are never clipped, on the CPU",
    "csrc/ops/optimizer.c",
    "if (norm > most) job->rate *= most / norm;",
    "if (norm < 0) job->rate *= most / norm;",
  ],
  [
    "steps of LAMB and LARS are never clipped, on a GPU",
    "metal/optimizer.metal",
    "norm > most ? most / norm : 1.0f",
    "norm < 0.0f ? most / norm : 1.0f",
  ],
  ["no bound below for products in integers", "csrc/cpu/matmul_round-inl.h", "absmax >= 1e-25f", "absmax >= 0"],
  [
    "AdEMAMix' alpha rises for ever",
    "src/optim/optimizer.ts",
    "alpha = Math.min((step * alpha) / tAlpha, alpha);",
    "alpha = (step * alpha) / tAlpha;",
  ],
  [
    "a second overrideConfig forgets the first",
    "src/optim/manager.ts",
    "{ ...this.#overrides.get(parameter), ...own }",
    "{ ...own }",
  ],
  ["layer norm's default eps", "src/layer_norm.ts", "defaultEps = 1e-5", "defaultEps = 1e-6"],
  ["layer norms' default eps of a GGUF file", "src/checkpoint/gguf_architectures.ts", "?? 1e-5)", "?? 1e-6)"],
  ["RMS norms' default eps of a GGUF file", "src/checkpoint/gguf_config.ts", "?? 1e-6)", "?? 1e-5)"],
  [
    "an error relative to the wrong side",
    "src/checkpoint/inspect.ts",
    "compareSources(before, after)",
    "compareSources(after, before)",
  ],
  [
    "weights are not synced before they get their name",
    "src/checkpoint/writer.ts",
    "fs.fsyncSync(this.#descriptor);",
    "",
  ],
  [
    "a text is not synced before it gets its name",
    "src/checkpoint/staging.ts",
    "done);\n    fs.fsyncSync(descriptor);",
    "done);\n",
  ],
  ["ready() blocks", "src/device.ts", "while (!native.bnb_device_idle(this.pointer)) {", "while (false) {"],
  ["the default shard size", "src/checkpoint/checkpoint.ts", "shardBytesDefault = 50e9", "shardBytesDefault = 5e9"],
  ["GiB for GB", "src/cli/options.ts", "(binary ? 1024 : 1000)", "(binary ? 1024 : 1024)"],
  [
    "dimensions that don't match in linearBackwardWeight",
    "src/matmul_backward.ts",
    "!sameShape(rows.slice(0, -1), inputs.slice(0, -1))",
    "rows.length !== inputs.length",
  ],
  [
    "the length of a bias, in C",
    "csrc/ops/matmul.c",
    "if (bias->rows == 1 && bias->columns == outputs) return true;",
    "if (bias->rows == 1) return true;",
  ],
];

/** Each as a mutant of its file's text. @throws Error where the text is not there any more, or not once */
export function namedMutants(root: string): Mutant[] {
  return named.map(([operator, file, before, after]) => {
    const text = readFileSync(`${root}/${file}`, "utf8");
    if (text.split(before).length !== 2) throw new Error(`${file} does not have once: ${before}`);
    return { file, line: text.slice(0, text.indexOf(before)).split("\n").length, operator, before, after };
  });
}
