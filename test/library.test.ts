// Which native library src/library.ts finds: in a copy of the package's code, told which platform it is on, with files
// of a few bytes in the libraries' places.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import packageJson from "../package.json";
import { platforms } from "../scripts/platforms.ts";

const folder = realpathSync(mkdtempSync(join(tmpdir(), "bnb-library-")));
afterAll(() => rmSync(folder, { recursive: true }));

function put(file: string, bytes: string | Uint8Array): string {
  const path = join(folder, file);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, bytes);
  return path;
}

beforeAll(() => {
  cpSync(join(import.meta.dir, "../src"), join(folder, "src"), { recursive: true });
  put("package.json", JSON.stringify({ type: "module", imports: packageJson.imports }));
});

/** What an expression of src/library.ts gives or throws on a platform. */
function on(platform: string, expression: string, env: Record<string, string> = {}) {
  const [os, arch] = platform.split("-");
  const constants = [`process.platform="${os}"`, `process.arch="${arch}"`].flatMap((one) => ["--define", one]);
  const program = `import { cudaKernels, findLibrary } from "./src/library.ts";
    try { console.log(JSON.stringify({ gives: ${expression} })); }
    catch ({ name, code, message }) { console.log(JSON.stringify({ throws: { name, code, message } })); }`;
  writeFileSync(join(folder, "program.ts"), program);
  const { BNB_LIBRARY: _, ...clean } = process.env;
  const command = [process.execPath, ...constants, "program.ts"];
  const { stdout, stderr } = Bun.spawnSync(command, { cwd: folder, env: { ...clean, ...env } });
  expect(stderr.toString()).toBe("");
  return JSON.parse(stdout.toString());
}

const refused = (message: string) => ({ throws: { name: "BnbError", code: "unsupported", message } });

describe("the library", () => {
  test("is the platform's own, and missing where only others are there", () => {
    for (const { name, file } of platforms) {
      rmSync(join(folder, "zig-out"), { recursive: true, force: true });
      for (const other of platforms) if (other.name !== name) put(`zig-out/lib/${other.name}/${other.file}`, "other");
      expect(on(name, "findLibrary()")).toEqual(
        refused(
          `The native library for ${name} is missing. In a clone, build it with "bun run setup"; elsewhere, install ` +
            "the package again.",
        ),
      );
      const path = put(`zig-out/lib/${name}/${file}`, "own");
      expect(on(name, "findLibrary()")).toEqual({ gives: { path, origin: "package" } });
    }
  });

  test.each(["win32-x64", "linux-riscv64", "freebsd-x64"])("is for four platforms, and %s is none", (name) => {
    expect(on(name, "findLibrary()")).toEqual(
      refused(
        `There is no native library for ${name}, only for macOS and Linux on arm64 and x64. One that you built ` +
          "yourself can be named by BNB_LIBRARY.",
      ),
    );
  });

  test("named by BNB_LIBRARY is that file on any platform, wherever its path begins", () => {
    const path = put("mine.so", "mine");
    // The system's C library, which is asked what the process was started with, is this platform's whatever is told.
    const here = process.platform;
    expect(on(`${here}-riscv64`, "findLibrary()", { BNB_LIBRARY: "mine.so" })).toEqual({
      gives: { path, origin: "BNB_LIBRARY" },
    });
    expect(on(`${here}-x64`, "findLibrary()", { BNB_LIBRARY: "yours.so" })).toEqual(
      refused(
        `BNB_LIBRARY names ${join(folder, "yours.so")}, which does not exist. Unset it, or give the path of ` +
          "libbunsandbytes.",
      ),
    );
  });

  test("that can't be looked for says what is in its way", () => {
    const module = join(folder, "src/platform/linux-x64.ts");
    cpSync(module, `${module}.sound`);
    writeFileSync(module, 'throw new RangeError("in its way");');
    expect(on("linux-x64", "findLibrary()")).toEqual({ throws: { name: "RangeError", message: "in its way" } });
    cpSync(`${module}.sound`, module);
  });
});

test("CUDA's kernels are there where they came with the code, whole or damaged, and on Linux", () => {
  const kernels = "cudaKernels() && [...cudaKernels()]";
  expect(on("linux-x64", kernels)).toEqual({}); // no file
  put("zig-out/lib/kernels.ptx.zst", ""); // as setup leaves it, unless it is asked for them
  expect(on("linux-x64", kernels)).toEqual({});
  put("zig-out/lib/kernels.ptx.zst", Bun.zstdCompressSync(Buffer.from([1, 2, 3])));
  expect(on("linux-x64", kernels)).toEqual({ gives: [1, 2, 3] });
  expect(on("darwin-arm64", kernels)).toEqual({});
  put("zig-out/lib/kernels.ptx.zst", Buffer.from([4, 5, 6])); // which the library then refuses, in its own words
  expect(on("linux-arm64", kernels)).toEqual({ gives: [4, 5, 6] });
});
