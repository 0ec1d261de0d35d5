// The short form of the fault suite: `bun run test:faults` has the long one.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { declarations } from "../header.ts";
import { canMount, interruptEverywhere, quantizeOnto, twoWriters } from "./interrupted.ts";
import { memory } from "./memory.ts";
import { powerCuts } from "./power.ts";
import { ffi, files, harness, liars, lifetime, renamed, scratch, simulatedGpu, type Tally } from "./runs.ts";
import { attacks, attackTerminal, type TerminalReport } from "./terminal.ts";

afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const seed = 1;
const folder = (name: string) => {
  mkdirSync(join(scratch, name));
  return join(scratch, name);
};
const names = declarations.map(({ name }) => name);

/** Entries that were not called as they should have been. */
const lacking = (tallies: Record<string, Tally>, holds: (tally: Tally) => boolean) =>
  names.filter((name) => !(tallies[name] && holds(tallies[name]!)));

describe.skipIf(process.platform !== "linux")("the C entries, under the undefined-behaviour sanitizer", () => {
  test("every one succeeds and, where it can fail, fails, and all is freed", async () => {
    const tallies = await harness("undefined", "fuzz", seed, 15_000);
    expect(lacking(tallies, ({ calls, ok }) => calls > 0 && ok > 0)).toEqual([]);
    const makers = declarations.filter(
      ({ returns, parameters }) => parameters.length > 0 && /^bnb_\w+ \*$|^bnb_status$/.test(returns),
    );
    expect(makers.map(({ name }) => name).filter((name) => !tallies[name]!.invalid)).toEqual([]);
  }, 300_000);

  test("without memory for any one allocation, every one says so, leaks nothing, and succeeds when asked again", async () => {
    const tallies = await harness("undefined", "allocations", seed, 2);
    expect(lacking(tallies, ({ calls }) => calls > 0)).toEqual([]);
    const refused = Object.values(tallies).reduce((sum, { outOfMemory }) => sum + outOfMemory, 0);
    expect(refused).toBeGreaterThan(100);
  });

  test("the public functions answer arguments that lie, and none crashes", async () => {
    const { functions, calls } = await liars(seed, 60, 2);
    expect(functions).toBeGreaterThan(100);
    expect(calls).toBe(50 * functions);
  });

  test("while another thread rewrites what a call reads, every address stays in its bounds", async () => {
    const tallies = await harness("undefined", "races", seed, 8000);
    const raced = Object.values(tallies).filter(({ calls, ok }) => calls > 0 && ok > 0);
    expect(raced.length).toBeGreaterThan(40);
  });

  test.skipIf(process.arch !== "x64")(
    "on the simulated GPU too, with every access checked",
    async () => {
      const calls = await harness("undefined", "fuzz", seed, 400, simulatedGpu());
      expect(Object.values(calls).reduce((sum, { ok }) => sum + ok, 0)).toBeGreaterThan(100);
      const races = await harness("undefined", "races", seed, 200, simulatedGpu());
      expect(Object.values(races).reduce((sum, { ok }) => sum + ok, 0)).toBeGreaterThan(100);
    },
    120_000,
  );

  test("a child of a process whose threads are anywhere in the library can use the CPU", async () => {
    const tallies = await harness("undefined", "forks", seed, 80);
    expect(Object.values(tallies).reduce((sum, { ok }) => sum + ok, 0)).toBe(80);
  });

  test("through the FFI, nothing that JavaScript can give crashes", async () => {
    const { calls, failed, succeeded } = await ffi(seed, 60, 15_000);
    expect(calls).toBe(15_000);
    expect(failed).toBeGreaterThan(1000);
    expect(succeeded).toBeGreaterThan(1000);
  });
});

test("damaged files are read or refused, quickly and within their size", async () => {
  const { tried } = await files(seed, 60, 900);
  for (const [name, { read, refused }] of Object.entries(tried)) {
    expect([name, refused > 0, read + refused > 50]).toEqual([name, true, true]);
  }
});

describe("a model that is being written", () => {
  test("is the old or the new one wherever the process is killed, and the disk full; run again, it is there", async () => {
    const { killed, full, states } = await interruptEverywhere(folder("interrupted"), 11);
    expect(killed).toBeGreaterThan(15);
    expect(full).toBeGreaterThan(10);
    expect(Object.keys(states).sort()).toEqual(["absent", "fp4", "nf4"]);
  }, 300_000);

  test("is one process's, whenever another writes to the same place", async () => {
    const { pairs, outcomes } = await twoWriters(folder("two-writers"), 17);
    expect(pairs).toBeGreaterThan(8);
    expect(outcomes["the first"]).toBeGreaterThan(5);
  }, 300_000);

  test("survives a power cut after any change of the disk, as do the user's files", async () => {
    const { cuts, disks, states } = await powerCuts(folder("power"), seed, 2);
    expect(cuts).toBeGreaterThan(200);
    expect(disks).toBeGreaterThan(200);
    expect(states.nf4).toBeGreaterThan(10);
    expect(states.fp4).toBeGreaterThan(100);
  }, 300_000);

  test.skipIf(!canMount())("on a disk that is full, leaves nothing, and says which file", async () => {
    const { error, left } = await quantizeOnto(folder("disk"), 80);
    expect(error).toMatch(/ENOSPC.*model-\d+-of-\d+\.safetensors/);
    expect(left).toEqual([]);
    expect((await quantizeOnto(folder("smaller-disk"), 48)).error).toMatch(/needs \d+ bytes, and 49152 are free/);
  });
});

test("a file that is renamed over while it is opened is read as one of the two", async () => {
  const { opened, files: turns } = await renamed(2);
  expect(opened).toBeGreaterThan(100);
  expect(Math.min(...turns)).toBeGreaterThan(0);
});

test("nothing that a terminal would obey comes out of any command", async () => {
  const report: TerminalReport = { runs: 0, characters: 0 };
  await attackTerminal(folder("terminal"), attacks.join(""), report);
  expect(report.runs).toBeGreaterThan(40);
  expect(report.characters).toBeGreaterThan(10_000);
}, 300_000);

test("each command takes at most twice its file's size of memory", async () => {
  const report = await memory(folder("memory"));
  expect(Object.keys(report).map((job) => job.split(" ")[0])).toContainValues([
    "verify",
    "inspect",
    "quantize",
    "convert",
  ]);
  for (const [native] of Object.values(report)) expect(native).toBeLessThan(1);
}, 300_000);

describe("lifetimes", () => {
  test("a million tensors made and disposed of leave nothing", async () => {
    expect((await lifetime("dispose", 1_000_000)).made).toBe(1_000_000);
  });

  test("what is only dropped is collected before memory fills", async () => {
    const { peakBytes, leftBytes } = await lifetime("collect", 400);
    expect(peakBytes).toBeLessThan(512 << 20);
    expect(leftBytes).toBeLessThan(16 << 20);
  });

  test("eight workers, two of them ended in the middle, compute the same", async () => {
    expect((await lifetime("workers", 60)).finished).toBeGreaterThanOrEqual(6);
  });

  test("nothing is left of workers that are terminated in the middle", async () => {
    expect((await lifetime("terminate", 24)).terminated).toBe(24);
  });
});
