// Tests that the package works where it is installed: outside the repository, with no zig, by Bun and by npm.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { budget, filesOf, kernelsBeyond } from "../scripts/budget.ts";
import { hostPlatform, platforms } from "../scripts/platforms.ts";
import { inspectExecutable } from "../src/executable.ts";
import { findLibrary } from "../src/library.ts";
import { Consumer, packed, whole } from "./consumer.ts";

const root = resolve(import.meta.dir, "..");
const readme = await Bun.file(`${root}/README.md`).text();
const example = /```ts\n([\s\S]*?)```/.exec(readme)![1]!;
const ownPlatforms = whole ? platforms : [hostPlatform()];

let tarball: string;
beforeAll(async () => {
  tarball = await packed();
}, 300_000);

test("its size is below 5 MB, with nothing in it but what runs and what explains", async () => {
  expect(Bun.file(tarball).size).toBeLessThan(budget.tarball * 1e6);
  const { stdout } = Bun.spawnSync(["tar", "tzf", tarball]);
  const files = stdout.toString().trim().split("\n").sort();
  const code = files.filter((file) => /^package\/src\/[\w/-]+(\.js|\.d\.ts|\.json|\.node\.c?js)$/.test(file));
  const libraries = ownPlatforms.map(({ name, file }) => `package/lib/${name}/${file}`);
  const kernels = "package/lib/kernels.ptx.zst"; // CUDA's: whole in what is published, else as setup was asked for them
  if (whole) expect(kernelsBeyond(filesOf(dirname(tarball)))).toEqual([]);
  const texts = ["CHANGELOG.md", "LICENSE", "README.md", "package.json"].map((file) => `package/${file}`);
  expect(files).toEqual([...code, kernels, ...libraries, ...texts].sort());
  expect(code).toContain("package/src/index.js");
});

// On demand, since attw is slow: the types are checked below in any case.
test.skipIf(!whole).each([
  ["publint", ["--strict"]],
  ["attw", ["--profile", "esm-only", "--no-color"]], // the package is for Bun, which has one way to resolve
])("%s finds nothing wrong with it", (linter, options) => {
  const { exitCode, stdout } = Bun.spawnSync([`${root}/node_modules/.bin/${linter}`, tarball, ...options]);
  expect({ exitCode, said: stdout.toString() }).toMatchObject({ exitCode: 0 });
});

const npm = whole ? Bun.which("npm") : null;
if (!npm) console.log("  installed by Bun alone: by npm too in bun run test:package, where npm is");

describe.each([["bun", [process.execPath, "install"]], ...(npm ? [["npm", [npm, "install"]] as const] : [])] as const)(
  "installed by %s",
  (_, install) => {
    let consumer: Consumer;
    beforeAll(() => {
      consumer = new Consumer(tarball, [...install]);
      writeFileSync(join(consumer.folder, "example.ts"), example);
    }, 300_000);
    afterAll(() => consumer[Symbol.dispose]());

    test("the README's example runs, without zig", () => {
      expect(Bun.which("zig", { PATH: consumer.environment.PATH })).toBeNull();
      const { status, out, err } = consumer.run([process.execPath, "example.ts"]);
      expect({ status, err }).toEqual({ status: 0, err: "" });
      expect(out).toContain("Tensor(float32 [1, 4096] on ");
    });

    test("the command line runs, and uses the package's own library", () => {
      const doctor = consumer.run(["node_modules/.bin/bunsandbytes", "doctor", "--json"]);
      expect(doctor.err).toBe("");
      const { library, problems } = JSON.parse(doctor.out);
      const { name, file } = hostPlatform();
      expect(library.origin).toBe("package");
      expect(library.path).toEndWith(`/node_modules/bunsandbytes/lib/${name}/${file}`);
      expect(library.path).toStartWith(consumer.folder);
      expect(problems).toEqual([]);
    });

    test("the README's example has its types, every declaration is sound, and a wrong argument is an error", () => {
      const files = { "right.ts": example, "wrong.ts": example.replace('"nf4"', '"nf5"') };
      for (const [name, text] of Object.entries(files)) writeFileSync(join(consumer.folder, name), text);
      const options = { strict: true, module: "nodenext", target: "esnext", noEmit: true, skipLibCheck: false };
      const compilerOptions = { ...options, types: ["bun"], exactOptionalPropertyTypes: true };
      writeFileSync(
        join(consumer.folder, "tsconfig.json"),
        JSON.stringify({ compilerOptions, files: Object.keys(files) }),
      );
      const { out } = consumer.run([process.execPath, `${root}/node_modules/typescript/bin/tsc`, "--pretty", "false"]);
      expect(out).toMatch(/^wrong\.ts\(\d+,\d+\): error TS2322: Type '"nf5"' is not assignable .*\n$/);
    });

    test("what is not exported can't be imported", () => {
      expect(consumer.run([process.execPath, "-e", 'import "bunsandbytes/src/native.js"']).err).toContain(
        "Cannot find",
      );
    });

    const node = Bun.which("node");
    test.skipIf(!node)("Node gets a sentence, whatever it asks for and however", () => {
      const programs = [
        'import { Tensor, nn, version } from "bunsandbytes";',
        'import * as all from "bunsandbytes";',
        'await import("bunsandbytes");',
        'import { ratio } from "bunsandbytes/bench";',
        'import { createRequire } from "node:module"; createRequire(import.meta.url)("bunsandbytes");',
      ];
      for (const program of programs) {
        writeFileSync(join(consumer.folder, "node.mjs"), program);
        const { status, err } = consumer.run([node!, "node.mjs"]);
        expect([program, status, /Error: (.+)\n/.exec(err)?.[1]]).toEqual([
          program,
          1,
          expect.stringContaining("bunsandbytes runs in Bun"),
        ]);
      }
    });

    test("every library is for its platform, and whole", () => {
      const libraries = ownPlatforms.map(({ name, file }) =>
        inspectExecutable(join(consumer.folder, "node_modules/bunsandbytes/lib", name, file)),
      );
      expect(libraries.map(({ platform }) => platform as string)).toEqual(ownPlatforms.map(({ name }) => name));
      for (const { bytes, bytesPromised } of libraries) expect(bytes).toBeGreaterThanOrEqual(bytesPromised);
    });

    // Told which platform it is for, since the package here may have the library of this one alone.
    const here = [`process.platform="${process.platform}"`, `process.arch="${process.arch}"`];
    test.each([[""], ["--format=cjs"], ["--bytecode"]])(
      "a bundle %s finds the library beside it, from any folder",
      (flag) => {
        const small = 'import { Tensor } from "bunsandbytes"; console.log(Tensor.from([1, 2]).read());';
        writeFileSync(join(consumer.folder, "small.ts"), small);
        const flags = [...here.flatMap((constant) => ["--define", constant]), ...(flag ? [flag] : [])];
        const build = [process.execPath, "build", "--target=bun", "small.ts", "--outdir", "out", ...flags];
        const bundle = consumer.run(build);
        expect(bundle).toMatchObject({ status: 0 });
        consumer.hidden(() => {
          const program = `process.chdir("/"); await import("${consumer.folder}/out/small.js")`;
          const { status, out, err } = consumer.run([process.execPath, "-e", program]);
          expect({ status, err, out: out.trim() }).toEqual({ status: 0, err: "", out: "Float32Array(2) [ 1, 2 ]" });
        });
        rmSync(join(consumer.folder, "out"), { recursive: true });
      },
    );

    test("without its library the package says what to do", () => {
      rmSync(join(consumer.folder, "node_modules/bunsandbytes/lib"), { recursive: true });
      const { status, err } = consumer.run([process.execPath, "-e", 'import "bunsandbytes"']);
      expect(status).toBe(1);
      expect(err).toContain("is missing");
      expect(err).toContain("install the package again");
    });
  },
);

test("here, the library is the one of zig-out", () => {
  if (process.env.BNB_LIBRARY) return expect(findLibrary().origin).toBe("BNB_LIBRARY");
  const { name, file } = hostPlatform();
  expect(findLibrary()).toEqual({ path: `${root}/zig-out/lib/${name}/${file}`, origin: "package" });
});
