// Tests that every public name is documented, with an example that compiles, runs, and gives what it says.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import * as api from "../src/index.ts";
import { exampleOf, moduleOf } from "./docs/examples.ts";
import { publicNames } from "./docs/names.ts";
import { tiny } from "./model/fixtures.ts";
import { ggufFile, llamaDirectory, llamaGgufMetadata, llamaGgufTensors } from "./models.ts";

const root = resolve(import.meta.dir, "..");
const names = publicNames();
const values = names.filter(({ type }) => !type);

/** What a name stands for at run time: `nn.Linear4bit` → the class. */
function resolved(name: string): unknown {
  return name.split(".").reduce((scope: unknown, part) => (scope as Record<string, unknown>)[part], api);
}

test("the list of names is the package's", () => {
  const exported = Object.entries(api).flatMap(([name, value]) =>
    typeof value === "object" ? Object.keys(value).map((inner) => `${name}.${inner}`) : [name],
  );
  expect(values.map(({ name }) => name).sort()).toEqual(exported.sort());
});

test("every public name has a docstring", () => {
  expect(names.filter(({ doc }) => !doc?.trim()).map(({ name, file }) => `${file}: ${name}`)).toEqual([]);
});

test("every function and class has an example", () => {
  const without = values.filter((name) => typeof resolved(name.name) === "function" && !exampleOf(name));
  expect(without.map(({ name, file }) => `${file}: ${name}`)).toEqual([]);
});

describe("the examples", () => {
  const models = mkdtempSync(join(tmpdir(), "bnb-docs-"));
  const folder = join(root, ".cache/docs");
  const module = join(folder, "examples.ts");

  beforeAll(async () => {
    await llamaDirectory(join(models, "model"));
    await quantizeCheckpoint(join(models, "model"), { output: join(models, "model-nf4") });
    symlinkSync(tiny("llama"), join(models, "tiny-llama"));
    symlinkSync(tiny("bert"), join(models, "tiny-bert"));
    writeFileSync(join(models, "model.gguf"), ggufFile(llamaGgufMetadata, llamaGgufTensors));

    // Names that share a docstring share its example.
    const named = names.flatMap((name) => [[exampleOf(name), name.name] as const]);
    const examples = new Map(named.flatMap(([code, name]) => (code ? [[code, name] as const] : [])));
    const imports = [
      ...Object.keys(api),
      ...names.flatMap(({ name, type }) => (type && !name.includes(".") ? `type ${name}` : [])),
    ];
    mkdirSync(folder, { recursive: true });
    writeFileSync(module, moduleOf(examples, imports));
    writeFileSync(join(folder, "tsconfig.json"), '{ "extends": "../../tsconfig.json", "include": ["examples.ts"] }');
  });
  afterAll(() => rmSync(models, { recursive: true }));

  test("compile", () => {
    const { exitCode, stdout } = Bun.spawnSync([join(root, "node_modules/.bin/tsc"), "-p", folder]);
    expect(stdout.toString()).toBe("");
    expect(exitCode).toBe(0);
  });

  test("run, and give what they say", () => {
    // On the CPU: devices have tests of their own.
    const { stdout, stderr } = Bun.spawnSync([process.execPath, module, models], {
      env: { ...process.env, BNB_DEVICE: "cpu" },
    });
    expect(stderr.toString()).toBe("");
    expect(JSON.parse(stdout.toString())).toEqual([]);
  });
});
