// What is refused before any work on an output: paths, inputs that lead elsewhere, too little space.
import { describe, expect, test } from "bun:test";
import fs from "node:fs";
import { dirname, join } from "node:path";
import { quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { SafetensorsWriter } from "../src/checkpoint/writer.ts";
import { BnbError } from "../src/error.ts";
import { llamaDirectory } from "./models.ts";
import { workplace } from "./outputs.ts";

const { scratch, fresh, model } = await workplace();

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
