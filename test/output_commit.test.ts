// How an output is put in place: what stays of the user's, and what is done where folders can't be exchanged.
import { describe, expect, test } from "bun:test";
import fs from "node:fs";
import { dirname, join } from "node:path";
import { verifyCheckpoint } from "../src/checkpoint/inspect.ts";
import { intoDirectory } from "../src/checkpoint/output.ts";
import { writeText } from "../src/checkpoint/staging.ts";
import { quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import { libc } from "../src/libc.ts";
import { originals, textOf, workplace, write } from "./outputs.ts";

const { scratch, fresh, model } = await workplace();

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
