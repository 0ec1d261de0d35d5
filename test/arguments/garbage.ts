// What JavaScript can give in the place of an argument: everything of another kind, and what only looks right.
import fc from "fast-check";
import { NativeObject } from "../../src/handle.ts";
import { Codebook, currentDevice, Int8Weight, nn, Parameter, quantize4bit, Tensor } from "../../src/index.ts";

/** A typed array that says it has more than there is. */
class Boasting extends Float32Array {
  override get length(): number {
    return 1 << 20;
  }
  override get byteLength(): number {
    return 1 << 22;
  }
}

/** A typed array whose memory is gone. */
function detached(): Float32Array {
  const array = new Float32Array(4);
  array.buffer.transfer(0);
  return array;
}

/** Looks like a handle, with an address where one is expected. */
const lookAlike = { pointer: 4096, shape: [2, 64], dtype: "float32", size: 128, bits: 4, kind: "cpu", device: {} };

/** What passes for `valid` at first sight. */
function disguises(valid: unknown): unknown[] {
  if (typeof valid !== "object" || valid === null) return [];
  const prototype = Object.getPrototypeOf(valid);
  if (Array.isArray(valid)) return [{ ...valid }];
  const copies: unknown[] = [{ ...valid }, Object.create(valid), Object.create(prototype), new Proxy(valid, {})];
  if (NativeObject.kindOf(valid))
    copies.push(JSON.parse(JSON.stringify(valid)), structuredClone({ ...valid, device: 0 }));
  return copies;
}

/** Values of every kind, made anew. */
const kinds: readonly ((valid: unknown) => unknown)[] = [
  ...[undefined, null, true, false, "", "64", "nf4\0zz", "nf4", "float32", "toString", "__proto__"].map((v) => () => v),
  ...[0, -0, -1, 1.5, 2 ** 31, 2 ** 32, 2 ** 53, 2 ** 64, Number.NaN, Infinity, -Infinity, 64].map((v) => () => v),
  ...[64n, Symbol("x"), () => 64, class {}].map((v) => () => v),
  ...[[], [1, "a"], Array(3), [[1, 2], [3]], [[1, 2], 3], [2 ** 30, 2 ** 30], [null]].map((v) => () => v),
  () => ({}),
  () => ({ nonsense: 1 }),
  () => new Set([2, 2]),
  () => new Map([["bias", 1]]),
  () => new Date(0),
  () => Promise.resolve(1),
  () => /x/,
  () => lookAlike,
  () => new Proxy({}, {}),
  () => new Proxy([2, 2], {}),
  () => new Proxy(new Float32Array(4), {}),
  () => new Boasting(4),
  () => new Float64Array(4),
  () => new BigInt64Array(4),
  () => new DataView(new ArrayBuffer(8)),
  () => new ArrayBuffer(8),
  () => detached(),
  () => new Float32Array(0),
  () => new Float32Array(4),
  () => Tensor.zeros([3, 5, 7]),
  () => Tensor.zeros([2], { dtype: "uint8" }),
  () => quantize4bit(Tensor.zeros([3, 5])),
  () => Codebook.named("nf5"),
  () => Int8Weight.quantize(Tensor.zeros([3, 5])),
  () => new Parameter(Tensor.zeros([1])),
  () => nn.LayerNorm.init(3),
  () => currentDevice(),
];

/** Garbage for the place of a valid argument. */
export function garbage(): fc.Arbitrary<(valid: unknown) => unknown> {
  const anything = fc.anything({
    withBigInt: true,
    withDate: true,
    withMap: true,
    withSet: true,
    withNullPrototype: true,
    withObjectString: true,
    withTypedArray: true,
    withSparseArray: true,
    maxDepth: 2,
  });
  const disguise = fc.nat().map((n) => (valid: unknown) => {
    const all = disguises(valid);
    return all.length ? all[n % all.length] : null;
  });
  return fc.oneof(
    { arbitrary: fc.constantFrom(...kinds), weight: 6 },
    { arbitrary: disguise, weight: 2 },
    { arbitrary: fc.oneof(anything, fc.double(), fc.integer()).map((value) => () => value), weight: 2 },
  );
}

const isNumberArray = (value: unknown) =>
  (ArrayBuffer.isView(value) && !(value instanceof DataView)) || Array.isArray(value);

/** Whether a value is an object of one of the library's classes, and no look-alike. */
export function isHandle(value: unknown): boolean {
  return NativeObject.kindOf(value) !== undefined || Int8Weight.is(value) || Parameter.is(value) || nn.Layer.is(value);
}

/** Whether a function may take this in the place of a valid argument: it is of the same kind, or left out. */
export function fits(valid: unknown, given: unknown, optional: boolean, name: string): boolean {
  if (given === undefined) return optional || valid === undefined;
  if (given === null) return name === "tAlpha" || name === "tBeta3"; // where null means never
  if (typeof valid === "number") return typeof given === "number" && Number.isFinite(given);
  if (typeof valid === "boolean") return typeof given === "boolean";
  if (typeof valid === "string") return typeof given === "string" || NativeObject.kindOf(given) !== undefined;
  if (typeof valid === "function") return typeof given === "function";
  if (valid instanceof Map) return given instanceof Map;
  // Of whatever kind: bytes that are written.
  if (name === "data" && ArrayBuffer.isView(valid)) return ArrayBuffer.isView(given);
  // Iterables, as asked for.
  if (/^(specs|tensors)$/.test(name) && (given instanceof Map || given instanceof Set)) return true;
  if (isNumberArray(valid)) return isNumberArray(given) || Parameter.is(given);
  const kind = NativeObject.kindOf(valid);
  if (kind === "Device") return given === valid || typeof given === "string";
  if (isHandle(valid)) return isHandle(given);
  // Options, of which any may be left out.
  return typeof given === "object" && Object.prototype.toString.call(given) === "[object Object]";
}
