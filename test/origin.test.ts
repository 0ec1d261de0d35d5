// The promises of the document that this project began with: docs/origin.md names what holds each, and its programs run
// here.
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { deviceNames } from "../src/device.ts";
import { Device, devices, nn, Tensor } from "../src/index.ts";

const root = resolve(import.meta.dir, "..");
const page = readFileSync(join(root, "docs/origin.md"), "utf8");

/** The rows of its tables, without their heads. */
const rows = page
  .split("\n")
  .filter((line) => /^\| (?!promise|-)/.test(line))
  .map(
    (line) =>
      line
        .split("|")
        .slice(1, -1)
        .map((cell) => cell.trim()) as [string, string, string],
  );

/** Sources of tests by the name that the tables give them. */
const sources = new Map(
  [...new Bun.Glob("test/**/*.test.ts").scanSync(root)].map((path) => [
    /([^/]+)\.test\.ts$/.exec(path)![1]!,
    readFileSync(join(root, path), "utf8"),
  ]),
);

/** Tests that a cell names, and that there are none of. */
const missing = (cell: string) =>
  [...cell.matchAll(/(\w+): "([^"]+)"/g)]
    .filter(([, stem, title]) => !new RegExp(`"[^"\n]*${RegExp.escape(title!)}`).test(sources.get(stem!) ?? ""))
    .map(([named]) => named);

describe("docs/origin.md", () => {
  test("has something to hold, and a way to fail", () => {
    expect(rows.length).toBeGreaterThan(25);
    expect(missing('tensor: "nothing is called so", nowhere: "docs"')).toHaveLength(2);
  });

  test.each(rows)("%s: %s", (_, kind, where) => {
    expect(["kept", "measured", "answered"]).toContain(kind);
    // Markdown.test.ts follows the links.
    expect(where).toMatch(kind === "kept" ? /^\w+: "/ : /\]\([\w./]+(#[\w-]+)?\)/);
    expect(missing(where)).toEqual([]);
  });
});

test("its tools are the ones that the document names", async () => {
  const { devDependencies, dependencies } = await Bun.file(join(root, "package.json")).json();
  expect(devDependencies["bun-types"]).toBe(devDependencies.bun);
  expect(dependencies.tinybench).toBeString();
  expect(JSON.parse(readFileSync(join(root, "tsconfig.json"), "utf8")).compilerOptions.types).toEqual(["bun-types"]);
  const uses = (name: string, folder: string) =>
    [...new Bun.Glob(`${folder}/**/*.ts`).scanSync(root)].filter((path) =>
      readFileSync(join(root, path), "utf8").includes(`from "${name}"`),
    );
  expect(uses("tinybench", "src/bench").length).toBeGreaterThan(0);
  expect(uses("bun:test", "test").length).toBeGreaterThan(100);
  for (const bench of ["scaling", "run"]) // timed by the one file that has tinybench
    expect(readFileSync(join(root, `bench/${bench}.ts`), "utf8")).toMatch(/bench\/measure\.ts|cli\/bench\.ts/);
  expect(readFileSync(join(root, "build.zig"), "utf8")).toContain("csrc/sources.json");
});

test("mps is torch's word for metal, wherever a device is named", () => {
  const opened = (name: "mps" | "metal", open: (name: "mps" | "metal") => unknown) => {
    try {
      return open(name);
    } catch (error) {
      return String(error);
    }
  };
  expect(opened("mps", Device.open)).toEqual(opened("metal", Device.open));
  const deviceOf = (device: "mps" | "metal") => Tensor.zeros([1], { device }).device;
  expect(opened("mps", deviceOf)).toEqual(opened("metal", deviceOf));
  const current = (BNB_DEVICE: string) => {
    const program = 'import { currentDevice } from "./src/index.ts"; console.log(String(currentDevice()))';
    const { stdout, stderr } = Bun.spawnSync([process.execPath, "-e", program], {
      cwd: root,
      env: { ...process.env, BNB_DEVICE },
    });
    return `${stdout}${/^BnbError.*|^error.*/m.exec(String(stderr))?.[0] ?? ""}`;
  };
  expect(current("mps")).toMatch(/metal/i);
  expect(current("mps")).toBe(current("metal"));
});

test("docs/devices.md lists every name of a device", () => {
  const text = readFileSync(join(root, "docs/devices.md"), "utf8");
  const named = [...text.matchAll(/^\| `"([\w:]+)"`/gm)].map(([, name]) => name!);
  expect(named).toEqual([...deviceNames, "cuda:1"]);
});

test("the check of the backend in three lines tells of every device", () => {
  const text = readFileSync(join(root, "docs/bitsandbytes.md"), "utf8");
  const program = /## The origin document\n[\s\S]*?```ts\n([\s\S]*?)```/.exec(text)![1]!;
  expect(program.trim().split("\n")).toHaveLength(3);
  const { stdout } = Bun.spawnSync([process.execPath, "-e", program], { cwd: root });
  for (const { kind } of devices()) expect(stdout.toString()).toContain(`${kind}: `);
});

test("a program that runs a failed launch again on the CPU itself is as docs/reliability.md has it", () => {
  const text = readFileSync(join(root, "docs/reliability.md"), "utf8");
  const program = /### A launch that failed[\s\S]*?```ts\n([\s\S]*?)```/.exec(text)![1]!;
  const run = (code: string) => Bun.spawnSync([process.execPath, "-e", code], { cwd: root });
  expect(run(program).stdout.toString()).toBe("32\n");
  const failing = program.replace(
    "using w",
    'if (device === "auto") throw new BnbError("gone", "device_lost");\n  using w',
  );
  expect([run(failing).stdout.toString(), run(failing).stderr.toString()]).toEqual([
    "32\n",
    "Again on the CPU: gone\n",
  ]);
});

describe("a layer is made by its sizes, moved, and computes", () => {
  const here = devices().filter(({ available }) => available);
  test.each(here.map(({ kind }) => kind))("on %s", (kind) => {
    using layer = nn.Linear8bitLt.init(768, 768).to(Device.open(kind));
    using x = Tensor.from(new Float32Array(2 * 768).fill(1), [2, 768], { device: kind });
    using y = layer.forward(x);
    expect(y.shape).toEqual([2, 768]);
    expect(y.device.kind).toBe(kind);
    expect(y.read().some((value) => value !== 0)).toBe(true);
    expect(y.read().every(Number.isFinite)).toBe(true);
  });
});
