// What the headers of a shared library say: which platform it is for, and whether the file is whole. Asked before
// the system loads a library, since of one that was cut short the first touch of a missing page ends the process.
import { closeSync, fstatSync, openSync, readSync } from "node:fs";

/** What a file is, as far as its headers tell. */
export interface Executable {
  /** Such as `linux-x64`; undefined where the file is no 64-bit ELF or Mach-O file of a processor that Bun runs on. */
  readonly platform: string | undefined;
  /** The bytes that its headers promise; 0 where they can't be read. */
  readonly bytesPromised: number;
  readonly bytes: number;
}

/** Headers stand at the front of a file; those of this library take about 2 KB. */
const headBytes = 65_536;

/** Looks at a file's headers. @throws the system's error if it can't be read */
export function inspectExecutable(path: string): Executable {
  const descriptor = openSync(path, "r");
  try {
    const { size: bytes } = fstatSync(descriptor);
    const head = new DataView(new ArrayBuffer(headBytes));
    const length = readSync(descriptor, head);
    const [platform, bytesPromised] = headersOf(new DataView(head.buffer, 0, length));
    return { platform, bytesPromised, bytes };
  } finally {
    closeSync(descriptor);
  }
}

type Headers = [platform: string | undefined, bytesPromised: number];

function headersOf(head: DataView): Headers {
  try {
    if (head.getUint32(0) === 0x7f454c46 && head.getUint8(4) === 2) return elf(head);
    if (head.getUint32(0, true) === 0xfeedfacf) return machO(head);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // a header that reaches past what there is
  }
  return [undefined, 0];
}

/** By `e_machine` of ELF and by `cputype` of Mach-O. */
const platforms = new Map([
  [0x3e, "linux-x64"],
  [0xb7, "linux-arm64"],
  [0x01000007, "darwin-x64"],
  [0x0100000c, "darwin-arm64"],
]);

/** https://gabi.xinuos.com: the segments that are loaded stand in the program headers. */
function elf(head: DataView): Headers {
  const [start, size, count] = [
    Number(head.getBigUint64(32, true)),
    head.getUint16(54, true),
    head.getUint16(56, true),
  ];
  let promised = 0;
  for (let at = start; at < start + count * size; at += size)
    promised = Math.max(promised, Number(head.getBigUint64(at + 8, true) + head.getBigUint64(at + 32, true)));
  return [platforms.get(head.getUint16(18, true)), promised];
}

/** mach-o/loader.h: load commands of the kind LC_SEGMENT_64 name the segments. */
function machO(head: DataView): Headers {
  let [promised, at] = [0, 32];
  for (let count = head.getUint32(16, true); count > 0; count--) {
    const segment = head.getUint32(at, true) === 0x19;
    if (segment)
      promised = Math.max(promised, Number(head.getBigUint64(at + 40, true) + head.getBigUint64(at + 48, true)));
    at += Math.max(8, head.getUint32(at + 4, true)); // a damaged one of no length must not hold us up
  }
  return [platforms.get(head.getUint32(4, true)), promised];
}
