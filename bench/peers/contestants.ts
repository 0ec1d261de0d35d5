// What is compared: the peers, the precisions of each, and the cases.
import { installJavaScript, installPython, python } from "./install.ts";
import type { Operation, PeerCase } from "./protocol.ts";

const here = import.meta.dir;

/**
 * A program to compare with: how it is installed (giving the reason where it can't be) and how its worker is
 * started.
 */
interface Peer {
  readonly install: () => string | undefined;
  readonly command: (threads: number) => string[];
}

const inPython = (name: Parameters<typeof installPython>[0]): Peer => ({
  install: () => installPython(name),
  command: (threads) => [python, `${here}/worker.py`, `${name}_peer`, String(threads)],
});
const inBun = (file: string, install: Peer["install"]): Peer => ({
  install,
  command: () => [process.execPath, `${here}/${file}.ts`],
});

export const peers = {
  bunsandbytes: inBun("ours", () => undefined),
  bitsandbytes: inPython("bitsandbytes"),
  torch: inPython("torch"),
  onnxruntime: inPython("onnxruntime"),
  "onnxruntime-node": inBun("onnxruntime_node", () => installJavaScript("onnxruntime-node@1.30.0")),
  OpenVINO: inPython("openvino"),
  ggml: inPython("ggml"),
} satisfies Record<string, Peer>;

export type PeerName = keyof typeof peers;

/**
 * What a product is compared with: the others whose arithmetic is as exact. Errors of a class's products stay below its
 * limit, against float64 with the same weights: fp32 sums; activations of 16 bits; of 8 bits.
 */
export const classes = {
  fp32: { ours: "highest", errorMost: 5e-6 },
  "16-bit": { ours: "high", errorMost: 5e-3 },
  "8-bit": { ours: "medium", errorMost: 1.5e-2 },
} as const;

export type Class = keyof typeof classes;

/** A peer in one of its precisions. `variant` is its worker's name for it. */
export interface Entrant {
  readonly peer: PeerName;
  readonly variant: string;
  readonly format: string;
  readonly class: Class;
}

export const ours = Object.entries(classes).map(([name, { ours: variant }]): Entrant => {
  return { peer: "bunsandbytes", variant, format: "NF4", class: name as Class };
});

/** Who multiplies with a weight. */
const multipliers: readonly Entrant[] = [
  ...ours,
  { peer: "bitsandbytes", variant: "float32", format: "NF4", class: "fp32" },
  { peer: "OpenVINO", variant: "nf4", format: "NF4", class: "fp32" },
  { peer: "onnxruntime", variant: "accuracy0", format: "int4", class: "fp32" },
  { peer: "onnxruntime", variant: "bnb4", format: "NF4", class: "fp32" },
  { peer: "torch", variant: "float32", format: "dense", class: "fp32" },
  { peer: "bitsandbytes", variant: "bfloat16", format: "NF4", class: "16-bit" },
  { peer: "torch", variant: "int4pack", format: "int4", class: "16-bit" },
  { peer: "onnxruntime", variant: "accuracy4", format: "int4", class: "8-bit" },
  { peer: "onnxruntime-node", variant: "accuracy4", format: "int4", class: "8-bit" },
  { peer: "ggml", variant: "q4_0", format: "Q4_0", class: "8-bit" },
  { peer: "ggml", variant: "q4_k", format: "Q4_K", class: "8-bit" },
  { peer: "ggml", variant: "iq4_nl", format: "IQ4_NL", class: "8-bit" },
];

/** A case, who takes part, and the error that what they compute may have where that is not the class's. */
export interface Contest {
  readonly name: string;
  readonly case: PeerCase;
  readonly entrants: readonly Entrant[];
  readonly errorMost?: number;
}

const square = { m: 1, n: 4096, k: 4096, copies: 1 };

/** Bytes of an NF4 weight [4096, 4096] with its scales. */
const weightBytes = square.n * square.k * (1 / 2 + 4 / 64);

const product = (name: string, sizes: Partial<PeerCase>): Contest => ({
  name,
  case: { operation: "matmul", ...square, ...sizes },
  entrants: multipliers,
});

/** An operation that only bitsandbytes, and for the optimizer torch, has too. */
function pair(operation: Operation, name: string, errorMost: number, variant = "float32", m = 1): Contest {
  const both: PeerName[] = ["bunsandbytes", "bitsandbytes", ...(operation === "adam8bit" ? ["torch" as const] : [])];
  const format = (peer: PeerName) => (peer === "torch" ? "AdamW, 32-bit states" : variant);
  const entrants = both.map((peer) => ({ peer, variant, format: format(peer), class: "fp32" as const }));
  return { name, case: { ...square, operation, m }, entrants, errorMost };
}

/**
 * Every contest, on weights [4096, 4096] unless it says otherwise.
 *
 * @param lastLevelCache bytes: cold weights are at least four times as large together
 */
export function contests(lastLevelCache: number): Contest[] {
  const copies = Math.min(64, Math.ceil((4 * lastLevelCache) / weightBytes));
  return [
    ...[1, 4, 32, 512].map((m) => product(`M = ${m}`, { m })),
    product("M = 1, cold", { copies }),
    product("M = 1, [64, 64]", { n: 64, k: 64 }),
    { name: "M = 1, [4096, 64]", case: { operation: "matmul", ...square, k: 64 }, entrants: ours },
    pair("quantize4bit", "quantise 4-bit", 0.1),
    pair("dequantize4bit", "dequantise 4-bit", 0.1),
    pair("dequantize4bit", "dequantise 4-bit to bfloat16", 0.1, "bfloat16"),
    pair("quantize8bit", "quantise 8-bit", 0.02),
    pair("dequantize8bit", "dequantise 8-bit", 0.02),
    pair("adam8bit", "Adam8bit, 16.8 M parameters", 1e-4),
    pair("int8", "LLM.int8(), M = 32", 0.03, "float16", 32),
    pair("int8", "LLM.int8(), M = 512", 0.03, "float16", 512),
  ];
}
