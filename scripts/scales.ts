// The table of docs/scales.md: the errors of real weights by both rules for scales. Prints it, or writes it with
// --write.
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import { compare } from "../src/compare.ts";
import {
  Codebook,
  createFp8Map,
  createLinearMap,
  dequantizeBlockwise,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { root } from "./run.ts";

export const path = `${root}/docs/scales.md`;
const block = /(<!-- errors -->\n)([\s\S]*?)(<!-- \/errors -->)/;

const formats: [name: string, code: Codebook, blocksizes: number[]][] = [
  ["nf2", Codebook.named("nf2"), [64]],
  ["nf3", Codebook.named("nf3"), [64]],
  ["nf4", Codebook.named("nf4"), [32, 64, 128, 4096]],
  ["fp4", Codebook.named("fp4"), [64, 128]],
  ["nf6", Codebook.named("nf6"), [64]],
  ["8-bit dynamic", Codebook.named("dynamic"), [64, 256]],
  ["8-bit linear", createLinearMap(), [64, 256]],
  ["8-bit fp8 e4m3", createFp8Map(true, 4, 3), [64, 256]],
];

/** The error of all weights together, over their size. */
function errorOf(
  weights: readonly Tensor[],
  code: Codebook,
  blocksize: number,
  nested: boolean,
  scales: "absmax" | "leastSquares",
): number {
  let [errors, squares] = [0, 0];
  for (const w of weights) {
    using q = quantizeBlockwise(w, { code, blocksize, nested, scales });
    using back = dequantizeBlockwise(q);
    const { rms, rmsError } = compare(w, back);
    errors += w.size * rmsError ** 2;
    squares += w.size * rms ** 2;
  }
  return Math.sqrt(errors / squares);
}

/** The table as Markdown, of the two layers of all-MiniLM-L6-v2 that the tests have. */
export function errorTable(): string {
  using fixture = openSafetensors(`${root}/test/fixtures/minilm.safetensors`);
  const weights = [...fixture.tensors.values()]
    .filter(({ shape }) => shape.length === 2)
    .map(({ shape, values }) => Tensor.from(Float32Array.from(values as Float16Array), shape));
  const rows = formats.flatMap(([name, code, blocksizes]) =>
    blocksizes.map((blocksize) => {
      const cells = [false, true].flatMap((nested) => {
        const absmax = errorOf(weights, code, blocksize, nested, "absmax");
        const leastSquares = errorOf(weights, code, blocksize, nested, "leastSquares");
        const less = `${(100 * (1 - leastSquares / absmax)).toFixed(1)} %`;
        return [absmax.toFixed(5), leastSquares.toFixed(5), less];
      });
      return `| ${[name, blocksize, ...cells].join(" | ")} |`;
    }),
  );
  for (const w of weights) w.dispose();
  const head = "| codebook | block | absmax | least squares | less | absmax, nested | least squares, nested | less |";
  return [head, "| --- | --: | --: | --: | --: | --: | --: | --: |", ...rows, ""].join("\n");
}

/** The rows of a table, or of the one in a page, without what only aligns them. */
export function readErrors(text: string): string[] {
  const lines = (block.exec(text)?.[2] ?? text).split("\n").filter((line) => /^\|.*\w/.test(line));
  return lines.map((line) => line.replace(/ +/g, " "));
}

if (import.meta.main) {
  const table = errorTable();
  if (!process.argv.includes("--write")) console.log(table);
  else {
    const page = await Bun.file(path).text();
    await Bun.write(
      path,
      page.replace(block, (_, before, __, after) => `${before}${table}${after}`),
    );
  }
}
