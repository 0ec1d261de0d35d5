// Owns the checks that read the source without running it: types, lint, format, and the C compiler's warnings.
import { buildCommand, platforms } from "./platforms.ts";
import { root, run, stop } from "./run.ts";
import { findZig } from "./zig.ts";

const bin = `${root}/node_modules/.bin`;

const checks: [name: string, command: string[]][] = [
  ["types", [`${bin}/tsc`]],
  ["lint and format", [`${bin}/biome`, "ci", "--error-on-warnings"]],
  ["zig format", [findZig(), "fmt", "--check", "build.zig"]],
  // build.zig compiles every C file with -Wall -Wextra -Wpedantic -Werror.
  ...platforms.map((platform): [string, string[]] => [`C warnings, ${platform.name}`, buildCommand(platform)]),
];

const failed = checks.filter(([name, command]) => {
  console.log(`── ${name}`);
  return run(command) !== 0;
});
if (failed.length) stop(`Not clean: ${failed.map(([name]) => name).join(", ")}.`);
console.log("All clean.");
