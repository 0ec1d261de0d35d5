// How much memory each command takes over the file's size, in a process of its own for each: `bun memory.ts <job>
// <folder>` prints the peak of native bytes and of the process, beside those of doing nothing.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { inspectCheckpoint, verifyCheckpoint } from "../../src/checkpoint/inspect.ts";
import { packState } from "../../src/checkpoint/packed_state.ts";
import { specsBlockwise, stateKey } from "../../src/checkpoint/state.ts";
import { convertGguf, dequantizeCheckpoint, quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { type TensorSource, writeSafetensors } from "../../src/checkpoint/writer.ts";
import { Codebook, currentDevice } from "../../src/index.ts";
import { f32, ggufFile, llamaGgufMetadata } from "../models.ts";

/**
 * Models of one matrix, to be looked through, and of many, to be written from: there is one in memory at a time, which
 * must be small beside the file.
 */
const [count, rowsOfMany, columns] = [12, 1024, 2048];

/** What code that runs for the first time takes. */
const slackBytes = 16e6;

/** Bits of a code that look like any others, and no NaN where they are floats. */
function bytes(length: number): Uint8Array<ArrayBuffer> {
  const made = new Uint32Array(Math.ceil(length / 4));
  for (let i = 0, state = 1; i < made.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    made[i] = state & 0xbfffbfff;
  }
  return new Uint8Array(made.buffer).subarray(0, length);
}

const name = (layer: number) => `model.layers.${layer}.mlp.up_proj.weight`;

function plain(layer: number, rows: number): TensorSource[] {
  return [{ name: name(layer), dtype: "F16", shape: [rows, columns], bytes: () => bytes(2 * rows * columns) }];
}

function blockwise(layer: number, rows: number, bits: number, nestedBlocksize: number): TensorSource[] {
  const quantType = bits === 4 ? "nf4" : "blockwise";
  const [blocksize, dtype, shape] = [64, "float16", [rows, columns]] as const;
  const nested = nestedBlocksize ? { blocksize: nestedBlocksize, offset: 0.5 } : undefined;
  const state = packState({ quantType, bits, blocksize, dtype, shape, nested });
  const code = Codebook.named(bits === 4 ? "nf4" : "nf2").values;
  const specs = specsBlockwise(name(layer), shape, { quantType, bits, blocksize, storage: "uint8", nestedBlocksize });
  return specs.map((spec) => {
    if (spec.name === stateKey(name(layer), quantType)) return { ...spec, shape: [state.length], bytes: state };
    const extents = spec.shape as number[];
    const size = extents.reduce((a, b) => a * b, 1);
    if (spec.name.endsWith(".nested_quant_map"))
      return { ...spec, shape: extents, bytes: Codebook.named("dynamic").values };
    if (spec.name.endsWith("quant_map")) return { ...spec, shape: extents, bytes: code };
    const data = () => (spec.dtype === "F32" ? new Float32Array(size).fill(0.1) : bytes(size));
    return { ...spec, shape: extents, bytes: data };
  });
}

function int8(layer: number, rows: number): TensorSource[] {
  const scb = name(layer).replace("weight", "SCB");
  return [
    { name: name(layer), dtype: "I8", shape: [rows, columns], bytes: () => bytes(rows * columns) },
    { name: scb, dtype: "F32", shape: [rows], bytes: new Float32Array(rows).fill(0.1) },
  ];
}

const formats: Record<string, (layer: number, rows: number) => TensorSource[]> = {
  f16: plain,
  nf4: (...at) => blockwise(...at, 4, 0),
  "nf4-nested": (...at) => blockwise(...at, 4, 256),
  "2-bits": (...at) => blockwise(...at, 2, 0),
  int8,
};

/** Every command, and what it is given. */
const jobs: Record<string, (at: (name: string) => string) => Promise<unknown>> = {
  ...Object.fromEntries(
    Object.keys(formats).map((format) => [`verify ${format}`, (at) => verifyCheckpoint(at(format))]),
  ),
  "inspect nf4": (at) => inspectCheckpoint(at("nf4")),
  "inspect --error-against nf4": (at) => inspectCheckpoint(at("nf4"), { errorAgainst: at("f16") }),
  "quantize f16": (at) => quantizeCheckpoint(at("f16-many"), { output: at("out") }),
  "dequantize nf4": (at) => dequantizeCheckpoint(at("nf4-many"), { output: at("out") }),
  "dequantize int8": (at) => dequantizeCheckpoint(at("int8-many"), { output: at("out") }),
  "convert gguf": (at) => convertGguf(at("model.gguf"), { output: at("out"), quantType: "nf4" }),
};

/** Of a file, and of the file that it is compared with or becomes, the larger: what is promised is counted in it. */
const fileOf = (job: string) =>
  job.includes("gguf") ? "model.gguf" : /against|f16|dequantize/.test(job) ? "f16" : job.split(" ").at(-1)!;

export interface MemoryReport {
  /** Peaks over the file's size, of native memory and of the whole process. */
  readonly [job: string]: readonly [native: number, total: number];
}

async function make(folder: string): Promise<void> {
  for (const [format, tensors] of Object.entries(formats)) {
    for (const name of [format, `${format}-many`]) mkdirSync(join(folder, name));
    await writeSafetensors(join(folder, format, "model.safetensors"), tensors(0, rowsOfMany * count));
    const many = Array.from({ length: count }, (_, layer) => tensors(layer, rowsOfMany)).flat();
    await writeSafetensors(join(folder, `${format}-many`, "model.safetensors"), many);
  }
  writeFileSync(join(folder, "model.gguf"), gguf());
}

/** A llama of three layers in Q8_0. */
function gguf(): Uint8Array {
  const [layers, hidden, inner] = [3, 1024, 2048];
  const q8 = (name: string, rows: number, columns: number) => {
    return { name, shape: [rows, columns], type: 8, data: new Uint8Array((rows * columns * 34) / 32) };
  };
  const layer = (prefix: string) => [
    ...["attn_norm", "ffn_norm"].map((stem) => f32(`${prefix}.${stem}.weight`, [hidden])),
    ...["attn_q", "attn_k", "attn_v", "attn_output"].map((stem) => q8(`${prefix}.${stem}.weight`, hidden, hidden)),
    ...["ffn_gate", "ffn_up"].map((stem) => q8(`${prefix}.${stem}.weight`, inner, hidden)),
    q8(`${prefix}.ffn_down.weight`, hidden, inner),
  ];
  const all = Array.from({ length: layers }, (_, number) => layer(`blk.${number}`)).flat();
  const metadata = {
    ...llamaGgufMetadata,
    "llama.block_count": layers,
    "llama.embedding_length": hidden,
    "llama.feed_forward_length": inner,
    "llama.attention.head_count": 16,
    "llama.attention.head_count_kv": 16,
  };
  return ggufFile(metadata, [q8("token_embd.weight", 64, hidden), f32("output_norm.weight", [hidden]), ...all]);
}

function sizeOf(path: string): number {
  if (!statSync(path).isDirectory()) return statSync(path).size;
  return readdirSync(path).reduce((sum, name) => sum + statSync(join(path, name)).size, 0);
}

function measured(job: string, folder: string): { native: number; total: number } {
  const { stdout, stderr, exitCode } = Bun.spawnSync([process.execPath, import.meta.path, job, folder]);
  if (exitCode !== 0) throw new Error(`${job}: ${stderr}`);
  return JSON.parse(stdout.toString());
}

/** Runs every command on models of 6 to 50 MB. @throws Error naming one that takes more than twice its file's size */
export async function memory(folder: string): Promise<MemoryReport> {
  await make(folder);
  const idle = measured("nothing", folder);
  const report: Record<string, [number, number]> = {};
  for (const job of Object.keys(jobs)) {
    const { native, total } = measured(job, folder);
    const size = sizeOf(join(folder, fileOf(job)));
    if (native > 2 * size || total - idle.total > 2 * size + slackBytes)
      throw new Error(`${job} takes ${native} native bytes and ${total - idle.total} in all for a file of ${size}`);
    report[job] = [native / size, (total - idle.total) / size].map((share) => Number(share.toFixed(2))) as [
      number,
      number,
    ];
    rmSync(join(folder, "out"), { recursive: true, force: true });
  }
  return report;
}

/**
 * The most memory that this process had: of Linux by its own account, since the other one counts who started it too.
 */
function residentPeak(): number {
  const path = "/proc/self/status";
  if (!existsSync(path)) return 1024 * process.resourceUsage().maxRSS;
  return 1024 * Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync(path, "utf8"))![1]);
}

if (import.meta.main) {
  const [job, folder] = process.argv.slice(2) as [string, string];
  const device = currentDevice();
  await jobs[job]?.((file) => join(folder, file));
  console.log(JSON.stringify({ native: device.counters.peak, total: residentPeak() }));
}
