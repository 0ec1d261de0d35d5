// The library for Apple Silicon, as it is built on any machine: read as the Mach-O file that macOS will load, because no
// Mac and none of Apple's tools are here to do it.
import { beforeAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { buildCommand, builtLibrary, platformNamed } from "../scripts/platforms.ts";

const root = `${import.meta.dir}/..`;

enum Command {
  LoadDylib = 0xc,
  CodeSignature = 0x1d,
  DyldInfoOnly = 0x80000022,
  BuildVersion = 0x32,
  ExportsTrie = 0x80000033,
}

interface MachO {
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

function parse(bytes: Uint8Array): MachO {
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

describe("the library for aarch64-macos", () => {
  let library: MachO;

  beforeAll(() => {
    const platform = platformNamed("darwin-arm64");
    const { exitCode, stderr } = Bun.spawnSync(buildCommand(platform), { cwd: root });
    if (exitCode !== 0) throw new Error(stderr.toString());
    library = parse(readFileSync(builtLibrary(platform)));
  }, 300_000);

  test("is a dynamic library for arm64 and macOS 13.1", () => {
    expect(library.cpu).toBe(0x0100000c);
    expect(library.type).toBe(6);
    expect(library.platform).toBe(1);
    expect(library.minimumOs).toBe("13.1");
  });

  test("exports what bnb.h declares, and nothing else", () => {
    const header = readFileSync(`${root}/csrc/bnb.h`, "utf8");
    const declared = [...header.matchAll(/^BNB_API [^(]*?\b(bnb_\w+)\(/gm)].map(([, name]) => `_${name}`);
    expect(declared.length).toBeGreaterThan(40);
    const byTheLinker = ["___dso_handle", "__mh_dylib_header"];
    expect(library.exports.filter((name) => !byTheLinker.includes(name)).sort()).toEqual(declared.sort());
  });

  test("needs libSystem only, which every Mac has; Metal is loaded when a device is opened", () => {
    expect(library.libraries).toEqual(["/usr/lib/libSystem.B.dylib"]);
  });

  test("is signed ad hoc, without which arm64 macOS kills the process, and every page has the hash it is signed with", () => {
    const signature = library.signature!;
    const blobs = Array.from({ length: signature.getUint32(8) }, (_, i) => signature.getUint32(12 + i * 8 + 4));
    const at = blobs.find((blob) => signature.getUint32(blob) === 0xfade0c02)!;
    const u32 = (offset: number) => signature.getUint32(at + offset);
    const [flags, hashes, pages, limit] = [u32(12), u32(16), u32(28), u32(32)];
    expect(signature.getUint32(0)).toBe(0xfade0cc0);
    expect(flags & 2).toBe(2);
    const pageBytes = 2 ** signature.getUint8(at + 39);
    expect(pages).toBe(Math.ceil(limit / pageBytes));
    for (let page = 0; page < pages; page++) {
      const bytes = library.bytes.subarray(page * pageBytes, Math.min((page + 1) * pageBytes, limit));
      const signed = signature.byteOffset - library.bytes.byteOffset + at + hashes + page * 32;
      const hash = createHash("sha256").update(bytes).digest("hex");
      expect(Buffer.from(library.bytes.subarray(signed, signed + 32)).toString("hex")).toBe(hash);
    }
  });
});
