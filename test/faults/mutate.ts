// The damage that is done to files: to their bytes, to JSON in them, and to the lengths that they state.
import type { Random } from "./random.ts";

/** Numbers at which lengths, offsets and counts go wrong. */
const hostile = [
  ...[0n, 1n, 2n, 7n, 8n, 31n, 32n, 255n, 256n, 4096n, 65535n, 1n << 20n, (1n << 31n) - 1n, 1n << 31n],
  ...[(1n << 32n) - 1n, 1n << 32n, 1n << 40n, (1n << 53n) - 1n, 1n << 53n, (1n << 53n) + 1n],
  ...[1n << 62n, (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n],
];

/** A copy of a file's bytes with some damage. `boundaries` are places where its structure has one. */
export function mutateBytes(random: Random, bytes: Uint8Array, boundaries: readonly number[]): Uint8Array {
  let out = Buffer.from(bytes);
  for (let times = 1 + (random.oneIn(3) ? random.below(4) : 0); times > 0 && out.length > 0; times--) {
    const place = () => (random.oneIn(2) ? random.pick(boundaries) : random.below(out.length));
    const at = Math.max(0, Math.min(place() + (random.oneIn(2) ? random.below(17) - 8 : 0), out.length - 1));
    const length = random.below(1 + Math.min(random.oneIn(4) ? 4096 : 16, out.length - at));
    const rest = out.subarray(at + length);
    switch (random.below(8)) {
      case 0:
        out[at]! ^= 1 << random.below(8);
        break;
      case 1:
        out[at] = random.below(256);
        break;
      case 2:
        out = out.subarray(0, at);
        break;
      case 3:
        out = Buffer.concat([out.subarray(0, at), rest]);
        break;
      case 4:
        out = Buffer.concat([out.subarray(0, at), out.subarray(at, at + length), out.subarray(at)]);
        break;
      case 5:
        out.fill(random.pick([0, 255, 0x7b, 0x22]), at, at + length);
        break;
      case 6:
        if (at + 8 <= out.length) out.writeBigUInt64LE(random.pick(hostile), at);
        break;
      default:
        if (at + 4 <= out.length) out.writeUInt32LE(Number(random.pick(hostile) & 0xffffffffn), at);
    }
  }
  return out;
}

/** JSON text that stands for itself, where JavaScript has no value for it. */
class Raw {
  constructor(readonly text: string) {}
}

function print(value: unknown): string {
  if (value instanceof Raw) return value.text;
  if (Array.isArray(value)) return `[${value.map(print).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([key, item]) => `${JSON.stringify(key)}:${print(item)}`)
    .join(",")}}`;
}

function badValue(random: Random): unknown {
  const deep = random.pick([10, 1000, 200_000]);
  return random.pick([
    () => null,
    () => new Raw(String(random.pick(hostile))),
    () => new Raw(`-${random.pick(hostile)}`),
    () => random.pick([0.5, -1, 1e308, 1.0000000000000002, -0]),
    () => new Raw(random.pick(["1e999", "-0.0", "1e-400", "NaN", "Infinity", "", "nul", "'x'", "01", '"\\ud800"'])),
    () => random.pick(["", "nf4", "F32", "__proto__", "constructor", "../../etc/passwd", "\u0000", "x".repeat(70_000)]),
    () => random.pick([[], {}, [[]], [0, 1, 2], [-1], { a: 1 }, true]),
    () => new Raw("[".repeat(deep) + "]".repeat(deep)),
    () => new Raw(`${'{"a":'.repeat(deep)}1${"}".repeat(deep)}`),
    () =>
      new Raw(
        `[${Array(random.pick([10, 1000, 50_000]))
          .fill("1")
          .join(",")}]`,
      ),
  ])();
}

type Container = Record<string, unknown> | unknown[];

/** Every object and list in a value. */
function containers(value: unknown, found: Container[] = []): Container[] {
  if (typeof value === "object" && value !== null && !(value instanceof Raw)) {
    found.push(value as Container);
    for (const item of Object.values(value)) containers(item, found);
  }
  return found;
}

/** JSON text with some damage to its structure. */
export function mutateJson(random: Random, text: string): string {
  const root = { value: JSON.parse(text) as unknown };
  for (let times = 1 + random.below(3); times > 0; times--) {
    const at = random.pick(containers(root)) as Record<string, unknown>;
    const keys = Object.keys(at);
    const key = keys.length > 0 ? random.pick(keys) : "new";
    const other = random.pick(containers(root)) as Record<string, unknown>;
    const otherKeys = Object.keys(other);
    switch (random.below(6)) {
      case 0:
      case 1:
        at[key] = badValue(random);
        break;
      case 2:
        if (!Array.isArray(at)) delete at[key];
        else at.pop();
        break;
      case 3:
        // A copy, since a value that holds itself can't be printed.
        if (otherKeys.length > 0) at[key] = new Raw(print(other[random.pick(otherKeys)]));
        break;
      case 4:
        if (!Array.isArray(at)) at[random.pick(["", "__proto__x", "__metadata__", `${key}2`, "\u2028"])] = at[key];
        else at.push(badValue(random));
        break;
      default:
        if (typeof at[key] === "number") at[key] += random.pick([1, -1, 8, -8, 2 ** 31]);
    }
  }
  const printed = "value" in root ? print(root.value) : "";
  if (!random.oneIn(8)) return printed;
  // A key that stands twice, which no parsed value can hold.
  return printed.replace(
    /\{("(?:[^"\\]|\\.)*"):/,
    (all, key) => `{${key}:${random.pick(["1", "null", "{}"])},${all.slice(1)}`,
  );
}

/** A safetensors file in its two parts. */
export function splitSafetensors(bytes: Uint8Array): { header: string; data: Uint8Array } {
  const length = Number(Buffer.from(bytes).readBigUInt64LE());
  return { header: new TextDecoder().decode(bytes.subarray(8, 8 + length)), data: bytes.subarray(8 + length) };
}

export function joinSafetensors(header: string, data: Uint8Array): Uint8Array {
  const text = Buffer.from(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, data]);
}

/** Where a safetensors file has structure: its header's ends, and where tensors begin and end. */
export function boundariesOf(bytes: Uint8Array): number[] {
  const { header } = splitSafetensors(bytes);
  const start = 8 + Buffer.byteLength(header);
  const entries = Object.values(JSON.parse(header) as Record<string, { data_offsets?: number[] }>);
  return [0, 1, 7, 8, 9, start - 1, start, ...entries.flatMap(({ data_offsets: at = [] }) => at.map((x) => start + x))];
}

/** The same file with the JSON that one of its tensors holds damaged, and all offsets right. */
export function mutateHeldJson(random: Random, bytes: Uint8Array, name: string): Uint8Array {
  const { header, data } = splitSafetensors(bytes);
  const entries = JSON.parse(header) as Record<string, { shape: number[]; data_offsets: [number, number] }>;
  const [start, end] = entries[name]!.data_offsets;
  const text = new TextDecoder().decode(data.subarray(start, end));
  const damaged = Buffer.from(
    random.oneIn(4) ? mutateBytes(random, Buffer.from(text), [0, text.length - 1]) : mutateJson(random, text),
  );
  const grown = damaged.length - (end - start);
  for (const [key, entry] of Object.entries(entries)) {
    if (key === "__metadata__") continue;
    if (key === name) Object.assign(entry, { shape: [damaged.length], data_offsets: [start, start + damaged.length] });
    else if (entry.data_offsets[0] >= end)
      entry.data_offsets = entry.data_offsets.map((at) => at + grown) as [number, number];
  }
  return joinSafetensors(
    JSON.stringify(entries),
    Buffer.concat([data.subarray(0, start), damaged, data.subarray(end)]),
  );
}
