// What the public functions of checkpoints ask of their arguments: each is checked before any file is looked at.
import { floatDtypes, scaleRules } from "../native.ts";
import { isFloat, isIterable, isOptions, Signature } from "../signature.ts";
import { quantTypes } from "./huggingface.ts";
import type { InspectOptions } from "./inspect.ts";
import { storageDtypes } from "./state.ts";
import type { QuantizeOptions, TransformOptions } from "./transform.ts";
import type { TensorSpec } from "./writer.ts";

const transform = ["output", "force", "dtype", "shardBytes", "onProgress"];
const quantize = [...transform, "quantType", "blocksize", "doubleQuant", "scales", "quantStorage", "skip"];

/** The signatures of the functions that read and write files. */
export const signatures = {
  openCheckpoint: new Signature("openCheckpoint"),
  openSafetensors: new Signature("openSafetensors"),
  openGguf: new Signature("openGguf"),
  loadGguf: new Signature("loadGguf", { options: ["device", "dtype", "mmap"] }),
  loadWeight: new Signature("loadWeight", { options: ["mmap"] }),
  toStateDict: new Signature("toStateDict", { options: ["quantStorage"] }),
  fromStateDict: new Signature("fromStateDict", { options: ["mmap"] }),
  inspectCheckpoint: new Signature("inspectCheckpoint", { options: ["errorAgainst", "onProgress"] }),
  verifyCheckpoint: new Signature("verifyCheckpoint", { options: ["onProgress"] }),
  quantizeCheckpoint: new Signature("quantizeCheckpoint", { options: quantize }),
  dequantizeCheckpoint: new Signature("dequantizeCheckpoint", { options: transform }),
  quantizeToMlx: new Signature("quantizeToMlx", { options: [...transform, "bits", "blocksize"] }),
  convertGguf: new Signature("convertGguf", { options: quantize }),
  mergeAdapter: new Signature("mergeAdapter", { options: quantize }),
  exportCoreml: new Signature("exportCoreml", { options: ["output", "force", "dtype", "tokens", "quantType"] }),
  saveAdapter: new Signature("saveAdapter", { options: ["output", "force", "base"] }),
  writer: new Signature("SafetensorsWriter", { options: ["metadata"] }),
  write: new Signature("SafetensorsWriter.write"),
  writeSafetensors: new Signature("writeSafetensors", { options: ["metadata"] }),
};

/** A path that a system call takes whole. */
export function checkPath(me: Signature, path: string, argument: string): string {
  if (me.text(path, argument) === "" || path.includes("\0")) throw me.wrong(argument, path, "a path");
  return path;
}

function checkFunction(me: Signature, value: unknown, argument: string): void {
  if (value !== undefined && typeof value !== "function") throw me.wrong(argument, value, "a function");
}

/** Options of what writes a model from another. */
export function checkTransform(me: Signature, given: TransformOptions): void {
  const { output, force, dtype, shardBytes, onProgress } = me.members(given, "options");
  me.text(output, "output"); // whether it is a place to write at is looked at there
  if (force !== undefined) me.boolean(force, "force");
  if (dtype !== undefined) me.code(dtype, "dtype", floatDtypes);
  if (shardBytes !== undefined && !(isFloat(shardBytes) && shardBytes > 0))
    throw me.wrong("shardBytes", shardBytes, "a number of bytes above 0");
  checkFunction(me, onProgress, "onProgress");
}

/** Options of what quantises a model. */
export function checkQuantize(me: Signature, given: QuantizeOptions): void {
  checkTransform(me, given);
  const { quantType, blocksize, doubleQuant, scales, quantStorage, skip } = given;
  if (quantType !== undefined) me.choice(quantType, "quantType", quantTypes);
  if (blocksize !== undefined) me.whole(blocksize, "blocksize", 1);
  if (doubleQuant !== undefined) me.boolean(doubleQuant, "doubleQuant");
  if (scales !== undefined) me.code(scales, "scales", scaleRules);
  if (quantStorage !== undefined) me.choice(quantStorage, "quantStorage", Object.keys(storageDtypes));
  if (skip === undefined) return;
  if (!Array.isArray(skip)) throw me.wrong("skip", skip, "names of modules in an array");
  for (const [i, name] of [...skip].entries()) me.text(name, `skip[${i}]`);
}

/** Options of what looks at a model. */
export function checkInspect(me: Signature, given: InspectOptions): void {
  const { errorAgainst, onProgress } = me.options(given);
  if (errorAgainst !== undefined) checkPath(me, errorAgainst, "errorAgainst");
  checkFunction(me, onProgress, "onProgress");
}

/** One tensor that a function is to write. */
export function checkSpec<T extends TensorSpec>(me: Signature, spec: T, argument: string): T {
  if (!isOptions(spec) || !("name" in spec && "dtype" in spec && "shape" in spec))
    throw me.wrong(argument, spec, "tensors { name, dtype, shape, … }");
  return spec;
}

/** The tensors that a function is to write: an iterable of them. */
export function checkIterable(me: Signature, value: unknown, argument: string): void {
  if (!isIterable(value)) throw me.wrong(argument, value, "tensors { name, dtype, shape, … } in an array");
}
