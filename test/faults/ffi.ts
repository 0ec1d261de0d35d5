// The fuzzing of the FFI, in a process of its own: `bun ffi.ts <note> <seed> <seconds> [count]`, with BNB_LIBRARY
// naming the fault harness's library. Every function is given what JavaScript can give: valid handles of all kinds,
// disposed ones, null, undefined, numbers that wrap, arrays too short. Prints JSON with what was tried.
import { writeFileSync } from "node:fs";
import { native, symbols } from "../../src/native.ts";
import { declarations, enumMembers, type Parameter } from "../header.ts";
import { Random } from "./random.ts";

const [note, seedText, secondsText, countText] = process.argv.slice(2) as [string, string, string, string?];
const seed = Number(seedText);
const until = performance.now() + 1000 * Number(secondsText);
const countMax = Number(countText ?? Number.POSITIVE_INFINITY);

type Pointer = number | bigint;
type Kind = "bnb_device" | "bnb_tensor" | "bnb_codebook" | "bnb_quantized" | "bnb_cache" | "bnb_recording";

const call = native as unknown as Record<string, (...args: unknown[]) => unknown>;
const device = call.bnb_device_open!(Buffer.from("cpu\0")) as Pointer;

// Square matrices of one size, so that what is drawn fits more often than not.
const side = 32;
const none = (): Omit<Record<Kind, Pointer[]>, "bnb_device"> => ({
  bnb_tensor: [],
  bnb_codebook: [],
  bnb_quantized: [],
  bnb_cache: [],
  bnb_recording: [],
});
const kept: Record<Kind, Pointer[]> = { bnb_device: [device], ...none() };
const loose: Record<Kind, Pointer[]> = { bnb_device: [], ...none() };
const gone: Pointer[] = [];
const frees = {
  bnb_tensor: "bnb_tensor_free",
  bnb_codebook: "bnb_codebook_free",
  bnb_quantized: "bnb_quantized_free",
  bnb_cache: "bnb_cache_free",
  bnb_recording: "bnb_recording_free",
};

function must(pointer: unknown): Pointer {
  if (pointer === null) throw new Error(String(call.bnb_last_error!()));
  return pointer as Pointer;
}

function build(random: Random): void {
  const bytes = (count: number) => Uint8Array.from({ length: count }, () => random.below(256));
  for (const [rows, columns] of [
    [side, side],
    [side, side],
    [1, side],
  ] as const)
    for (const [dtype, width] of [4, 2, 2, 1, 1, 4].entries()) {
      const data = bytes(rows * columns * width);
      if (dtype < 3) for (let i = width - 1; i < data.length; i += width) data[i]! &= 0xbf; // small numbers
      if (dtype === 5) new Int32Array(data.buffer).set(Array.from({ length: rows * columns }, (_, i) => i % side));
      kept.bnb_tensor.push(must(call.bnb_tensor_from!(device, dtype, rows, columns, data, data.length)));
    }
  for (const name of ["nf4", "dynamic", "int8"])
    kept.bnb_codebook.push(must(call.bnb_codebook_named!(Buffer.from(`${name}\0`))));
  for (const [code, nested] of [
    [0, 0],
    [1, 0],
    [0, 256],
  ] as const)
    kept.bnb_quantized.push(must(call.bnb_quantize!(kept.bnb_tensor[0], kept.bnb_codebook[code], 64, nested, 0, null)));
  for (const dtype of [0, 3]) kept.bnb_cache.push(must(call.bnb_cache_new!(device, dtype, 1, 1, 1, side, side)));
}

function record(): Pointer {
  call.bnb_record!(device);
  call.bnb_tensor_free!(must(call.bnb_cast!(kept.bnb_tensor[0], 1)));
  return must(call.bnb_record_end!());
}

const sizes = [
  0,
  1,
  2,
  31,
  side,
  side * side,
  64,
  4096,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32,
  2 ** 48,
  2 ** 53,
  -1,
  1.5,
  Number.NaN,
];
const numbers = [
  0,
  -0,
  1,
  -1,
  1e-45,
  1e39,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  2 ** 53,
  undefined,
  null,
  true,
  "3",
  6,
];

function handle(random: Random, kind: Kind, borrowed: boolean): unknown {
  const others = ["bnb_device", "bnb_tensor", "bnb_codebook", "bnb_quantized", "bnb_cache", "bnb_recording"] as const;
  if (random.below(10) < 8)
    return random.pick(borrowed && random.oneIn(2) && loose[kind].length ? loose[kind] : kept[kind]);
  return random.pick([
    () => null,
    () => undefined,
    () => 0,
    () => random.pick(kept[random.pick(others)]),
    () => (gone.length ? random.pick(gone) : null),
    () => new Uint8Array(64).fill(random.below(256)), // memory that is no handle
  ])();
}

function argument(random: Random, { type, name }: Parameter, memory: { bytes: number }): unknown {
  const kind = /bnb_(device|tensor|codebook|quantized|cache|recording) \*/.exec(type)?.[0].slice(0, -2) as
    | Kind
    | undefined;
  if (kind) return handle(random, kind, type.startsWith("const"));
  if (type === "const char *")
    return random.pick([null, Buffer.from("nf4\0"), Buffer.from("cpu\0"), Buffer.from("%s%n\0"), Buffer.from([0])]);
  if (type === "const bnb_hyperparameters *" || type === "const bnb_attention_options *")
    return random.oneIn(8)
      ? null
      : Float64Array.from({ length: 11 }, () => Number(random.pick([0.9, 0.5, 1e-3, 1, Number.NaN])));
  if (type.includes("*")) {
    memory.bytes = random.pick([0, 1, 4, 64, side * 4, side * side, side * side * 2, side * side * 4, 1024]);
    return random.oneIn(8) ? null : new Uint8Array(Math.max(memory.bytes, 1));
  }
  if (name === "bytes") return random.oneIn(6) ? random.pick([-1, 2 ** 53, 2 ** 40]) : memory.bytes;
  if (type === "size_t") return random.oneIn(3) ? random.pick(sizes) : side;
  if (type.startsWith("bnb_")) return random.oneIn(6) ? random.pick(numbers) : random.below(enumMembers(type).length);
  if (type === "float" || type === "double") return random.oneIn(2) ? random.pick(numbers) : random.below(10) / 10;
  return random.oneIn(2) ? random.pick([...numbers, ...sizes]) : random.below(9);
}

const show = (value: unknown) =>
  ArrayBuffer.isView(value) ? `${value.constructor.name}(${value.byteLength})` : String(value);

const tried = { calls: 0, refusedByBun: 0, failed: 0, succeeded: 0 };

/** Frees one of the results that are kept for a while, once, and remembers where it was. */
function free(kind: Exclude<Kind, "bnb_device">, pointer: Pointer): void {
  const list = loose[kind];
  list.splice(list.indexOf(pointer), 1);
  call[frees[kind]]!(pointer);
  // A named codebook has many owners under one address.
  if (kind !== "bnb_codebook") gone.unshift(pointer);
  if (gone.length > 16) gone.pop();
}

function take(kind: Exclude<Kind, "bnb_device">, pointer: Pointer): void {
  const reused = gone.indexOf(pointer);
  if (reused >= 0) gone.splice(reused, 1);
  loose[kind].push(pointer);
  if (loose[kind].length > 20) free(kind, loose[kind][0]!);
}

function attempt(random: Random): void {
  const { name, returns, parameters } = random.pick(declarations);
  const memory = { bytes: 0 };
  let args = parameters.map((parameter) => argument(random, parameter, memory));
  if (name.endsWith("_free")) {
    // What is freed must be ours to free, or no handle at all.
    const kind = name.slice(0, -"_free".length) as Exclude<Kind, "bnb_device">;
    const pointer = loose[kind].at(-1);
    if (pointer !== undefined && random.oneIn(2)) {
      free(kind, pointer);
      return;
    }
    args = [random.pick([null, undefined, 0, device, gone[0] ?? null, new Uint8Array(64)])];
  }
  writeFileSync(note, `seed ${seed}, call ${tried.calls}: ${name}(${args.map(show).join(", ")})`);
  tried.calls++;
  let result: unknown;
  try {
    result = call[name]!(...args);
  } catch (error) {
    if (!(error instanceof TypeError || error instanceof RangeError)) throw error;
    tried.refusedByBun++; // what Bun knows to be no argument of that type
    return;
  }
  const kind = /^bnb_(tensor|codebook|quantized|cache|recording) \*$/.exec(returns)?.[0].slice(0, -2) as
    | Exclude<Kind, "bnb_device">
    | undefined;
  if (name === "bnb_record" && result === 0) call.bnb_recording_free!(call.bnb_record_end!());
  if (kind && result !== null) take(kind, result as Pointer);
  const failed = kind ? result === null : returns === "bnb_status" && name !== "bnb_last_status" && result !== 0;
  if (failed && String(call.bnb_last_error!()) === "") throw new Error(`${name} failed without a sentence`);
  if (failed) tried.failed++;
  else tried.succeeded++;
}

if (Object.keys(symbols).length !== declarations.length) throw new Error("native.ts and bnb.h differ");
const random = new Random(seed);
build(random);
kept.bnb_recording.push(record());
const used = call.bnb_device_counter!(device, 0) as number;
while (tried.calls < countMax && performance.now() < until) attempt(random);
for (const kind of ["bnb_recording", "bnb_cache", "bnb_quantized", "bnb_tensor", "bnb_codebook"] as const)
  while (loose[kind].length > 0) free(kind, loose[kind][0]!);
for (const cache of kept.bnb_cache) call.bnb_cache_resize!(cache, 1, side); // as it was
const left = (call.bnb_device_counter!(device, 0) as number) - used;
if (left !== 0) throw new Error(`${left} native bytes are left`);
console.log(JSON.stringify(tried));
