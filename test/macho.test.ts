// The library for Apple Silicon, as it is built on any machine: read as the Mach-O file that macOS will load, because
// no Mac and none of Apple's tools are here to do it.
import { beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { compileLibrary, instructionSets } from "../scripts/compile.ts";
import { platformNamed } from "../scripts/platforms.ts";
import { isSigned, type MachO, parse } from "./macho.ts";

const root = `${import.meta.dir}/..`;

describe("the library for aarch64-macos", () => {
  let library: MachO;

  // One instruction set will do, for what the linker made of it; and not in the place of the library that ships.
  beforeAll(async () => {
    const platform = platformNamed("darwin-arm64");
    const path = `${root}/.cache/macho/${platform.file}`;
    await compileLibrary(platform, instructionSets(platform).slice(-1), path, "-O0");
    library = parse(readFileSync(path));
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

  test("is signed ad hoc, without which arm64 macOS kills the process", () => {
    expect(isSigned(library)).toBe(true);
  });
});
