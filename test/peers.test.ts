// The comparison with peers, with times made up: ratios, targets, tables, the file; and this library's own worker. The
// peers themselves run on demand, by `bun run bench:peers`.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ModelRow, modelTable } from "../bench/models.ts";
import { classes, contests, type Entrant } from "../bench/peers/contestants.ts";
import { PeerProcess } from "../bench/peers/process.ts";
import { loadRecord, median, type PeerRecord, type Result, ratio, saveRecord, schema } from "../bench/peers/results.ts";
import { otherTable, productTable } from "../bench/peers/tables.ts";
import { targets } from "../bench/peers/targets.ts";
import { normal } from "./cases.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-peers-"));
afterAll(() => rmSync(scratch, { recursive: true }));

const all = contests(32 * 2 ** 20);

/** A record in which every entrant takes what `ms` says. */
function recordOf(ms: (entrant: Entrant, contest: string, threads: number) => number): PeerRecord {
  const results = all.flatMap(({ name, entrants }) =>
    entrants.flatMap((entrant) =>
      [1, 2].map((threads) => ({
        contest: name,
        threads,
        entrant,
        rounds: [1, 2, 3].map((noise) => noise * ms(entrant, name, threads)),
        error: 1e-7,
        wrong: false,
      })),
    ),
  );
  return { schema, machine: {}, date: "", descriptions: {}, skipped: [], results };
}

/** Ours takes 2 ms with one thread and half of that with two, everybody else `times` as long. */
const peersTake = (times: number) =>
  recordOf(({ peer }, _, threads) => (2 / threads) * (peer === "bunsandbytes" ? 1 : times));

const result = (rounds: number[]): Result => ({ ...peersTake(1).results[0]!, rounds });

describe("ratios", () => {
  test("are of times in the same round, the fastest of the others in each", () => {
    expect(ratio([result([2, 20, 200])], result([1, 10, 100]))).toBe(2);
    expect(ratio([result([3, 2, 9]), result([2, 3, 4])], result([1, 1, 1]))).toBe(2);
  });

  test("the median of an even number is the middle of two", () => {
    expect([median([3, 1, 2]), median([4, 1, 3, 2])]).toEqual([2, 2.5]);
  });
});

describe("targets", () => {
  const failing = (record: PeerRecord) => targets(record).flatMap(({ text, holds }) => (holds ? [] : [text]));

  test("all hold where peers take a thousand times as long, but for the call, which is of ours alone", () => {
    expect(failing(peersTake(1000))).toEqual(["a call of matmul4bit beside its kernel"]);
  });

  test("those hold that ask for no more than was found", () => {
    const found = targets(peersTake(1.6));
    expect(found.filter(({ wanted, unit }) => unit === "×" && wanted <= 1.6).every(({ holds }) => holds)).toBe(true);
    expect(
      found.filter(({ wanted, text }) => wanted > 1.6 && !text.includes("threads")).some(({ holds }) => holds),
    ).toBe(false);
  });

  test("two threads count where one takes over a millisecond", () => {
    const alike = recordOf((_, contest) => (contest === "M = 1" ? 0.5 : 2));
    const scaling = targets(alike).filter(({ text }) => text.includes("two threads"));
    expect(scaling.some(({ text }) => text.startsWith("M = 1:"))).toBe(false);
    expect(scaling.map(({ found }) => found)).toEqual(scaling.map(() => 1));
    expect(scaling.some(({ text, holds }) => text === "M = 32: highest, two threads" && !holds)).toBe(true);
  });

  test("a call costs what a small product takes beyond its share of a large one", () => {
    const record = recordOf((_, contest) => (contest === "M = 1, [64, 64]" ? 0.0007 : 0.0128));
    const [call] = targets(record).filter(({ unit }) => unit === "µs");
    expect(call!.found).toBeCloseTo(1, 10); // 2 · 0.7 µs less 2 · 0.2 µs
  });

  test("a peer that computes wrongly, or did not run, is not to be beaten", () => {
    const record = peersTake(1000);
    const fast = record.results.map((each) =>
      each.entrant.peer === "OpenVINO" ? { ...each, rounds: [1e-6, 1e-6, 1e-6], wrong: true } : each,
    );
    expect(failing({ ...record, results: fast })).toEqual(failing(record));
    const alone = record.results.filter(({ entrant }) => entrant.peer === "bunsandbytes");
    expect(targets({ ...record, results: alone }).some(({ text }) => text.includes("against"))).toBe(false);
  });
});

describe("tables", () => {
  test("a product's row has its time, its ratio to ours of the class, and its largest error", () => {
    const [head, ...rows] = productTable(peersTake(3), 1);
    expect(head!.slice(0, 4)).toEqual(["class", "", "weight", "M = 1"]);
    expect(rows.find((row) => row[1] === "bunsandbytes high")!.slice(2, 4)).toEqual(["NF4", "4.00"]);
    expect(rows.find((row) => row[1] === "ggml q4_k")!.slice(0, 4)).toEqual([
      "8-bit",
      "ggml q4_k",
      "Q4_K",
      "12.0 (3.00×)",
    ]);
    expect(rows[0]!.at(-1)).toBe("1e-7");
  });

  test("what computes wrongly is marked", () => {
    const record = peersTake(3);
    const results = record.results.map((each) => ({ ...each, wrong: each.entrant.peer === "ggml" }));
    const row = productTable({ ...record, results }, 1).find((cells) => cells[1] === "ggml q4_0")!;
    expect(row[3]).toBe("12.0 WRONG");
  });

  test("other operations have a row for each peer", () => {
    const adam = otherTable(peersTake(3)).filter(([contest]) => contest!.startsWith("Adam8bit"));
    expect(adam.map(([, peer, , one, two]) => [peer, one, two])).toEqual([
      ["bunsandbytes", "4.00", "2.00"],
      ["bitsandbytes", "12.0 (3.00×)", "6.00 (3.00×)"],
      ["torch", "12.0 (3.00×)", "6.00 (3.00×)"],
    ]);
  });
});

test("a file gives the record back, and another kind of file is refused", async () => {
  const path = join(scratch, "record.json");
  const record = peersTake(2);
  saveRecord(path, record);
  expect(loadRecord(path)).toEqual(record);
  await Bun.write(path, '{"schema": "other"}');
  expect(() => loadRecord(path)).toThrow(`record.json has schema other, expected ${schema}`);
});

describe("this library's worker", () => {
  test("computes every contest as exactly as its class allows, on small inputs", async () => {
    for (const [name, length] of Object.entries({ w: 256 * 256, x: 8 * 256, x_outliers: 8 * 256, g: 256 * 256 }))
      writeFileSync(join(scratch, `${name}.f32`), normal(length, name.length, name === "w" ? 0.02 : 1));
    const command = [process.execPath, join(import.meta.dir, "../bench/peers/ours.ts")];
    using worker = new PeerProcess("ours", command, { BNB_PEERS_INPUTS: scratch, BNB_DEVICE: "cpu" });
    expect((await worker.hello()).description).toStartWith("bunsandbytes ");
    for (const { name, case: whole, entrants, errorMost } of all) {
      const small = { ...whole, m: Math.min(8, whole.m), n: 256, k: 256, copies: Math.min(2, whole.copies) };
      for (const { peer, variant, class: kind } of entrants.filter(({ peer }) => peer === "bunsandbytes")) {
        const key = `${name} ${peer} ${variant}`;
        const { error } = await worker.ask({ do: "prepare", key, variant, case: small });
        expect([key, error! <= (errorMost ?? classes[kind].errorMost)]).toEqual([key, true]);
        const { samples } = await worker.ask({ do: "measure", key, milliseconds: 1 });
        expect(Math.min(...samples!)).toBeGreaterThan(0);
        expect(await worker.ask({ do: "release", key })).toEqual({});
      }
    }
  });

  test("one that ends is told by name", async () => {
    using worker = new PeerProcess("gone", [process.execPath, "-e", "console.log('{}'); process.exit(3)"], {});
    await worker.hello();
    const asked = worker.ask({ do: "release", key: "" });
    await expect(asked).rejects.toThrow("gone ended with status 3");
  });
});

test("whole models: medians of rates, and of the rounds' ratios", () => {
  const row = (label: string, rates: number[]): ModelRow => ({
    ...{ label, isPeer: label === "b", description: "", ids: [], peak: 250e6 },
    rounds: rates.map((rate) => ({ prefill: rate, prefillCpu: 2 * rate, decode: rate / 10, decodeCpu: rate / 5 })),
  });
  // The second round was slow for both: the ratio of each round is what counts.
  const rows = modelTable([row("a", [300, 30, 200]), row("b", [100, 10, 100])], "b");
  expect(rows[0]).toEqual(["a", "200.0 (3.00)", "400.0 (3.00)", "20.0 (3.00)", "40.0 (3.00)", "250 MB"]);
  expect(rows[1]!.slice(1, 3)).toEqual(["100.0 (1.00)", "200.0 (1.00)"]);
});
