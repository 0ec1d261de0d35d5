// The fuzzing of files, in a process of its own: `bun files.ts <folder> <note> <seed> <seconds> [count]`. Damaged
// copies of real files are opened and read whole. Each must be read or refused with a BnbError, within a second or so,
// and within twice the file's size of native memory. Prints JSON with what was tried; what is under way stands in the
// note.
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/checkpoint.ts";
import { openGguf } from "../../src/checkpoint/gguf.ts";
import { inspectCheckpoint, verifyCheckpoint } from "../../src/checkpoint/inspect.ts";
import { loadWeight } from "../../src/checkpoint/statedict.ts";
import { quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { BnbError, currentDevice } from "../../src/index.ts";
import { ggufFile, llamaDirectory, weights } from "../models.ts";
import { boundariesOf, joinSafetensors, mutateBytes, mutateHeldJson, mutateJson, splitSafetensors } from "./mutate.ts";
import { Random } from "./random.ts";

const [folder, note, ...numbers] = process.argv.slice(2) as [string, string, ...string[]];
const [seed, seconds, countMax = Number.POSITIVE_INFINITY] = numbers.map(Number) as [number, number, number?];
const until = performance.now() + 1000 * seconds;

/** Where everything that a file may take beside its own size: handles, and tensors of a few elements. */
const slackBytes = 64 << 10;
const rssGrowthMax = 192 << 20;
const millisecondsMax = 5000; // on a machine that has other things to do

/** One way to make a damaged model, under the path that it is opened by. */
interface Target {
  readonly name: string;
  /** Damages a copy at `path` and gives the bytes of all of it. */
  readonly damage: (random: Random) => number;
  readonly path: string;
  readonly read: (path: string) => Promise<void>;
}

// ── Reading whole ───────────────────────────────────────────────────────────────────────────────────────────────────

async function readCheckpoint(path: string): Promise<void> {
  using checkpoint = openCheckpoint(path);
  const names = new Set([...checkpoint.tensors.keys(), ...checkpoint.quantized.keys()]);
  const errors: BnbError[] = [];
  for (const name of names) {
    try {
      loadWeight(checkpoint, name).dispose();
    } catch (error) {
      if (!(error instanceof BnbError)) throw error;
      errors.push(error);
    }
  }
  // What one weight is refused for, the next may not be; the file's verdict is the first.
  if (errors[0]) throw errors[0];
}

async function readReports(path: string): Promise<void> {
  await verifyCheckpoint(path);
  await inspectCheckpoint(path);
}

async function readGguf(path: string): Promise<void> {
  using model = await openGguf(path);
  for (const tensor of model.tensors) tensor.release(tensor.read());
}

// ── What is damaged ─────────────────────────────────────────────────────────────────────────────────────────────────

function safetensorsTargets(): Target[] {
  const golden = join(import.meta.dir, "../golden");
  const names = ["nf4_double", "nf4_nodouble", "fp4_nodouble", "nf4_double_bf16storage", "int8", "nf4_double.source"];
  return names.map((name) => {
    const bytes = readFileSync(join(golden, `${name}.safetensors`));
    const boundaries = boundariesOf(bytes);
    const held = Object.keys(JSON.parse(splitSafetensors(bytes).header)).filter((key) => key.includes("quant_state"));
    const path = join(folder, "damaged.safetensors");
    const damage = (random: Random) => {
      const { header, data } = splitSafetensors(bytes);
      const made = random.pick([
        () => mutateBytes(random, bytes, boundaries),
        () => joinSafetensors(mutateJson(random, header), data),
        () => bytes.subarray(0, Math.max(0, random.pick(boundaries) + random.below(3) - 1)),
        () => (held[0] ? mutateHeldJson(random, bytes, held[0]) : mutateBytes(random, bytes, boundaries)),
      ])();
      writeFileSync(path, made);
      return made.length;
    };
    return { name, damage, path, read: readCheckpoint };
  });
}

/** A model in shards with an index and config.json, of which one file is damaged at a time. */
async function directoryTarget(): Promise<Target> {
  const [dense, path] = [join(folder, "dense"), join(folder, "model")];
  await llamaDirectory(dense);
  await quantizeCheckpoint(dense, { output: path, shardBytes: 30_000, doubleQuant: true });
  const files = readdirSync(path).filter((name) => /\.(json|safetensors)$/.test(name) && name !== "tokenizer.json");
  const sound = new Map(files.map((name) => [name, readFileSync(join(path, name))]));
  const total = [...sound.values()].reduce((sum, bytes) => sum + bytes.length, 0);
  let last: string | undefined;
  const damage = (random: Random) => {
    if (last) writeFileSync(join(path, last), sound.get(last)!);
    last = random.oneIn(3) ? random.pick(files) : random.pick(files.filter((name) => name.endsWith(".json")));
    const bytes = sound.get(last)!;
    const asText = last.endsWith(".json") && !random.oneIn(4);
    const made = asText
      ? mutateJson(random, bytes.toString())
      : mutateBytes(random, bytes, last.endsWith(".json") ? [0, bytes.length - 1] : boundariesOf(bytes));
    writeFileSync(join(path, last), made);
    return total + made.length;
  };
  return { name: "directory", damage, path, read: readReports };
}

function ggufTarget(): Target {
  const f32 = (name: string, shape: number[], seed: number) => {
    const values = weights(
      shape.reduce((a, b) => a * b, 1),
      seed,
    );
    return { name, shape, type: 0, data: new Uint8Array(values.buffer) };
  };
  const q8 = (name: string, rows: number, columns: number) => ({
    ...{ name, shape: [rows, columns], type: 8 },
    data: new Uint8Array((rows * columns * 34) / 32).fill(7),
  });
  const layer = ["attn_q", "attn_k", "attn_v", "attn_output"].map((stem) => q8(`blk.0.${stem}.weight`, 64, 64));
  const bytes = ggufFile(
    {
      "general.architecture": "llama",
      "general.name": "a model",
      "llama.block_count": 1,
      "llama.context_length": 128,
      "llama.embedding_length": 64,
      "llama.feed_forward_length": 96,
      "llama.attention.head_count": 4,
      "llama.attention.layer_norm_rms_epsilon": Math.fround(1e-5),
      "llama.rope.freq_base": 500000,
    },
    [f32("token_embd.weight", [10, 64], 1), f32("rope_freqs.weight", [8], 2), ...layer],
  );
  const path = join(folder, "damaged.gguf");
  const header = bytes.length - 10 * 64 * 4 - 4 * 64 * 68 - 64;
  const boundaries = [0, 4, 8, 16, 24, header, ...Array.from({ length: header / 4 }, (_, i) => 4 * i)];
  const damage = (random: Random) => {
    const made = random.oneIn(4) ? bytes.subarray(0, random.below(header + 8)) : mutateBytes(random, bytes, boundaries);
    writeFileSync(path, made);
    return made.length;
  };
  return { name: "gguf", damage, path, read: readGguf };
}

// ── The loop ────────────────────────────────────────────────────────────────────────────────────────────────────────

const targets: readonly Target[] = [...safetensorsTargets(), await directoryTarget(), ggufTarget()];
const counters = () => currentDevice().counters;
const tried: Record<string, { inputs: number; read: number; refused: number }> = {};
for (const { name } of targets) tried[name] = { inputs: 0, read: 0, refused: 0 };
const sentences = new Set<string>();
let [slowest, count] = [0, 0];
const rssBefore = process.memoryUsage.rss();

function check(holds: boolean, sentence: string): void {
  if (!holds) throw new Error(sentence);
}

/** A refusal's sentence without what differs from file to file. */
const kindOf = (message: string) => message.replace(/"(?:[^"\\]|\\.)*"|[\d.]+|\[[^\]]*\]|\S*\/\S*/g, "_").slice(0, 80);

async function attempt(target: Target, size: number): Promise<void> {
  const before = counters();
  const started = performance.now();
  tried[target.name]!.inputs++;
  try {
    await target.read(target.path);
    tried[target.name]!.read++;
  } catch (error) {
    if (!(error instanceof BnbError)) throw error;
    check(error.message.length < 20_000, `the sentence has ${error.message.length} characters`);
    check(error.message.includes(folder), `the sentence names no file: ${error.message}`);
    tried[target.name]!.refused++;
    sentences.add(kindOf(error.message));
  }
  const elapsed = performance.now() - started;
  const after = counters();
  const peak = after.peak > before.peak ? after.peak - before.bytes : 0;
  check(elapsed < millisecondsMax, `it took ${elapsed} ms`);
  check(after.bytes === before.bytes, `${after.bytes - before.bytes} native bytes are left`);
  check(peak <= 2 * size + slackBytes, `${peak} native bytes were in use for a file of ${size}`);
  check(process.memoryUsage.rss() - rssBefore < rssGrowthMax, "the process has grown by half a gigabyte");
  slowest = Math.max(slowest, elapsed);
}

for (; count < countMax && performance.now() < until; count++) {
  const random = new Random(seed * 1_000_003 + count);
  const target = random.pick(targets);
  writeFileSync(note, `${target.name}, seed ${seed}, input ${count}`);
  const size = target.damage(random);
  try {
    await attempt(target, size);
  } catch (error) {
    console.error(
      `${target.name}, seed ${seed}, input ${count}: ${target.path} of ${statSync(target.path).size} bytes:`,
    );
    throw error;
  }
}
console.log(
  JSON.stringify({
    count,
    tried,
    sentences: sentences.size,
    slowest,
    nativePeak: counters().peak,
    rssGrowth: process.memoryUsage.rss() - rssBefore,
  }),
);
