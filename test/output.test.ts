// The folder that a model is written into, as a transaction: what is refused before any work, what stays of the
// user's, what becomes of other writers and of what they left behind.
import { afterAll, afterEach, describe, expect, test } from "bun:test";
import fs from "node:fs";
import { hostname, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { openCheckpoint } from "../src/checkpoint/checkpoint.ts";
import { verifyCheckpoint } from "../src/checkpoint/inspect.ts";
import { intoDirectory } from "../src/checkpoint/output.ts";
import { writeText } from "../src/checkpoint/staging.ts";
import { quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { SafetensorsWriter, writeSafetensors } from "../src/checkpoint/writer.ts";
import { BnbError } from "../src/error.ts";
import { libc } from "../src/libc.ts";
import { llamaDirectory } from "./models.ts";

const scratch = fs.realpathSync(fs.mkdtempSync(join(tmpdir(), "bnb-output-")));
afterAll(() => fs.rmSync(scratch, { recursive: true }));
let folders = 0;
/** A folder of its own for each test, whose content can be looked at. */
const fresh = () => {
  const folder = join(scratch, `test-${folders++}`);
  fs.mkdirSync(folder);
  return folder;
};
const model = join(scratch, "llama");
await llamaDirectory(model);

const originals = { exchange: libc.exchange, lock: libc.lock, renameSync: fs.renameSync, linkSync: fs.linkSync };
afterEach(() => {
  Object.assign(libc, { exchange: originals.exchange, lock: originals.lock });
  Object.assign(fs, { renameSync: originals.renameSync, linkSync: originals.linkSync });
});

const bytes = Uint8Array.of(1);
const textOf = (path: string) => fs.readFileSync(path, "utf8");
/** A model of one text, which is enough to see which one it is. */
const write = (output: string, weights: string, options: { force?: boolean; input?: string } = {}) =>
  intoDirectory({ output, ...options }, { input: options.input, bytes: 10 }, async (folder) => {
    writeText(join(folder, "model.safetensors"), weights);
    return {};
  });

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

describe("before any work", () => {
  const refusals: [string, RegExp, (folder: string) => string | Promise<unknown>][] = [
    ["no path", /output "" is no path/, () => ""],
    ["a NUL", /output "a\\u0000b" is no path/, () => "a\0b"],
    ["a name that is too long", /x is longer than names of files may be; choose/, () => "x".repeat(300)],
    ["the root", /output \/ is the root/, () => "/"],
    ["a path below a file", /lies below \S+file, which is no folder/, (folder) => join(folder, "file/x")],
    ["a link to nothing", /is a link to nowhere, which does not exist/, (folder) => join(folder, "dangling")],
    ["a link in a circle", /is a link to circle, in a circle/, (folder) => join(folder, "circle")],
    ["a pipe", /is a file, expected a directory/, (folder) => join(folder, "pipe")],
    ["a folder in the input", /lies in the input/, () => join(model, "out")],
    ["a folder with the input in it", /has the input \S+ in it/, () => dirname(model)],
  ];
  test.each(refusals.map((row) => [row[0], row] as const))("%s is refused", async (_, [, message, make]) => {
    const folder = fresh();
    fs.writeFileSync(join(folder, "file"), "");
    fs.symlinkSync("nowhere", join(folder, "dangling"));
    fs.symlinkSync("circle", join(folder, "circle"));
    Bun.spawnSync(["mkfifo", join(folder, "pipe")]);
    const before = fs.readdirSync(folder);
    const making = quantizeCheckpoint(model, { output: (await make(folder)) as string, force: true });
    await expect(making).rejects.toThrow(message);
    await expect(making).rejects.toThrow(BnbError);
    expect(fs.readdirSync(folder)).toEqual(before);
    expect(fs.readdirSync(model)).not.toContain("out");
  });

  const inputs: [string, RegExp, (input: string) => void][] = [
    [
      "a link out of it",
      /notes.txt leads to \S+secret, outside of the model's folder/,
      (input) => {
        fs.writeFileSync(join(dirname(input), "secret"), "key");
        fs.symlinkSync("../secret", join(input, "notes.txt"));
      },
    ],
    [
      "a folder that leads out of it",
      /sub leads to \S+, outside of the model/,
      (input) => fs.symlinkSync("..", join(input, "sub")),
    ],
    [
      "a folder that leads into itself",
      /again leads into itself/,
      (input) => fs.symlinkSync(".", join(input, "again")),
    ],
    [
      "a link to nothing",
      /a.txt is a link to none, which does not exist/,
      (input) => fs.symlinkSync("none", join(input, "a.txt")),
    ],
    [
      "a link in a circle",
      /a.txt is a link that leads in a circle/,
      (input) => fs.symlinkSync("a.txt", join(input, "a.txt")),
    ],
    ["a pipe", /a.txt is no ordinary file/, (input) => void Bun.spawnSync(["mkfifo", join(input, "a.txt")])],
    [
      "a config.json that is a pipe",
      /config.json is no ordinary file/,
      (input) => {
        fs.rmSync(join(input, "config.json"));
        Bun.spawnSync(["mkfifo", join(input, "config.json")]);
      },
    ],
    [
      "a config.json that leads out",
      /config.json leads to \/dev\/zero/,
      (input) => {
        fs.rmSync(join(input, "config.json"));
        fs.symlinkSync("/dev/zero", join(input, "config.json"));
      },
    ],
    [
      "weights that lead out",
      /model.safetensors leads to \S+stolen, outside/,
      (input) => {
        fs.renameSync(join(input, "model.safetensors"), join(dirname(input), "stolen"));
        fs.symlinkSync("../stolen", join(input, "model.safetensors"));
      },
    ],
  ];
  test.each(inputs.map((row) => [row[0], row] as const))(
    "an input with %s is refused",
    async (_, [, message, make]) => {
      const folder = fresh();
      const input = join(folder, "input");
      await llamaDirectory(input);
      make(input);
      let worked = false;
      const onProgress = () => (worked = true);
      await expect(quantizeCheckpoint(input, { output: join(folder, "out"), onProgress })).rejects.toThrow(message);
      expect(worked).toBe(false);
      expect(fs.readdirSync(folder)).not.toContain("out");
    },
  );

  test("links inside of the folder, and from the hub's cache into its blobs, are followed", async () => {
    const hub = join(fresh(), "models--org--name");
    const snapshot = join(hub, "snapshots/abc");
    await llamaDirectory(snapshot);
    fs.mkdirSync(join(hub, "blobs"));
    for (const name of ["model.safetensors", "config.json", "tokenizer.json"]) {
      fs.renameSync(join(snapshot, name), join(hub, "blobs", name));
      fs.symlinkSync(`../../blobs/${name}`, join(snapshot, name));
    }
    fs.symlinkSync("tokenizer.json", join(snapshot, "again.json"));
    const output = join(fresh(), "out");
    const { carried } = await quantizeCheckpoint(snapshot, { output });
    expect(carried).toEqual(["again.json", "onnx/README.md", "tokenizer.json"]);
    expect(fs.lstatSync(join(output, "again.json")).isFile()).toBe(true);
  });

  test("too little space is seen", async () => {
    const folder = fresh();
    const { statfsSync } = fs;
    fs.statfsSync = ((path: string) => ({ ...statfsSync(path), bavail: 1, bfree: 1, bsize: 4096 })) as never;
    try {
      await expect(quantizeCheckpoint(model, { output: join(folder, "x/out") })).rejects.toThrow(
        /needs \d+ bytes, and 4096 are free/,
      );
    } finally {
      fs.statfsSync = statfsSync;
    }
    expect(fs.readdirSync(folder)).toEqual([]);
  });

  test("a writer on a path with a NUL, or none, is refused, and forgotten", () => {
    const listeners = process.listenerCount("exit");
    expect(() => new SafetensorsWriter("a\0b", [])).toThrow(/path "a\\u0000b" is no path/);
    expect(() => new SafetensorsWriter("", [])).toThrow(/path "" is no path/);
    expect(() => new SafetensorsWriter(scratch, [])).toThrow(/is a folder, expected a file's name/);
    expect(() => new SafetensorsWriter("/dev/null", [])).toThrow(/is no ordinary file/);
    expect(process.listenerCount("exit")).toBe(listeners);
  });
});

describe("what is the user's", () => {
  test("files and folders stay as they are, the same files, beside the new model", async () => {
    const output = join(fresh(), "out");
    await write(output, "old");
    fs.chmodSync(output, 0o750);
    fs.mkdirSync(join(output, "onnx/deep"), { recursive: true });
    fs.chmodSync(join(output, "onnx"), 0o700);
    const mine = ["notes.txt", ".git", "onnx/mine.txt", "onnx/deep/x"];
    for (const name of mine) fs.writeFileSync(join(output, name), name);
    fs.chmodSync(join(output, "notes.txt"), 0o600);
    fs.chmodSync(join(output, "onnx/deep"), 0o500);
    fs.symlinkSync("../elsewhere", join(output, "link"));
    const before = mine.map((name) => fs.statSync(join(output, name)).ino);
    const { notes } = await write(output, "new", { force: true, input: model });
    expect(notes).toEqual([]);
    expect(textOf(join(output, "model.safetensors"))).toBe("new");
    expect(mine.map((name) => fs.statSync(join(output, name)).ino)).toEqual(before);
    expect(mine.map((name) => textOf(join(output, name)))).toEqual(mine);
    expect(textOf(join(output, "onnx/README.md"))).toBe("about them");
    expect(fs.readlinkSync(join(output, "link"))).toBe("../elsewhere");
    expect(fs.readdirSync(dirname(output))).toEqual(["out"]);
    const modeOf = (name: string) => fs.statSync(join(output, name)).mode & 0o777;
    expect([modeOf("."), modeOf("onnx"), modeOf("notes.txt")]).toEqual([0o750, 0o700, 0o600]);
  });

  test("a folder where a file must stand, or the other way round, is refused before any work", async () => {
    const output = join(fresh(), "out");
    fs.mkdirSync(join(output, "tokenizer.json/precious"), { recursive: true });
    await expect(write(output, "new", { force: true, input: model })).rejects.toThrow(/has a folder tokenizer.json/);
    fs.rmdirSync(join(output, "tokenizer.json/precious"));
    fs.rmdirSync(join(output, "tokenizer.json"));
    fs.writeFileSync(join(output, "onnx"), "mine");
    await expect(write(output, "new", { force: true, input: model })).rejects.toThrow(/has a file onnx/);
    expect(textOf(join(output, "onnx"))).toBe("mine");
  });

  test("what is written to the output while it is put in place is there afterwards", async () => {
    const output = join(fresh(), "out");
    await write(output, "old");
    for (const name of ["edited", "renewed"]) fs.writeFileSync(join(output, name), "before");
    libc.exchange = (a, b) => {
      fs.writeFileSync(join(output, "edited"), "after");
      fs.writeFileSync(join(output, "another"), "after");
      fs.writeFileSync(join(output, ".renewed"), "after");
      fs.renameSync(join(output, ".renewed"), join(output, "renewed"));
      return originals.exchange(a, b);
    };
    expect((await write(output, "new", { force: true })).notes).toEqual([]);
    expect(["edited", "another", "renewed"].map((name) => textOf(join(output, name)))).toEqual([
      "after",
      "after",
      "after",
    ]);
    expect(textOf(join(output, "model.safetensors"))).toBe("new");
    expect(fs.readdirSync(dirname(output))).toEqual(["out"]);
  });

  test("where links are refused, files are copied; one that is written meanwhile is the one that stays", async () => {
    const output = join(fresh(), "out");
    await write(output, "old");
    fs.writeFileSync(join(output, "mine"), "before");
    fs.linkSync = () => {
      throw new Error("EPERM");
    };
    await write(output, "newer", { force: true });
    expect(textOf(join(output, "mine"))).toBe("before");
    libc.exchange = (a, b) => {
      fs.writeFileSync(join(output, "mine"), "written meanwhile");
      return originals.exchange(a, b);
    };
    await write(output, "newest", { force: true });
    expect(textOf(join(output, "mine"))).toBe("written meanwhile");
    expect(fs.readdirSync(dirname(output))).toEqual(["out"]);
  });

  test("an output that somebody fills meanwhile is his, and the result stays where the error says", async () => {
    for (const exists of [true, false]) {
      const output = join(fresh(), "out");
      if (exists) fs.mkdirSync(output);
      const filling = intoDirectory({ output }, { bytes: 1 }, async (folder) => {
        writeText(join(folder, "model.safetensors"), "ours");
        fs.mkdirSync(output, { recursive: true });
        fs.writeFileSync(join(output, "model.safetensors"), "theirs");
        return {};
      });
      const error: Error = await filling.catch((cause) => cause);
      expect(error.message).toMatch(/is whole, but could not be put at .*is not empty.* It stays at /);
      const place = /It stays at (.*): move/.exec(error.message)![1]!;
      expect(textOf(join(place, "model.safetensors"))).toBe("ours");
      expect(textOf(join(output, "model.safetensors"))).toBe("theirs");
    }
  });

  test("filled in the very last instant, too", async () => {
    const output = join(fresh(), "out");
    fs.mkdirSync(output);
    libc.exchange = (a, b) => {
      if (!fs.existsSync(join(a, "theirs"))) fs.writeFileSync(join(b, "theirs"), "theirs");
      return originals.exchange(a, b);
    };
    await expect(write(output, "ours")).rejects.toThrow(/has been filled by somebody else meanwhile/);
    expect(fs.readdirSync(output)).toEqual(["theirs"]);
  });

  test("a file keeps its mode, and is reached through a link", async () => {
    const folder = fresh();
    const path = join(folder, "x.safetensors");
    await writeSafetensors(path, []);
    fs.chmodSync(path, 0o640);
    fs.symlinkSync("x.safetensors", join(folder, "link"));
    await writeSafetensors(join(folder, "link"), [{ name: "a", dtype: "U8", shape: [1], bytes: Uint8Array.of(1) }]);
    expect(fs.statSync(path).mode & 0o777).toBe(0o640);
    expect(fs.lstatSync(join(folder, "link")).isSymbolicLink()).toBe(true);
    expect(fs.statSync(path).size).toBeGreaterThan(20);
  });
});

describe("where the folder can't be exchanged", () => {
  test("files are moved one by one, the index of the weights last, and that is told", async () => {
    const output = join(fresh(), "out");
    await quantizeCheckpoint(model, { output, shardBytes: 40_000, quantType: "fp4" });
    fs.writeFileSync(join(output, "mine"), "mine");
    libc.exchange = () => false;
    const { notes } = await quantizeCheckpoint(model, { output, shardBytes: 40_000, force: true });
    expect(notes.join()).toMatch(/replaced one by one/);
    expect(await verifyCheckpoint(output)).toMatchObject({ quantized: { nf4: 7 }, problems: [] });
    expect(textOf(join(output, "mine"))).toBe("mine");
    expect(fs.readdirSync(dirname(output))).toEqual(["out"]);
  });

  test("an error at any move puts everything back, and the result stays where the error says", async () => {
    libc.exchange = () => false;
    for (let at = 0; ; at++) {
      const output = join(fresh(), "out");
      await quantizeCheckpoint(model, { output, shardBytes: 90_000, quantType: "fp4" });
      fs.writeFileSync(join(output, "mine"), "mine");
      let moves = 0;
      fs.renameSync = (from, to) => {
        if (String(to).includes(`${output}/`) || String(to).includes("/old/"))
          if (moves++ === at) throw Object.assign(new Error("EBUSY: busy."), { code: "EBUSY" });
        originals.renameSync(from, to);
      };
      const made = await quantizeCheckpoint(model, { output, force: true }).catch((cause: Error) => cause);
      fs.renameSync = originals.renameSync;
      if (!(made instanceof Error)) {
        expect(at).toBeGreaterThan(5);
        break;
      }
      expect(made.message).toMatch(/could not be put at .*EBUSY.* It stays at /);
      expect(await verifyCheckpoint(output)).toMatchObject({ quantized: { fp4: 7 }, problems: [] });
      const place = /It stays at (.*): move/.exec(made.message)![1]!;
      expect(await verifyCheckpoint(place)).toMatchObject({ quantized: { nf4: 7 }, problems: [] });
      expect(textOf(join(output, "mine"))).toBe("mine");
    }
  });

  test("the current folder stays the one that a shell is in", () => {
    const output = fresh();
    const program = `
      import { quantizeCheckpoint } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/transform.ts"))};
      await quantizeCheckpoint(${JSON.stringify(model)}, { output: "." });`;
    const { ino } = fs.statSync(output);
    const { exitCode, stderr } = Bun.spawnSync([process.execPath, "-e", program], { cwd: output });
    expect([exitCode, stderr.toString()]).toEqual([0, ""]);
    expect(fs.statSync(output).ino).toBe(ino);
    expect(fs.readdirSync(output)).toContain("model.safetensors");
    expect(fs.readdirSync(output).filter((name) => name.startsWith("."))).toEqual([]);
  });

  test("a folder that a user may write to, but not beside it, is written to", () => {
    const folder = fresh();
    const output = join(folder, "out");
    fs.mkdirSync(output);
    // Root may write anywhere, so the child becomes nobody first.
    if (process.getuid?.() === 0) fs.chownSync(output, 65534, 65534);
    fs.chmodSync(folder, 0o555);
    fs.chmodSync(scratch, 0o755);
    const program = `
      import { intoDirectory } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/output.ts"))};
      import { writeText } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/staging.ts"))};
      if (process.getuid() === 0) { process.setgid(65534); process.setuid(65534); }
      for (const text of ["old", "new"])
        await intoDirectory({ output: ${JSON.stringify(output)}, force: true }, { bytes: 1 }, async (folder) => {
          writeText(folder + "/model.safetensors", text);
          return {};
        });`;
    const { stderr } = Bun.spawnSync([process.execPath, "-e", program], { cwd: "/" });
    fs.chmodSync(folder, 0o755);
    expect(stderr.toString()).toBe("");
    expect(fs.readdirSync(output)).toEqual(["model.safetensors"]);
    expect(textOf(join(output, "model.safetensors"))).toBe("new");
  });

  const canMount =
    Bun.which("unshare") !== null &&
    Bun.spawnSync(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], { stderr: "ignore" }).success;
  test.skipIf(!canMount)("a mount, a second name of a folder, and a link to one are written to", () => {
    const folder = fresh();
    for (const name of ["disk", "bound", "real"]) fs.mkdirSync(join(folder, name));
    fs.symlinkSync("disk/model", join(folder, "link"));
    const program = `
      import { quantizeCheckpoint } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/transform.ts"))};
      import { verifyCheckpoint } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/inspect.ts"))};
      import fs from "node:fs";
      fs.mkdirSync("disk/model");
      for (const output of ["disk", "bound", "link"])
        for (const quantType of ["fp4", "nf4"]) {
          await quantizeCheckpoint(${JSON.stringify(model)}, { output, quantType, force: true });
          console.log(output, JSON.stringify((await verifyCheckpoint(output)).quantized));
        }
      const names = [".", "disk", "bound", "disk/model"].flatMap((folder) => fs.readdirSync(folder));
      console.log(names.filter((name) => name.endsWith(".tmp")).length);`;
    const mounts = 'mount -t tmpfs tmpfs disk && mount --bind real bound && exec "$@"';
    const command = ["unshare", "-Urm", "sh", "-c", mounts, "sh", process.execPath, "-e", program];
    const { stdout, stderr } = Bun.spawnSync(command, { cwd: folder });
    const both = (name: string) => `${name} {"fp4":7}\n${name} {"nf4":7}\n`;
    expect(stdout.toString() + stderr.toString()).toBe(`${both("disk")}${both("bound")}${both("link")}0\n`);
  });
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
