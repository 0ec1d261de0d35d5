// Tests that `doctor` finds what is wrong with a machine, and ends each finding in what to do about it.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { builtLibrary, hostPlatform } from "../scripts/platforms.ts";
import { findLibrary } from "../src/library.ts";
import { fakeMetal } from "./metal/host/build.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-doctor-"));
afterAll(() => rmSync(scratch, { recursive: true }));
const main = join(import.meta.dir, "../src/cli/main.ts");
const here = `${process.platform}-${process.arch}`;

/** Runs doctor in a clean environment, as in a new terminal, but for what is given, and times no product for long. */
function run(args: string[], env: Record<string, string> = {}, preloads: string[] = []) {
  const quick = replacing("src/cli/selftest.ts", "const timedMs = 120;", "const timedMs = 1;");
  return runAsItIs(args, env, [quick, ...preloads]);
}

function runAsItIs(args: string[], env: Record<string, string> = {}, preloads: string[] = []) {
  const clean = Object.entries(process.env).filter(([name]) => !/^(BNB|NO_COLOR|FORCE_COLOR)/.test(name));
  const options = preloads.flatMap((preload) => ["--preload", preload]);
  const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, ...options, main, "doctor", ...args], {
    env: { ...Object.fromEntries(clean), ...env },
  });
  return { status: exitCode, out: stdout.toString(), err: stderr.toString() };
}

/** What is wrong, of a machine with these variables set. */
function problems(env: Record<string, string>, preloads: string[] = []): string[] {
  const { status, out, err } = run(["--json"], env, preloads);
  expect({ status, err }).toEqual({ status: 1, err: "" });
  return JSON.parse(out).problems;
}

/** A file to preload, which replaces a text in one of the package's files as it is loaded. */
function replacing(file: string, text: string, by: string): string {
  expect(readFileSync(join(import.meta.dir, "..", file), "utf8")).toContain(text);
  const preload = join(scratch, `${Bun.hash(file)}.ts`);
  const filter = new RegExp(`^${join(import.meta.dir, "..", file).replaceAll(/[.+]/g, "\\$&")}$`);
  writeFileSync(
    preload,
    `Bun.plugin({ name: "replacing", setup: (build) => build.onLoad({ filter: ${filter} }, async ({ path }) => {
      const contents = (await Bun.file(path).text()).replaceAll(${JSON.stringify(text)}, ${JSON.stringify(by)});
      return { loader: "ts", contents };
    }) });`,
  );
  return preload;
}

describe("a sound machine", () => {
  test("has its devices tested, against theory, and status 0", () => {
    const { status, out, err } = runAsItIs([]);
    expect({ status, err }).toEqual({ status: 0, err: "" });
    expect(out).not.toContain("\u001b["); // a pipe gets no colours
    expect(out).toMatch(/^bunsandbytes +\d+\.\d+\.\d+\nbun +1\./);
    expect(out).toMatch(/cpu +nf4 +sound +0\.09\d\d +0\.0913 /);
    expect(out).toMatch(/cpu +8-bit dynamic +sound +0\.006\d +0\.006\d /);
    expect(out).toMatch(/cpu +int8 +sound +0\.003\d +0\.003\d /);
    expect(out).toMatch(/\ncuda +absent: /);
    expect(out).toMatch(/✓ No problem found\.\nFor a bug report, paste what "bunsandbytes doctor --json" prints\.\n$/);
  });

  test("--json has what a bug report needs, and nothing of the environment but BNB_ variables", () => {
    const found = JSON.parse(run(["--json"], { BNB_NUM_THREADS: "1", SECRET: "hidden" }).out);
    const facts = ["bunsandbytes", "bun", "system", "processor", "processorFeatures", "memoryGB", "library"];
    expect(Object.keys(found).sort()).toEqual([...facts, "environment", "devices", "problems"].sort());
    const library = { path: resolve(builtLibrary(hostPlatform())), origin: "package" };
    expect(found).toMatchObject({ environment: { BNB_NUM_THREADS: "1" }, library, problems: [] });
    expect(JSON.stringify(found)).not.toContain("hidden");
    const cpu = found.devices.find((device: { kind: string }) => device.kind === "cpu");
    expect(cpu).toMatchObject({ available: true, lacks: [], fallbacks: [] });
    expect(cpu.description).toStartWith("1 thread, ");
    for (const test of cpu.selfTest) {
      expect(test.sound).toBe(true);
      expect(test.gigabytesPerSecond).toBeGreaterThan(0);
      expect(test.gigaflops).toBeGreaterThan(0);
    }
  });

  test("is shown in colour only where that is asked for", () => {
    const { out } = run([], { FORCE_COLOR: "1" });
    expect(out).toContain("\u001b[");
    expect(out.split("\n").map(Bun.stripANSI).join("\n")).toMatch(/sound +0\.09.*✓ No problem/s);
  });
});

describe("a native library that can't be opened", () => {
  const library = readFileSync(findLibrary().path);
  const file = (name: string, bytes: Uint8Array) => {
    const path = join(scratch, name);
    writeFileSync(path, bytes);
    return path;
  };
  const foreign = Buffer.from(library);
  const other = here.endsWith("x64") ? here.replace("x64", "arm64") : here.replace("arm64", "x64");
  if (process.platform === "darwin") foreign.writeUInt32LE(other.endsWith("x64") ? 0x01000007 : 0x0100000c, 4);
  else foreign.writeUInt16LE(other.endsWith("x64") ? 0x3e : 0xb7, 18);

  /** The same library under the name of another version: every occurrence is a string of the same length. */
  const older = Buffer.from(library.toString("latin1").replaceAll("\u00000.1.0\u0000", "\u00000.0.9\u0000"), "latin1");

  const lacking = Buffer.from(library.toString("latin1").replaceAll("bnb_version", "bnb_vorsion"), "latin1");

  test.each([
    ["missing", "/no/such.so", /names \/no\/such\.so, which does not exist\. Unset it, or give the path/],
    [
      "for another processor",
      file("foreign", foreign),
      new RegExp(`is a library for ${other}, and this is ${here}\\.`),
    ],
    [
      "cut short",
      file("short", library.subarray(0, library.length / 8)), // of what is loaded, which in some builds is the lesser part
      /was cut short: \d+ of \d+ bytes are there\./,
    ],
    ["cut short in its headers", file("headers", library.subarray(0, 100)), /is no native library, or a damaged one\./],
    ["empty", file("empty", new Uint8Array()), /is no native library, or a damaged one\./],
    ["some text", file("text", Buffer.from("no library")), /is no native library, or a damaged one\./],
    ["a folder", scratch, /can't be read: EISDIR.*Check its permissions\./],
    ["of another version", file("older", older), /is of another version than this package, \d.*: it is 0\.0\.9\./],
    ["without a function", file("lacking", lacking), /is of another version than .*: it lacks bnb_version\./],
  ])("%s", (_, path, sentence) => {
    const [problem, ...more] = problems({ BNB_LIBRARY: path });
    expect(problem).toMatch(sentence);
    expect(problem).toMatch(/[Uu]nset (it|that)/);
    expect(more).toEqual([]);
  });

  test("is one line for every other command", () => {
    const command = [process.execPath, main, "inspect", "."];
    const { exitCode, stderr } = Bun.spawnSync(command, {
      env: { ...process.env, BNB_LIBRARY: file("empty", Buffer.of()) },
    });
    expect(exitCode).toBe(3);
    expect(stderr.toString()).toMatch(/^bunsandbytes: .*empty is no native library, or a damaged one\. .*\.\n$/);
  });
});

describe("a Bun that will not do", () => {
  test("without its JIT", () => {
    expect(problems({ BUN_JSC_useJIT: "0" })).toEqual([expect.stringMatching(/without its JIT.*Unset BUN_JSC_useJIT/)]);
  });

  test("too old", () => {
    // A version that none has yet is asked for, since an older Bun is not at hand.
    const preload = replacing("src/version.ts", "packageJson.engines.bun", '">=99.0.0"');
    const found = problems({}, [preload]);
    expect(found).toEqual([`Bun ${Bun.version} is not >=99.0.0, which this library needs: run "bun upgrade".`]);
  });
});

test("a device that computes wrongly is told with its numbers", () => {
  // The activations of int8 products become int8 too, where the self-test asks for fp32.
  const preload = replacing(
    "src/int8_weight.ts",
    "matmulQuantized(me, x, weight, me.options(options))",
    "matmul8bit(x, w)",
  );
  expect(problems({}, [preload])).toContainEqual(
    expect.stringMatching(
      /^cpu computes int8 wrongly: error 0\.0039 for 0\.0039, product error \de-\d\. Take another device/,
    ),
  );
});

test.each([
  [{ BNB_DEVICE: "cuda" }, /^BNB_DEVICE asks for cuda\. .*"cpu", or unset BNB_DEVICE\.$/],
  [{ BNB_DEVICE: "gpu" }, /^BNB_DEVICE is "gpu", expected "metal", "cuda" or "cpu": unset it/],
  [{ BNB_ISA: "abacus" }, /^BNB_ISA is "abacus", expected one that this processor has: .*; unset it/],
  [{ BNB_NUM_THREADS: "x", BNB_DEVICE: "cuda" }, /^BNB_NUM_THREADS is "x", expected .* or unset it/],
] as [Record<string, string>, RegExp][])("an environment that asks for what is not here: %o", (env, sentence) => {
  expect(problems(env)).toEqual([expect.stringMatching(sentence)]);
});

// The simulated GPU refuses the first kernel that it is given, and its text is told.
describe.skipIf(process.platform !== "linux" || process.arch !== "x64")(
  "a kernel that Metal's compiler refuses",
  () => {
    const refusing = () => ({
      BNB_METAL_LIBRARY: fakeMetal(),
      BNB_SIM_BUN: process.execPath,
      BNB_FAKE_METAL: "fail_compile=1",
    });

    test("is a problem, with the compiler's own words, and the CPU does the work", () => {
      const { status, out } = run(["--json"], refusing());
      const { problems, devices } = JSON.parse(out);
      expect(status).toBe(1);
      expect(problems).toEqual([
        expect.stringMatching(/^metal leaves work to the CPU, .*quantize.*this fault was asked for.* report this\.$/),
      ]);
      const metal = devices.find((device: { kind: string }) => device.kind === "metal");
      const [nf4, dynamic, int8] = metal.selfTest;
      expect([nf4, dynamic]).toEqual([
        { format: "nf4", onCpu: true },
        { format: "8-bit dynamic", onCpu: true },
      ]);
      expect(int8).toMatchObject({ format: "int8", onCpu: false, sound: true });
      expect(metal.lacks.length).toBeGreaterThan(0);
      expect(metal.description).toMatch(/GPU family Apple\d+, [\d.]+ GB for one process, [\d.]+ GB in one buffer/);
    }, 120_000);

    test("and no figure of the CPU's stands beside metal's name", () => {
      const { out } = run([], refusing());
      expect(out).toMatch(/\nmetal +nf4 +on the CPU *\n/);
      expect(out).toMatch(/\ncpu +nf4 +sound +0\./);
    }, 120_000);

    test("fails the self-test under BNB_STRICT=1", () => {
      expect(problems({ ...refusing(), BNB_STRICT: "1" })).toEqual([
        expect.stringMatching(/^The self-test fails on metal: .*BNB_STRICT=1 forbids.* Take another device/),
      ]);
    }, 120_000);
  },
);
