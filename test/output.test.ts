// The stage of an output: synced before it gets its name, one writer at a time, and what becomes of what others left.
import { describe, expect, test } from "bun:test";
import fs from "node:fs";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { openCheckpoint } from "../src/checkpoint/checkpoint.ts";
import { intoDirectory } from "../src/checkpoint/output.ts";
import { writeText } from "../src/checkpoint/staging.ts";
import { quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { SafetensorsWriter, writeSafetensors } from "../src/checkpoint/writer.ts";
import { libc } from "../src/libc.ts";
import { originals, textOf, workplace, write } from "./outputs.ts";

const { fresh, model } = await workplace();

const bytes = Uint8Array.of(1);

test.each([
  ["a file of tensors", (path: string) => writeSafetensors(path, [{ name: "x", dtype: "U8", shape: [1], bytes }])],
  ["a text", async (path: string) => writeText(path, "x")],
] as const)("%s by itself is synced before it gets its name", async (_, make) => {
  const path = join(fresh(), "file");
  fs.mkdirSync(dirname(path), { recursive: true });
  const synced = new Set<number>();
  const { fsyncSync } = fs;
  Object.assign(fs, {
    fsyncSync(descriptor: number) {
      if (!fs.existsSync(path)) synced.add(fs.fstatSync(descriptor).ino);
      fsyncSync(descriptor);
    },
  });
  try {
    await make(path);
  } finally {
    Object.assign(fs, { fsyncSync });
  }
  expect(synced.has(fs.statSync(path).ino)).toBe(true);
});

describe("other processes", () => {
  /** A process that writes to an output until it is told to end. */
  async function writer(output: string) {
    const program = `
      import { intoDirectory } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/output.ts"))};
      import { writeText } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/staging.ts"))};
      await intoDirectory({ output: ${JSON.stringify(output)}, force: true }, { bytes: 1 }, async (folder) => {
        writeText(folder + "/model.safetensors", "theirs");
        console.log("writing");
        await Bun.stdin.text();
        return {};
      });`;
    const child = Bun.spawn([process.execPath, "-e", program], { stdin: "pipe", stdout: "pipe" });
    await child.stdout.getReader().read();
    return child;
  }

  test("of two that write to one place the second is refused, and named the first", async () => {
    const output = join(fresh(), "out");
    const child = await writer(output);
    await expect(write(output, "ours")).rejects.toThrow(
      new RegExp(`is being written by process ${child.pid} on ${hostname()}, begun at 20`),
    );
    expect(fs.readdirSync(dirname(output)).length).toBe(1);
    child.stdin.end();
    expect(await child.exited).toBe(0);
    expect(textOf(join(output, "model.safetensors"))).toBe("theirs");
    await expect(write(output, "ours")).rejects.toThrow(/not empty/);
  });

  test("two files at once in one process: the same", () => {
    const path = join(fresh(), "x.safetensors");
    using _writer = new SafetensorsWriter(path, []);
    expect(() => new SafetensorsWriter(path, [])).toThrow(/is being written by process/);
  });

  // Elsewhere the system does not tell of a process's threads, and the next process removes it.
  test.skipIf(process.platform !== "linux")("what a terminated Worker left is removed by another thread", async () => {
    const output = join(fresh(), "out");
    const program = `
      import { intoDirectory } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/output.ts"))};
      await intoDirectory({ output: ${JSON.stringify(output)} }, { bytes: 1 }, async () => {
        postMessage("writing");
        await new Promise(() => setInterval(() => {}, 1000));
      });`;
    const script = join(fresh(), "worker.ts");
    fs.writeFileSync(script, program);
    const worker = new Worker(script);
    await new Promise((resolve) => worker.addEventListener("message", resolve, { once: true }));
    await expect(write(output, "ours")).rejects.toThrow(/is being written by process/);
    const [left] = fs.readdirSync(dirname(output));
    const thread = JSON.parse(textOf(join(dirname(output), left!, "journal")).split("\n")[0]!).thread;
    await worker.terminate();
    while (fs.existsSync(join("/proc", thread))) await Bun.sleep(10);
    expect((await write(output, "ours")).notes.join()).toMatch(/^Removed .* which was left unfinished/);
    expect(fs.readdirSync(dirname(output))).toEqual(["out"]);
  });

  test("what a killed one left is removed, with a sentence, but not what is no work of its own", async () => {
    const output = join(fresh(), "out");
    const names = () => fs.readdirSync(dirname(output)).filter((name) => name.endsWith(".tmp"));
    for (const foreign of [false, true]) {
      const child = await writer(output);
      child.kill("SIGKILL");
      await child.exited;
      const [left] = names();
      if (foreign) fs.writeFileSync(join(dirname(output), left!, "new/thesis.txt"), "");
      const { notes } = await write(output, "ours", { force: true });
      const sentence = foreign
        ? /was left by .* and holds files of others/
        : /^Removed .* which was left unfinished by process/;
      expect(notes.join("\n")).toMatch(sentence);
      expect(names()).toEqual(foreign ? [left!] : []);
      expect(textOf(join(output, "model.safetensors"))).toBe("ours");
    }
  });

  test("what a killed writer of one file left is removed by the next, with a warning", async () => {
    const path = join(fresh(), "x.safetensors");
    const program = (then: string) => `
      import { SafetensorsWriter } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/writer.ts"))};
      using writer = new SafetensorsWriter(${JSON.stringify(path)}, [{ name: "x", dtype: "U8", shape: [1] }]);
      writer.write("x", Uint8Array.of(1));
      ${then}`;
    Bun.spawnSync([process.execPath, "-e", program('process.kill(process.pid, "SIGKILL");')]);
    expect(fs.readdirSync(dirname(path)).length).toBe(1);
    const { stderr } = Bun.spawnSync([process.execPath, "-e", program("writer.commit();")]);
    expect(stderr.toString()).toMatch(/Warning: Removed .*, which was left unfinished by process/);
    expect(fs.readdirSync(dirname(path))).toEqual(["x.safetensors"]);
  });

  test("what was kept after an error, or replaced when the power went, is never removed", async () => {
    const output = join(fresh(), "out");
    await write(output, "old");
    libc.exchange = () => {
      throw new Error("the power went");
    };
    await write(output, "new", { force: true }).catch(() => {});
    libc.exchange = originals.exchange;
    const [kept] = fs.readdirSync(dirname(output)).filter((name) => name.endsWith(".tmp"));
    const journal = join(dirname(output), kept!, "journal");
    expect((await write(output, "newer", { force: true })).notes.join()).toMatch(/holds a finished result/);
    fs.writeFileSync(journal, textOf(journal).replace(/.*"kept".*\n/, '{"state":"committing","stage":1}\n'));
    expect((await write(output, "newest", { force: true })).notes.join()).toMatch(/holds what was replaced/);
    expect(textOf(join(dirname(output), kept!, "new/model.safetensors"))).toBe("new");
  });

  test("a file system without locks: nobody is taken for dead", async () => {
    const output = join(fresh(), "out");
    const child = await writer(output);
    const [left] = fs.readdirSync(dirname(output));
    const journal = join(dirname(output), left!, "journal");
    child.kill("SIGKILL");
    await child.exited;
    fs.writeFileSync(journal, textOf(journal).replace('"locked":true', '"locked":false'));
    expect((await write(output, "ours")).notes.join()).toMatch(/whether that has ended can't be told here/);
    expect(fs.existsSync(journal)).toBe(true);
  });
});

test("parents that were made go again where nothing was written", async () => {
  const folder = fresh();
  const output = join(folder, "a/b/out");
  const failing = intoDirectory({ output }, { bytes: 1 }, async () => {
    expect(fs.existsSync(dirname(output))).toBe(true);
    throw new Error("no more data");
  });
  await expect(failing).rejects.toThrow("no more data");
  expect(fs.readdirSync(folder)).toEqual([]);
  await write(output, "x");
  expect(fs.existsSync(output)).toBe(true);
});

test("a model that was written is one that loads", async () => {
  const output = join(fresh(), "out");
  await quantizeCheckpoint(model, { output });
  using opened = openCheckpoint(output);
  expect(opened.quantized.size).toBe(7);
});
