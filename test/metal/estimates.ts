// Owns docs/performance.md's table of what Metal's kernels take by estimate: prints it, and writes it with --write.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { estimate, type Loop, type Subject } from "./estimate.ts";

const path = join(import.meta.dir, "../../docs/performance.md");
const block = /(<!-- estimates -->\n)([\s\S]*?)(<!-- \/estimates -->)/;

/** Published figures: bytes a second, cores, clock, whether shifts run at a quarter of the rate. */
const chips = {
  M1: { bandwidth: 68e9, cores: 8, clock: 1.278e9, shift: 4 },
  "M1 Max": { bandwidth: 400e9, cores: 32, clock: 1.296e9, shift: 4 },
  M4: { bandwidth: 120e9, cores: 10, clock: 1.47e9, shift: 1 },
  "M4 Max": { bandwidth: 546e9, cores: 40, clock: 1.58e9, shift: 1 },
} as const;
type Chip = (typeof chips)[keyof typeof chips];
const lanes = 128; // of a core; and one look-up of 32 lanes a clock

interface Row extends Pick<Subject, "family" | "kernel" | "threads" | "constants"> {
  readonly what: string;
  /** Elements of a pass through the loop: weights, or what is read. */
  readonly elements: number;
  /** Bytes of memory an element: of the weight with its scales, read so often. */
  readonly memory: number;
  /** Passes over the weight. */
  readonly passes?: number;
  /** What the estimate said of the kernel that this one took the place of, for all passes. */
  readonly before?: string;
}

const vector = { family: "matmul_vector", threads: 128 } as const;
const nf4 = 0.5 + 4 / 64;
const rows: readonly Row[] = [
  {
    ...{
      ...vector,
      what: "NF4, 1 row of f16",
      kernel: "matmul_vector_1",
      constants: [1, 20, 0, 1, 0, 0],
      elements: 64,
    },
    ...{ memory: nf4, before: "the same" },
  },
  {
    ...{
      ...vector,
      what: "the same by bytes",
      kernel: "matmul_vector_1",
      constants: [1, 20, 0, 1, 0, 1],
      elements: 64,
    },
    ...{ memory: nf4, before: "5.56, 1.13, 1.00, 1.25" },
  },
  {
    ...{ ...vector, what: "NF4, 1 row of f32", kernel: "matmul_vector_1_wide", constants: [0, 20, 0, 1, 0, 0] },
    ...{ elements: 128, memory: nf4, before: "5.56, 1.13, 1.00, 1.75" },
  },
  {
    ...{
      ...vector,
      what: "NF4, 4 rows of f16",
      kernel: "matmul_vector_4",
      constants: [1, 20, 0, 1, 0, 0],
      elements: 64,
    },
    ...{ memory: nf4, before: "the same" },
  },
  {
    ...{
      ...vector,
      what: "NF4, 8 rows of f16",
      kernel: "matmul_vector_8",
      constants: [1, 20, 0, 1, 0, 0],
      elements: 64,
    },
    ...{ memory: nf4, before: "18.06, 2.25, 2.00, 5.50" },
  },
  {
    ...{
      ...vector,
      what: "the same by bytes",
      kernel: "matmul_vector_8",
      constants: [1, 20, 0, 1, 0, 1],
      elements: 64,
    },
    ...{ memory: nf4, before: "18.06, 2.25, 2.00, 5.50" },
  },
  {
    ...{
      ...vector,
      what: "8 bits, 1 row of f16",
      kernel: "matmul_vector_1",
      constants: [1, 24, 0, 1, 0, 0],
      elements: 64,
    },
    ...{ memory: 1 + 4 / 256, before: "the same" },
  },
  {
    ...{
      family: "int8_quantize",
      threads: 256,
      what: "int8 to f16",
      kernel: "int8_dequantize",
      constants: [1, 0, 0, 0, 0, 0, 1],
    },
    ...{ elements: 8, memory: 3, before: "24.00, 2.00, 0.00, 2.00" },
  },
];

/** The share of the memory's bandwidth that is left where arithmetic or look-ups take longer than the memory. */
function share(loop: Loop, row: Row, chip: Chip): string {
  const { elements, memory } = row;
  const slots = (loop.instructions + (chip.shift - 1) * loop.shifts) / elements;
  const perSecond = chip.cores * chip.clock;
  const time = memory / chip.bandwidth;
  const longest = Math.max(time, slots / lanes / perSecond, loop.lookups / elements / 32 / perSecond);
  return `${Math.round((100 * time) / longest)} %`;
}

/** The table, as Markdown. */
export function estimatesTable(): string {
  const head = [
    "product",
    "kernel",
    "registers",
    "instructions, shifts, look-ups, bytes an element",
    "before",
    ...Object.keys(chips),
  ];
  const lines = rows.map((row) => {
    const { registers, loop } = estimate(row);
    const counts = [loop.instructions, loop.shifts, loop.lookups, loop.bytes].map((count) =>
      (count / row.elements).toFixed(2),
    );
    const shares = Object.values(chips).map((chip) => share(loop, row, chip));
    return [row.what, `\`${row.kernel}\``, String(registers), counts.join(", "), row.before ?? "", ...shares];
  });
  const widths = head.map((cell, i) => Math.max(cell.length, ...lines.map((line) => line[i]!.length)));
  const text = (cells: readonly string[]) => `| ${cells.map((cell, i) => cell.padEnd(widths[i]!)).join(" | ")} |`;
  return [text(head), `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`, ...lines.map(text), ""].join("\n");
}

/** What stands in the page. */
export const writtenTable = (): string => block.exec(readFileSync(path, "utf8"))?.[2]?.trim() ?? "";

if (import.meta.main) {
  const table = estimatesTable();
  if (process.argv.includes("--write")) {
    const page = readFileSync(path, "utf8");
    writeFileSync(
      path,
      page.replace(block, (_, open, __, close) => `${open}\n${table}\n${close}`),
    );
  }
  console.log(table);
}
