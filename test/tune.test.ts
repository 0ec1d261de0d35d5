// Choosing among a GPU's kernels: with made-up times, and on the simulated GPU, whose own times say nothing.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chooseSizes, type Timer } from "../src/bench/tune.ts";
import type { Sizes } from "../src/tuning.ts";
import { fakeMetal } from "./metal/host/build.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-tune-"));
afterAll(() => rmSync(scratch, { recursive: true }));

const start: Sizes = {
  vectorsMost: 8,
  skinnyMost: 16,
  wideVectors: 1,
  byteTable: 0,
  tilesWanted: 256,
  splitLeast: 512,
};

/** A GPU on which vectors cost so much a row and tiles so much, whatever they hold; and so on. */
interface Machine {
  vector: number;
  tile: number;
  skinny?: number;
  bytes?: number;
  wide?: number;
  filled?: number;
}
const timerOf =
  ({ vector, tile, skinny = tile, bytes = 1, wide = 1, filled = 256 }: Machine): Timer =>
  (sizes, rows, dtype) => {
    if (rows > sizes.vectorsMost)
      return (rows <= sizes.skinnyMost ? skinny : tile) * (1 + Math.abs(Math.log2(sizes.tilesWanted / filled)));
    const isWide = rows === 1 && sizes.wideVectors >= (dtype === "float32" ? 1 : 2);
    return rows * vector * (sizes.byteTable ? bytes : 1) * (isWide ? wide : 1);
  };

describe("the choice", () => {
  test.each<[string, Machine, Partial<Sizes>]>([
    ["leaves a GPU as it is where nothing is faster", { vector: 1, tile: 9, wide: 0.9 }, { wideVectors: 2 }],
    ["takes tiles from where they are ahead on", { vector: 1, tile: 5, wide: 0.9 }, { vectorsMost: 4, wideVectors: 2 }],
    ["takes vectors as far as they are ahead", { vector: 1, tile: 99, wide: 0.9 }, { vectorsMost: 16, wideVectors: 2 }],
    [
      "takes larger tiles where small ones are slower",
      { vector: 1, tile: 9, skinny: 14, wide: 0.9 },
      { skinnyMost: 0, wideVectors: 2 },
    ],
    [
      "takes the table of bytes where it pays",
      { vector: 1, tile: 9, bytes: 0.6, wide: 0.9 },
      { byteTable: 1, vectorsMost: 12, wideVectors: 2 },
    ],
    ["takes fewer rows a simdgroup where more are slower", { vector: 1, tile: 9, wide: 1.2 }, { wideVectors: 0 }],
    [
      "wants as many tiles as fill the GPU",
      { vector: 1, tile: 9, wide: 1.2, filled: 64 },
      { tilesWanted: 64, wideVectors: 0 },
    ],
  ])("%s", (_, machine, changed) => {
    const { sizes, choices } = chooseSizes(start, timerOf(machine));
    expect(sizes).toEqual({ ...start, ...changed });
    expect(choices.length).toBeLessThan(15); // times are taken for under a minute
    for (const { times, chosen } of choices) expect(times.map(([value]) => value)).toContain(chosen);
  });

  test("is not made by chance: two percent are none", () => {
    const { sizes } = chooseSizes(start, timerOf({ vector: 1, tile: 8.5, bytes: 0.98, wide: 1.01, filled: 256 }));
    expect(sizes).toEqual(start);
  });
});

describe.skipIf(process.platform !== "linux" || process.arch !== "x64")("on the simulated GPU", () => {
  const root = join(import.meta.dir, "..");
  const env = (more: Record<string, string>) => ({
    ...process.env,
    ...{ BNB_DEVICE: "metal", BNB_METAL_LIBRARY: fakeMetal(), BNB_SIM_BUN: process.execPath, XDG_CACHE_HOME: scratch },
    ...more,
  });
  /** What a program prints as JSON, in a process of its own. */
  const run = (source: string, more: Record<string, string> = {}) => {
    const ran = Bun.spawnSync([process.execPath, "-e", source], { cwd: root, env: env(more) });
    expect({ status: ran.exitCode, err: ran.stderr.toString() }).toEqual({ status: 0, err: "" });
    return JSON.parse(ran.stdout.toString());
  };
  const imports = `import { Device } from "./src/index.ts"; import { keepTuning, readSizes, tuningOf } from "./src/tuning.ts";
    import { tune } from "./src/bench/tune.ts"; const device = Device.open("metal");`;
  const sizesNow = `${imports} console.log(JSON.stringify(readSizes(device.pointer)));`;
  const stateNow = `${imports} console.log(JSON.stringify(tuningOf(device.description)));`;

  test("what was chosen is used, kept for the GPU and the version, and ignored where BNB_TUNE=0 says so", () => {
    expect(run(sizesNow)).toEqual(start);
    expect(run(stateNow)).toEqual({ state: "not tuned" });
    const chosen = { ...start, byteTable: 1, tilesWanted: 64, vectorsMost: 5 };
    const found = run(`${imports}
      const time = (sizes, rows) => rows > sizes.vectorsMost ? 5 * sizes.tilesWanted : rows * (sizes.byteTable ? 60 : 90) * sizes.wideVectors || 1e9;
      const { sizes } = tune(device, time);
      const path = keepTuning(device.description, sizes);
      console.log(JSON.stringify({ sizes, now: readSizes(device.pointer), path }));`);
    expect(found.now).toEqual(found.sizes);
    expect(found.sizes).toMatchObject({ byteTable: chosen.byteTable, tilesWanted: chosen.tilesWanted });
    expect(found.path).toBe(join(scratch, "bunsandbytes/tune.json"));
    expect(readdirSync(join(scratch, "bunsandbytes"))).toEqual(["tune.json"]);
    expect(Object.keys(JSON.parse(readFileSync(found.path, "utf8")))).toEqual([
      expect.stringMatching(/^Simulated Apple GPU, version \d/),
    ]);

    expect(run(sizesNow)).toEqual(found.sizes);
    expect(run(stateNow)).toEqual({ state: "tuned", sizes: found.sizes, path: found.path });
    expect(run(sizesNow, { BNB_TUNE: "0" })).toEqual(start);
    expect(run(stateNow, { BNB_TUNE: "0" })).toEqual({ state: "ignored: BNB_TUNE=0" });
    expect(run(sizesNow, { BNB_FAKE_METAL: "large_chip=1" })).toEqual(start); // another GPU
  });

  test("products are timed under the sizes of each choice", () => {
    const { sizes, now, choices } = run(`${imports.replace("tune }", "deviceTimer, tune }")}
      using time = deviceTimer(device, 0, 64);
      const found = tune(device, (sizes, rows, dtype) => {
        const ms = time(sizes, rows, dtype);
        if (!Bun.deepEquals(readSizes(device.pointer), sizes)) throw new Error("of other sizes");
        return ms;
      });
      console.log(JSON.stringify({ ...found, now: readSizes(device.pointer) }));`);
    expect(now).toEqual(sizes);
    for (const { times } of choices) for (const [, ms] of times) expect(ms).toBeGreaterThan(0);
  });

  test("a file that makes no sense is not used, and doctor says so", () => {
    const path = join(scratch, "bunsandbytes/tune.json");
    const key = Object.keys(JSON.parse(readFileSync(path, "utf8")))[0]!;
    for (const [text, reason] of [
      ["{", /JSON/],
      ["[]", /no JSON object/],
      [JSON.stringify({ [key]: { ...start, tilesWanted: -1 } }), /tilesWanted is -1, expected a whole number/],
      [JSON.stringify({ [key]: { ...start, tilesWanted: 0 } }), /tilesWanted is 0, expected a whole number/],
      [JSON.stringify({ [key]: { ...start, splitLeast: "a" } }), /splitLeast is "a"/],
    ] as const) {
      writeFileSync(path, text);
      expect(run(sizesNow)).toEqual(start);
      expect(run(stateNow)).toEqual({ state: "unreadable", path, reason: expect.stringMatching(reason) });
    }
    const doctor = Bun.spawnSync([process.execPath, "src/cli/main.ts", "doctor"], { cwd: root, env: env({}) });
    expect(doctor.exitCode).toBe(1);
    expect(doctor.stdout.toString()).toContain(`${path} is not used: splitLeast is "a"`);
  }, 120_000);

  test("sizes that make no sense are refused", () => {
    const refused = run(`import { lastError, native } from "./src/native.ts"; ${imports}
      const tries = [[0, 0.5], [0, 1e9], [6, 1], [-1, 1], [4, 0], [5, 0], [0, NaN]];
      console.log(JSON.stringify(tries.map(([size, value]) => native.bnb_device_size(device.pointer, size, value) < 0 ? lastError().message : "taken")));`);
    expect(refused.slice(0, -1)).toEqual([
      expect.stringContaining("value is 0.5"),
      expect.stringContaining("value is 1e+09"),
      expect.stringContaining("size is 6, expected 0 to 5"),
      expect.stringContaining("size is -1"),
      expect.stringContaining("value is 0, expected a whole number from 1"), // work is divided by it
      expect.stringContaining("value is 0, expected a whole number from 1"),
    ]);
  });
});

test("the CPU has nothing to tune", () => {
  const env = { ...process.env, BNB_DEVICE: "cpu", XDG_CACHE_HOME: scratch };
  const ran = Bun.spawnSync([process.execPath, join(import.meta.dir, "../src/cli/main.ts"), "tune"], { env });
  expect(ran.exitCode).toBe(3);
  expect(ran.stderr.toString()).toContain("the current device is the CPU");
});
