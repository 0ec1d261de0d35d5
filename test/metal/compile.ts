// Owns the command that other programs (the fake Metal) use to compile a Metal source for the simulator.
//
//   bun test/metal/compile.ts <source.metal> [fast|check] [name]
//
// prints the path of the runtime (simulator.h says what it offers) and that of the kernels' library, a line each. If the
// source is not accepted, it prints "file:line: why" to the error output and exits with 1. `name` is the file name for
// places before the first #line.

import { readFileSync } from "node:fs";
import { compileToFile } from "./simulator.ts";
import { runtimeLibrary } from "./toolchain.ts";
import { TranslateError } from "./translate.ts";

const [file, mode = "fast", name] = process.argv.slice(2);
if (!file || (mode !== "fast" && mode !== "check")) {
  console.error("usage: bun test/metal/compile.ts <source.metal> [fast|check] [name]");
  process.exit(2);
}
try {
  const { path } = compileToFile(readFileSync(file, "utf8"), { mode, name: name ?? file });
  console.log(`${runtimeLibrary()}\n${path}`);
} catch (error) {
  if (!(error instanceof TranslateError)) throw error;
  console.error(error.message);
  process.exit(1);
}
