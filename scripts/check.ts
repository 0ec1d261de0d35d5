// The checks that read the source without running it: types, lint, format, habits, the C compiler's warnings,
// and the package's size.
import { buildCommand, platforms } from "./platforms.ts";
import { root, run, stop } from "./run.ts";
import { findZig } from "./zig.ts";

const bin = `${root}/node_modules/.bin`;

const checks: [name: string, command: string[]][] = [
  ["types", [`${bin}/tsc`]],
  ["lint and format", [`${bin}/biome`, "ci", "--error-on-warnings"]],
  ["format of C", [process.execPath, "scripts/clang_format.ts"]],
  ["habits", [process.execPath, "scripts/tidy.ts"]],
  ["zig format", [findZig(), "fmt", "--check", "build.zig"]],
  // build.zig compiles every C file with -Wall -Wextra -Wpedantic -Werror.
  ...platforms.map((platform): [string, string[]] => [`C warnings, ${platform.name}`, buildCommand(platform)]),
  ["size of the package", [process.execPath, "scripts/package.ts", "--budget"]], // of what was built above
];

const failed = checks.filter(([name, command]) => {
  console.log(`── ${name}`);
  return run(command) !== 0;
});
if (failed.length) stop(`Not clean: ${failed.map(([name]) => name).join(", ")}.`);
console.log("All clean.");
