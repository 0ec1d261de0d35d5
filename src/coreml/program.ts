// An ML program of Core ML's: operations that refer to each other by name, and the file that their weights lie in.
import fs from "node:fs";
import { join } from "node:path";
import { about, StagedFile } from "../checkpoint/staging.ts";
import type { FloatDType } from "../dtype.ts";
import { Message } from "./protobuf.ts";

/** The dtypes that are needed here: their numbers in a program (MIL.proto), and in a file of weights. */
const kinds = {
  bool: { inProgram: 1, inFile: 0 },
  string: { inProgram: 2, inFile: 0 },
  float16: { inProgram: 10, inFile: 1 },
  float32: { inProgram: 11, inFile: 2 },
  int32: { inProgram: 23, inFile: 14 },
  uint4: { inProgram: 35, inFile: 11 },
} as const;

/** Of inputs and outputs, in a model's description. */
const arrays = { float16: 65552, float32: 65568, int32: 131104 } as const;

export type Kind = keyof typeof kinds;

/** What an operation gives, or a model is given. */
export interface Value {
  readonly name: string;
  readonly kind: Kind;
  readonly shape: readonly number[];
}

/** A value that is known: of a dtype and shape, in little-endian bytes. */
export interface Constant {
  readonly kind: Kind;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** What an argument may be: another operation's value, a tensor of floats, or integers, truths and texts. */
export type Argument = Value | Constant | number | boolean | string | readonly number[];

/** Where a program finds its weights. */
const weightsPath = "@model_path/weights/weight.bin";
const alignment = 64;

/** The file of weights: each behind 64 bytes that describe it, at a multiple of 64. */
export class WeightsFile implements Disposable {
  readonly #file: StagedFile;
  readonly #descriptor: number;
  #end = 0;
  #count = 0;

  constructor(folder: string) {
    this.#file = new StagedFile(join(folder, "weight.bin"));
    this.#descriptor = fs.openSync(this.#file.path, "wx");
    this.#append(new Uint8Array(alignment));
  }

  /** @returns where the description of the weight is */
  add({ kind, bytes }: Constant): number {
    const at = this.#end;
    const head = Buffer.alloc(alignment);
    head.writeUInt32LE(0xdeadbeef, 0);
    head.writeUInt32LE(kinds[kind].inFile, 4);
    head.writeBigUInt64LE(BigInt(bytes.length), 8);
    head.writeBigUInt64LE(BigInt(at + alignment), 16);
    this.#append(head);
    this.#append(bytes);
    this.#append(new Uint8Array(-this.#end & (alignment - 1)));
    this.#count++;
    return at;
  }

  /** Writes what the file begins with: how many weights it has, and the version of its format. */
  commit(): void {
    const head = Buffer.alloc(8);
    head.writeUInt32LE(this.#count, 0);
    head.writeUInt32LE(2, 4);
    fs.writeSync(this.#descriptor, head, 0, head.length, 0);
    fs.fsyncSync(this.#descriptor);
    this.#file.commit();
  }

  #append(bytes: Uint8Array): void {
    try {
      for (let done = 0; done < bytes.length; )
        done += fs.writeSync(this.#descriptor, bytes, done, bytes.length - done, this.#end + done);
    } catch (error) {
      throw about(error, this.#file.target);
    }
    this.#end += bytes.length;
  }

  [Symbol.dispose](): void {
    fs.closeSync(this.#descriptor);
    this.#file[Symbol.dispose]();
  }
}

/** A function `main` that is being written. */
export class Program {
  readonly #weights: WeightsFile;
  readonly #block = new Message();
  readonly #inputs: Value[] = [];
  #operations = 0;

  constructor(weights: WeightsFile) {
    this.#weights = weights;
  }

  input(name: string, kind: Kind, shape: readonly number[]): Value {
    const value = { name, kind, shape };
    this.#inputs.push(value);
    return value;
  }

  /** A tensor of the file of weights. */
  stored(name: string, constant: Constant): Value {
    return this.#constant(name, constant, this.#inFile(constant));
  }

  /** Appends an operation. @param name of what it gives */
  operation(
    type: string,
    args: Readonly<Record<string, Argument>>,
    shape: readonly number[],
    more: Partial<Value> = {},
  ) {
    const { name = `${type}_${this.#operations++}` } = more;
    const given = Object.entries(args).map(([key, arg]) => [key, this.#named(`${name}_${key}`, arg)] as const);
    const { kind = (given.find(([key]) => key === "x") ?? given[0]!)[1].kind } = more;
    const value: Value = { name, kind, shape };
    const operation = new Message().text(1, type);
    for (const [key, { name: of }] of given) operation.entry(2, key, binding(new Message().text(1, of)));
    this.#append(operation, value);
    return value;
  }

  /** Appends an operation whose arguments are constants, or values of others like it: a device unpacks them. */
  constexpr(type: string, args: Readonly<Record<string, Value | Constant>>, value: Value): Value {
    const operation = new Message().text(1, type);
    for (const [key, arg] of Object.entries(args)) {
      const bound = "name" in arg ? new Message().text(1, arg.name) : new Message().message(2, this.#inFile(arg));
      operation.entry(2, key, binding(bound));
    }
    this.#append(operation, value);
    return value;
  }

  /** The whole model (Model.proto). @param version of the specification, with the name of its operations */
  model(outputs: readonly Value[], version: { readonly specification: number; readonly opset: string }): Message {
    for (const { name } of outputs) this.#block.text(2, name);
    const main = new Message();
    for (const input of this.#inputs) main.message(1, named(input));
    main.text(2, version.opset).entry(3, version.opset, this.#block);
    const description = new Message();
    for (const input of this.#inputs) description.message(1, feature(input));
    for (const output of outputs) description.message(10, feature(output));
    const program = new Message().number(1, 1).entry(2, "main", main);
    return new Message().number(1, version.specification).message(2, description).message(502, program);
  }

  #append(operation: Message, value: Value): void {
    const name = new Message().message(2, typeOf({ kind: "string", shape: [] })).message(3, texts(value.name));
    this.#block.message(3, operation.message(3, named(value)).entry(5, "name", name));
  }

  #named(name: string, arg: Argument): Value {
    if (typeof arg === "object" && "name" in arg) return arg;
    if (typeof arg === "object" && "bytes" in arg)
      return this.#constant(name, arg, arg.shape.length > 0 ? this.#inFile(arg) : immediate(arg, tensorOf(arg)));
    const list = Array.isArray(arg);
    const kind = typeof arg === "string" ? "string" : typeof arg === "boolean" ? "bool" : "int32";
    const type = { kind, shape: list ? [arg.length] : [] } as const;
    if (typeof arg === "string") return this.#constant(name, type, immediate(type, texts(arg)));
    const field = kind === "bool" ? 3 : 2;
    const values = new Message().numbers(1, list ? arg : [arg as number]);
    return this.#constant(name, type, immediate(type, tensor(new Message().message(field, values))));
  }

  #constant(name: string, { kind, shape }: Pick<Value, "kind" | "shape">, value: Message): Value {
    const made = { name, kind, shape };
    this.#append(new Message().text(1, "const").entry(5, "val", value), made);
    return made;
  }

  #inFile(constant: Constant): Message {
    const where = new Message().text(1, weightsPath).number(2, this.#weights.add(constant));
    return new Message().message(2, typeOf(constant)).message(5, where);
  }
}

const binding = (bound: Message) => new Message().message(1, bound);
const tensor = (value: Message) => new Message().message(1, value);
const texts = (text: string) => tensor(new Message().message(4, new Message().text(1, text)));

/** A scalar of floats: float16 as bytes, which is how MIL.proto has what its own numbers don't. */
function tensorOf({ kind, bytes }: Constant): Message {
  return tensor(new Message().message(kind === "float32" ? 1 : 7, new Message().bytes(1, bytes)));
}

const immediate = (type: Pick<Value, "kind" | "shape">, value: Message) =>
  new Message().message(2, typeOf(type)).message(3, value);

function typeOf({ kind, shape }: Pick<Value, "kind" | "shape">): Message {
  const type = new Message().number(1, kinds[kind].inProgram).number(2, shape.length);
  for (const extent of shape) type.message(3, new Message().message(1, new Message().number(1, extent)));
  return new Message().message(1, type);
}

const named = (value: Value) => new Message().text(1, value.name).message(2, typeOf(value));

function feature({ name, kind, shape }: Value): Message {
  const array = new Message().numbers(1, shape).number(2, arrays[kind as FloatDType & keyof typeof arrays]);
  return new Message().text(1, name).message(3, new Message().message(5, array));
}
