// The reading of Apple's .metallib container: the bitcode of one kernel by name.

import { openSync, readSync } from "node:fs";

/** A file that is read in places: a .metallib can be hundreds of megabytes. */
export class MetalLib {
  private readonly file: number;
  private readonly bitcode: number;
  private readonly functions = new Map<string, { offset: number; size: number }>();

  constructor(path: string) {
    this.file = openSync(path, "r");
    const head = this.read(0, 88);
    if (head.toString("latin1", 0, 4) !== "MTLB") throw new Error(`${path} is not a .metallib`);
    const list = Number(head.readBigUInt64LE(24));
    const listBytes = Number(head.readBigUInt64LE(32));
    this.bitcode = Number(head.readBigUInt64LE(72));
    this.readFunctions(this.read(list, listBytes + 4)); // the size leaves out the count
  }

  /** The names of all kernels. */
  get names(): string[] {
    return [...this.functions.keys()];
  }

  /** A kernel's LLVM bitcode. */
  kernel(name: string): Buffer {
    const found = this.functions.get(name);
    if (!found) throw new Error(`the .metallib has no kernel named ${name}`);
    return this.read(this.bitcode + found.offset, found.size);
  }

  private read(offset: number, bytes: number): Buffer {
    const buffer = Buffer.alloc(bytes);
    readSync(this.file, buffer, 0, bytes, offset);
    return buffer;
  }

  /**
   * A function is a length and tagged fields: NAME, MDSZ (bytes of bitcode), OFFT (three offsets, the last its
   * own).
   */
  private readFunctions(table: Buffer): void {
    const count = table.readUInt32LE(0);
    let at = 4;
    for (let i = 0; i < count; i++) {
      const end = at + table.readUInt32LE(at);
      let name = "";
      let size = 0;
      let offset = 0;
      for (let field = at + 4; field < end; ) {
        const tag = table.toString("latin1", field, field + 4);
        if (tag === "ENDT") break;
        const bytes = table.readUInt16LE(field + 4);
        const value = field + 6;
        if (tag === "NAME") name = table.toString("utf8", value, value + bytes - 1);
        if (tag === "MDSZ") size = Number(table.readBigUInt64LE(value));
        if (tag === "OFFT") offset = Number(table.readBigUInt64LE(value + 16));
        field = value + bytes;
      }
      this.functions.set(name, { offset, size });
      at = end;
    }
  }
}
