// The bench as its users meet it: its record, the comparison of two, and the limits. No time is asserted.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { verdicts } from "../bench/against.ts";
import { type BenchCase, layerCases } from "../src/bench/cases.ts";
import type { EnergyMeter } from "../src/bench/energy.ts";
import { ratio } from "../src/bench/index.ts";
import { measureReads, readRate, shareOfLimit } from "../src/bench/limits.ts";
import { measure } from "../src/bench/measure.ts";
import { type BenchRecord, compareRecords, loadRecord, saveRecord, schema } from "../src/bench/record.ts";
import { milliseconds } from "../src/cli/bench.ts";
import { currentDevice, devices } from "../src/device.ts";
import { fakeMetal } from "./metal/host/build.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-bench-"));
afterAll(() => rmSync(scratch, { recursive: true }));
const main = join(import.meta.dir, "../src/cli/main.ts");

/** A record of these least times, in milliseconds. */
function recordOf(times: Record<string, number>, place: BenchRecord["place"] = { processor: "one", threads: 1 }) {
  const results = Object.entries(times).map(([name, leastMs]) => ({
    name,
    medianMs: 2 * leastMs,
    leastMs,
    gigabytesPerSecond: 1,
  }));
  return { schema, place, versions: {}, date: "", results } satisfies BenchRecord;
}

describe("two records", () => {
  test("a case has regressed only beyond the tolerance", () => {
    const { cases, differences } = compareRecords(
      recordOf({ same: 1, tied: 10, slower: 10, faster: 10 }),
      recordOf({ same: 1, tied: 11.9, slower: 12.1, faster: 5 }),
      0.2,
    );
    expect(differences).toEqual([]);
    expect(cases.map(({ name, ratio, regressed }) => [name, ratio, regressed])).toEqual([
      ["same", 1, false],
      ["tied", 1.19, false],
      ["slower", 1.21, true],
      ["faster", 0.5, false],
    ]);
  });

  test("a case that only one of them has is neither slower nor lost", () => {
    const { cases } = compareRecords(recordOf({ gone: 1 }), recordOf({ new: 2 }), 0.2);
    expect(cases).toEqual([
      { name: "gone", beforeMs: 1, regressed: false },
      { name: "new", nowMs: 2, regressed: false },
    ]);
  });

  test("different places are told, each difference by name", () => {
    const before = recordOf({ a: 1 }, { processor: "one", threads: 1 });
    const now = recordOf({ a: 1 }, { processor: "one", threads: 2, device: "cpu" });
    expect(compareRecords(before, now, 0.2).differences).toEqual(["threads: 1, now 2", "device: unknown, now cpu"]);
  });
});

describe("one clone against another", () => {
  const rounds = (...times: Record<string, number>[]) => times.map((one) => recordOf(one));

  test("a case is slower only beyond the tolerance, and beyond the noise of the other side", () => {
    const base = rounds({ calm: 10, noisy: 10, gone: 1 }, { calm: 10.5, noisy: 16, gone: 1 });
    const slower = (...here: Record<string, number>[]) =>
      verdicts(base, rounds(...here), 0.3)
        .filter(({ slower }) => slower)
        .map(({ name }) => name);
    expect(slower({ calm: 12.9, noisy: 15, new: 1 }, { calm: 14, noisy: 15.5, new: 1 })).toEqual([]);
    expect(slower({ calm: 13.2, noisy: 15, new: 1 })).toEqual(["calm"]);
    expect(slower({ calm: 9, noisy: 16.1, new: 1 })).toEqual(["noisy"]);
    expect(slower({ calm: 99, noisy: 99 }, { calm: 10, noisy: 10 })).toEqual([]); // the least counts
  });
});

describe("a file", () => {
  const path = join(scratch, "file.json");

  test("gives the record back", () => {
    const record = recordOf({ a: 1.5 });
    saveRecord(path, record);
    expect(loadRecord(path)).toEqual(record);
  });

  test.each([
    ["{", /file.json is not JSON, expected a file that bench --save wrote/],
    ["null", /has schema undefined, expected "bunsandbytes-bench-1"/],
    ['{"schema": "other"}', /has schema "other", expected "bunsandbytes-bench-1": save it anew/],
    ['{"schema": "bunsandbytes-bench-1"}', /expected "bunsandbytes-bench-1"/],
  ])("that holds %p is refused", async (text, message) => {
    await Bun.write(path, text);
    expect(() => loadRecord(path)).toThrow(message);
  });
});

describe("limits", () => {
  const limits = {
    threads: 1,
    reads: [
      { bytes: 1e6, gigabytesPerSecond: 100 },
      { bytes: 8e6, gigabytesPerSecond: 10 },
    ],
    gigaflops: 100,
  };

  test("the rate of a size is that of the next smaller one that was measured", () => {
    expect([1, 1e6, 7.9e6, 8e6, 1e9].map((bytes) => readRate(limits, bytes))).toEqual([100, 100, 100, 10, 10]);
  });

  test("a share is of what takes longer, reading or multiplying", () => {
    expect(shareOfLimit(limits, { bytes: 1e6 }, 0.02)).toBeCloseTo(0.5, 10); // 0.01 ms to read
    expect(shareOfLimit(limits, { bytes: 1e6, flops: 1e6 }, 0.02)).toBeCloseTo(0.5, 10); // as long to multiply
    expect(shareOfLimit(limits, { bytes: 1e6, flops: 4e6 }, 0.08)).toBeCloseTo(0.5, 10);
    expect(shareOfLimit({ ...limits, gigaflops: undefined }, { bytes: 1e6, flops: 4e6 }, 0.04)).toBeCloseTo(0.25, 10);
  });

  test("reads are measured at every size, by as many threads as are asked for", async () => {
    const reads = await measureReads(2);
    expect(reads.map(({ bytes }) => bytes / 2 ** 20)).toEqual([1, 4, 8, 16, 32, 64, 256]);
    for (const { gigabytesPerSecond } of reads) expect(gigabytesPerSecond).toBeGreaterThan(0);
  });
});

/** What a case on a weight of [96, 128] must read and write, worked out from its name. */
function leastBytes(name: string): number {
  const size = 96 * 128;
  const [of4, nested] = [size / 2 + (4 * size) / 64, size / 2 + size / 64 + 4];
  if (name === "matmul4bit 1 row, weight [64, 64]") return 2048 + 256 + 8 * 64;
  const [, rows] = /(\d+) rows?,/.exec(name) ?? [];
  if (rows) {
    const activations = Number(rows) * (96 + 128) * (name.includes("float16") ? 2 : 4);
    if (name.includes("dense")) return 4 * size + activations;
    return activations + (name.includes("nested") ? nested : name.startsWith("matmul8bit") ? size + 4 * 96 : of4);
  }
  const states = { Adam8bit: 2, Adam32bit: 8, Lion8bit: 1, LAMB8bit: 2 }[name.replace(" step", "")];
  if (states) return (4 + 4 + 4 + 2 * states) * size;
  if (name.includes("4bit")) return (name.endsWith("bfloat16") ? 2 : 4) * size + of4;
  return 4 * size + size + 4 * (name.startsWith("Int8") ? 96 : size / 256);
}

test("times have as many digits as tell", () => {
  const times = [0.012345678, 0.0999, 0.1, 12.34567].map(milliseconds);
  expect(times).toEqual(["0.01235", "0.09990", "0.100", "12.346"]);
});

test("every case runs, has a name of its own, and counts its work", () => {
  const cases = layerCases({ n: 96, k: 128 });
  expect(new Set(cases.map(({ name }) => name)).size).toBe(cases.length);
  for (const { name, make } of cases) {
    const { run, bytes, flops } = make();
    run()?.[Symbol.dispose]();
    const [, rows] = /(\d+) rows?,/.exec(name) ?? [];
    if (rows && !name.includes("[64, 64]")) expect(flops).toBe(2 * Number(rows) * 96 * 128);
    expect([name, bytes]).toEqual([name, leastBytes(name)]);
  }
});

describe("the command", () => {
  const saved = join(scratch, "saved.json");

  function bench(...args: string[]) {
    const command = [process.execPath, main, "bench", "--filter", "\\[64, 64\\]", "--time", "2", ...args];
    const env = { ...process.env, BNB_DEVICE: "cpu", BNB_NUM_THREADS: "1" };
    const { exitCode, stdout, stderr } = Bun.spawnSync(command, { env });
    return { status: exitCode, out: stdout.toString(), err: stderr.toString() };
  }

  /** The saved record, changed. */
  async function altered(change: (record: BenchRecord) => BenchRecord): Promise<string> {
    const path = join(scratch, "altered.json");
    saveRecord(path, change(loadRecord(saved)));
    return path;
  }

  const scaled = (factor: number) => (record: BenchRecord) => ({
    ...record,
    results: record.results.map((result) => ({ ...result, leastMs: factor * result.leastMs })),
  });

  test("prints limits and times, and keeps them with where they were made", () => {
    const { status, out, err } = bench("--save", saved);
    expect({ status, err }).toEqual({ status: 0, err: "" });
    expect(out).toMatch(/^bunsandbytes .* on cpu \(1 thread.*\nLimits on 1 thread: reading, GB\/s: 1 MB \d+\.\d, 4 MB/);
    const time = String.raw`(0\.0\d{4}|(0\.[1-9]\d\d|[1-9]\d*\.\d{3}))`; // two digits that count, of whatever it takes
    const row = String.raw`^matmul4bit 1 row, weight \[64, 64\] +${time} +${time} +\d+\.\d +\d+\.\d +\d+ %$`;
    expect(out).toMatch(new RegExp(row, "m"));
    const { place, limits, results } = loadRecord(saved);
    expect(Object.keys(place)).toEqual(["processor", "processors", "system", "device", "device's description"]);
    expect(limits!.threads).toBe(1);
    expect(results.map(({ name }) => name)).toEqual(["matmul4bit 1 row, weight [64, 64]"]);
  });

  test("a regression is exit status 1", async () => {
    const { status, out } = bench("--compare", await altered(scaled(1e-6)));
    expect(status).toBe(1);
    expect(out).toMatch(/slower\n1 of 1 cases are more than 20 % slower\.\n$/);
  });

  test("a time within the tolerance is not", async () => {
    const { status, out } = bench("--compare", await altered(scaled(1e-2)), "--tolerance", "1000000");
    expect(status).toBe(0);
    expect(out).toContain("0 of 1 cases are more than 100000000 % slower.");
  });

  test("another machine is told, and no failure", async () => {
    const path = await altered((record) => ({
      ...scaled(1e-6)(record),
      place: { ...record.place, processor: "Apple M9" },
    }));
    const { status, out } = bench("--compare", path);
    expect(status).toBe(0);
    expect(out).toMatch(/different places, .*\n {2}processor: Apple M9, now /);
  });

  test("--json prints one JSON value, with the comparison, also where energy is asked for", async () => {
    const { out } = bench("--json", "--energy", "--compare", await altered(scaled(1e6)));
    const { schema: form, results, comparison } = JSON.parse(out);
    expect(form).toBe(schema);
    expect(results.length).toBe(1);
    expect(comparison).toMatchObject({ differences: [], cases: [{ regressed: false }] });
  });

  test.each([
    [["--filter", "no such case"], 1, /--filter no such case matches no case/],
    [["--filter", "("], 2, /Expected a regular expression/],
    [["--tolerance", "-1"], 2, /Expected a number above 0/],
    [["--compare", "/does/not/exist.json"], 1, /ENOENT/],
  ] as [string[], number, RegExp][])("%p is refused in a sentence", (args, status, message) => {
    const ran = bench(...args);
    expect({ status: ran.status, told: message.test(ran.err), stack: /\n\s+at /.test(ran.err) }).toEqual({
      status,
      told: true,
      stack: false,
    });
  });
});

describe("ratio, of bunsandbytes/bench", () => {
  test("calls both in turns, waits for promises and disposes of results", async () => {
    let [a, b, disposed] = [0, 0, 0];
    const disposable = { [Symbol.dispose]: () => void disposed++ };
    const { ratio: found, range } = await ratio(
      () => {
        a++;
        return disposable;
      },
      async () => {
        b++;
        await Bun.sleep(1);
        return disposable;
      },
      { rounds: 3, milliseconds: 1 },
    );
    expect(Math.min(a, b)).toBeGreaterThanOrEqual(3);
    expect(disposed).toBe(a + b);
    expect(range[0]).toBeLessThanOrEqual(found);
    expect(found).toBeLessThanOrEqual(range[1]);
  });

  test("refuses what is no number above 0, and passes on what a function throws", async () => {
    const nothing = () => {};
    expect(ratio(nothing, nothing, { rounds: Number.NaN })).rejects.toThrow("ratio: rounds is NaN");
    expect(ratio(nothing, nothing, { milliseconds: 0 })).rejects.toThrow("ratio: milliseconds is 0");
    const failing = () => {
      throw new RangeError("mine");
    };
    expect(ratio(failing, nothing)).rejects.toThrow("mine");
  });
});

describe("bench --devices", () => {
  const bench = (...more: string[]) =>
    Bun.spawnSync([process.execPath, main, "bench", "--filter", "64, 64", "--time", "1", ...more], { stderr: "pipe" });

  test("times what is here, and says why another is not", () => {
    const { exitCode, stdout } = bench("--devices", "cpu,cuda", "--json");
    const { absent, devices } = JSON.parse(stdout.toString());
    expect(exitCode).toBe(0);
    expect(devices.cpu).toMatchObject([{ name: "matmul4bit 1 row, weight [64, 64]" }]);
    expect(absent.length + Object.keys(devices).length).toBe(2);
  });

  test("is a table, which says so where there is nothing beside", () => {
    const { exitCode, stdout } = bench("--devices", "cpu");
    expect(exitCode).toBe(0);
    expect(stdout.toString()).toMatch(
      /^least ms +cpu\n─+\nmatmul4bit 1 row, weight \[64, 64\] +\d\.\d+\nOnly cpu is here, so that there is nothing to set/m,
    );
  });

  test.skipIf(process.platform !== "linux" || process.arch !== "x64")("sets devices side by side, with ratios", () => {
    const env = { ...process.env, BNB_METAL_LIBRARY: fakeMetal(), BNB_SIM_BUN: process.execPath };
    const command = [process.execPath, main, "bench", "--filter", "64, 64", "--time", "1", "--devices", "metal,cpu"];
    const { exitCode, stdout } = Bun.spawnSync(command, { env });
    expect(exitCode).toBe(0);
    const [, metal, cpu, speedUp] =
      /^least ms +metal +cpu +cpu: speed-up\n─+\nmatmul4bit 1 row, weight \[64, 64\] +([\d.]+) +([\d.]+) +([\d.]+)×$/m
        .exec(stdout.toString())!
        .map(Number);
    expect(Math.abs(metal! / cpu! / speedUp! - 1)).toBeLessThan(0.05); // of times with two digits or more
  });

  test("refuses a kind that there is not", () => {
    const { exitCode, stderr } = bench("--devices", "tpu");
    expect(exitCode).not.toBe(0);
    expect(stderr.toString()).toContain("Expected kinds out of cpu, metal, cuda");
  });

  test("refuses kinds of which none is here, with the reason of each", () => {
    const absent = devices().flatMap((report) => (report.available ? [] : [report]));
    if (absent.length === 0) return;
    const { exitCode, stderr } = bench("--devices", absent.map(({ kind }) => kind).join());
    expect(exitCode).toBe(3);
    for (const { reason } of absent) expect(stderr.toString()).toContain(reason);
  });
});

test("--energy adds joules to each case, by a meter that runs it as long again", async () => {
  let runs = 0;
  const cases: BenchCase[] = [{ name: "nothing", make: () => ({ run: () => void runs++ as undefined, bytes: 1 }) }];
  let timed = 0;
  const meter: EnergyMeter = {
    source: "made up",
    async during(run) {
      timed = runs;
      await run();
      return runs - timed; // a joule each
    },
  };
  const [result] = await measure(cases, currentDevice(), 1, undefined, meter);
  expect(timed).toBeGreaterThan(0);
  expect(result!.joules).toBe(1);

  const silent: EnergyMeter = { source: "made up", during: async () => "Energy is not told." };
  const [untold] = await measure(cases, currentDevice(), 1, undefined, silent);
  expect(untold).not.toHaveProperty("joules");
  expect(untold!.joulesUnknown).toBe("Energy is not told.");
});
