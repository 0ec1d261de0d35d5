// Owns the command by which the fake Metal compiles a kernel's text: `bun compile.ts <file> <fast|check>` prints the
// path of the library, or what is wrong with the text and exits with 1.

import { TranslateError } from "../../scripts/msl/tokens.ts";
import { compileToFile } from "./simulator.ts";

const [file, mode] = process.argv.slice(2);
if (!file || (mode !== "fast" && mode !== "check")) {
  console.error(`usage: compile.ts <file> <fast|check>, given ${file} ${mode}`);
  process.exit(2);
}
try {
  const options = { mode, linted: true } as const;
  console.log(compileToFile(await Bun.file(file).text(), options).path);
} catch (error) {
  if (!(error instanceof TranslateError)) throw error;
  console.log(error.message);
  process.exit(1);
}
