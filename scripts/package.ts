// `bun run package`: the npm package as a tarball, with JavaScript, its types, and the native library of every
// platform.
import { copyFileSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { holdBudget } from "./budget.ts";
import { buildCommand, builtLibrary, type Platform, platforms } from "./platforms.ts";
import { kernelsFile, writeKernels } from "./ptx.ts";
import { root, run, say, stop } from "./run.ts";

/** An export of the clone's as the package has it. Bun is asked for first, for it takes what is for Node too. */
function built([name, path]: [string, string]) {
  const stem = path.replace(/\.ts$/, "");
  const elsewhere = { import: `${stem}.node.js`, require: `${stem}.node.cjs` };
  return [name, { types: `${stem}.d.ts`, bun: `${stem}.js`, node: elsewhere, default: `${stem}.js` }] as const;
}

/** What Node gets in the place of an export: a sentence, and every name, without which it would complain of those. */
async function writeForNode(staging: string, path: string): Promise<void> {
  const stem = join(staging, path.replace(/\.ts$/, ""));
  const sentence =
    "bunsandbytes runs in Bun, whose FFI it calls its native library by, and this is another runtime. " +
    "Install Bun (https://bun.sh) and run the program with it: bun program.js";
  const names = Object.keys(await import(join(root, path)));
  const refusal = `throw new Error(${JSON.stringify(sentence)});\n`;
  writeFileSync(
    `${stem}.node.js`,
    `export const ${names.map((name) => `${name} = undefined`).join(", ")};\n${refusal}`,
  );
  writeFileSync(`${stem}.node.cjs`, refusal);
}

/**
 * The tarball's package.json: the clone's, with what tsc wrote in the place of the sources, and the libraries beside
 * it.
 */
function manifest() {
  const { scripts: _scripts, devDependencies: _devDependencies, imports, ...published } = packageJson;
  const inPackage = (path: string) => path.replace("./zig-out/", "./");
  return {
    ...published,
    exports: {
      ...Object.fromEntries(Object.entries(packageJson.exports).map(built)),
      "./package.json": "./package.json",
    },
    imports: Object.fromEntries(Object.entries(imports).map(([name, path]) => [name, inPackage(path)])),
    bin: { bunsandbytes: "./src/cli/main.js" },
  };
}

/**
 * Writes the package as `<folder>/bunsandbytes-<version>.tgz`, and gives that path.
 *
 * @param included the platforms whose libraries it gets: what is published has them all, a test may need the host's
 * only
 * @param build whether to build them, and CUDA's kernels, as they ship first, or to take what setup has built
 */
export async function makePackage(
  folder: string,
  included: readonly Platform[] = platforms,
  build = true,
): Promise<string> {
  const staging = join(folder, "package");
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(staging, { recursive: true });
  for (const platform of included) {
    if (build && run(buildCommand(platform)) !== 0) stop(`The library for ${platform.name} could not be built.`);
    const library = join(staging, "lib", platform.name, platform.file);
    mkdirSync(dirname(library), { recursive: true });
    copyFileSync(builtLibrary(platform), library);
  }
  const kernels = join(staging, relative(join(root, "zig-out"), kernelsFile));
  if (build) await writeKernels(kernels, 19);
  else copyFileSync(kernelsFile, kernels);
  if (run([`${root}/node_modules/.bin/tsc`, "-p", "tsconfig.package.json", "--outDir", staging]) !== 0)
    stop("The sources do not compile: the messages are above.");
  for (const path of Object.values(packageJson.exports)) await writeForNode(staging, path);
  for (const file of ["README.md", "CHANGELOG.md", "LICENSE"]) copyFileSync(`${root}/${file}`, join(staging, file));
  writeFileSync(join(staging, "package.json"), `${JSON.stringify(manifest(), null, 2)}\n`);
  const pack = [process.execPath, "pm", "pack", "--quiet", "--ignore-scripts", "--destination", folder];
  if (run(pack, {}, staging) !== 0) stop("The package could not be packed: the message is above.");
  return join(folder, `${packageJson.name}-${packageJson.version}.tgz`);
}

if (import.meta.main && process.argv.includes("--budget")) {
  const folder = `${root}/.cache/budget`;
  const tarball = await makePackage(folder, platforms, false); // of the libraries as `bun run check` has built them
  holdBudget(`${folder}/package`, tarball, false);
} else if (import.meta.main) {
  say(`Building the library for ${platforms.map(({ name }) => name).join(", ")}: two minutes the first time …`);
  const tarball = await makePackage(`${root}/dist`);
  holdBudget(`${root}/dist/package`, tarball, true);
  say(`Wrote ${tarball}, ${(Bun.file(tarball).size / 1e6).toFixed(2)} MB. Publish it with "npm publish ${tarball}".`);
}
