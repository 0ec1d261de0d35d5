// Reads a Mach-O file as macOS' loader does, because no Mac and none of Apple's tools are here to do it.
import { createHash } from "node:crypto";

enum Command {
  LoadDylib = 0xc,
  CodeSignature = 0x1d,
  DyldInfoOnly = 0x80000022,
  BuildVersion = 0x32,
  ExportsTrie = 0x80000033,
}

export interface MachO {
  cpu: number;
  type: number;
  platform: number;
  minimumOs: string;
  libraries: string[];
  exports: string[];
  signature: DataView | undefined;
  bytes: Uint8Array;
}

function textAt(bytes: Uint8Array, at: number): string {
  return Buffer.from(bytes.subarray(at, bytes.indexOf(0, at))).toString("latin1");
}

/** Variable-length integer of the export trie: seven bits a byte, the low ones first. */
function uleb(bytes: Uint8Array, at: number): [value: number, next: number] {
  let value = 0;
  for (let shift = 0; ; shift += 7) {
    const byte = bytes[at++]!;
    value += (byte & 127) * 2 ** shift;
    if (byte < 128) return [value, at];
  }
}

/** The names in dyld's export trie, which is all that dlsym finds. */
function exportedNames(trie: Uint8Array, node = 0, prefix = ""): string[] {
  const [terminal, at] = uleb(trie, node);
  const names = terminal ? [prefix] : [];
  let next = at + terminal;
  for (let children = trie[next++]!; children > 0; children--) {
    const edge = textAt(trie, next);
    const [child, after] = uleb(trie, next + edge.length + 1);
    names.push(...exportedNames(trie, child, prefix + edge));
    next = after;
  }
  return names;
}

/** Reads a 64-bit file. @throws Error for any other */
export function parse(bytes: Uint8Array): MachO {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const u32 = (at: number) => view.getUint32(at, true);
  if (u32(0) !== 0xfeedfacf) throw new Error(`not a 64-bit Mach-O file: it opens with ${u32(0).toString(16)}`);
  const found: MachO = {
    cpu: u32(4),
    type: u32(12),
    platform: 0,
    minimumOs: "",
    libraries: [],
    exports: [],
    signature: undefined,
    bytes,
  };
  let at = 32;
  for (let count = u32(16); count > 0; count--) {
    const trie = (offset: number, size: number) => exportedNames(bytes.subarray(offset, offset + size));
    switch (u32(at) as Command) {
      case Command.LoadDylib:
        found.libraries.push(textAt(bytes, at + u32(at + 8)));
        break;
      case Command.BuildVersion:
        found.platform = u32(at + 8);
        found.minimumOs = `${u32(at + 12) >> 16}.${(u32(at + 12) >> 8) & 255}`;
        break;
      case Command.DyldInfoOnly:
        if (u32(at + 44)) found.exports.push(...trie(u32(at + 40), u32(at + 44)));
        break;
      case Command.ExportsTrie:
        found.exports.push(...trie(u32(at + 8), u32(at + 12)));
        break;
      case Command.CodeSignature:
        found.signature = new DataView(bytes.buffer, bytes.byteOffset + u32(at + 8), u32(at + 12));
        break;
    }
    at += u32(at + 4);
  }
  return found;
}

/**
 * Whether a file is signed ad hoc, without which arm64 macOS kills the process, and every page has the hash it is
 * signed with.
 */
export function isSigned({ signature, bytes }: MachO): boolean {
  if (signature?.getUint32(0) !== 0xfade0cc0) return false;
  const blobs = Array.from({ length: signature.getUint32(8) }, (_, i) => signature.getUint32(12 + i * 8 + 4));
  const at = blobs.find((blob) => signature.getUint32(blob) === 0xfade0c02);
  if (at === undefined) return false;
  const u32 = (offset: number) => signature.getUint32(at + offset);
  const [flags, hashes, pages, limit] = [u32(12), u32(16), u32(28), u32(32)];
  const pageBytes = 2 ** signature.getUint8(at + 39);
  if (!(flags & 2) || pages !== Math.ceil(limit / pageBytes)) return false;
  for (let page = 0; page < pages; page++) {
    const content = bytes.subarray(page * pageBytes, Math.min((page + 1) * pageBytes, limit));
    const signed = signature.byteOffset - bytes.byteOffset + at + hashes + page * 32;
    if (
      !createHash("sha256")
        .update(content)
        .digest()
        .equals(bytes.subarray(signed, signed + 32))
    )
      return false;
  }
  return true;
}
