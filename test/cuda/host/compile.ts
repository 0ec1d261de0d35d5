// The command by which the fake libcuda gets a family's kernels for the simulator: `bun compile.ts <family>
// <fast|check>` prints the path of the library, or what is wrong with the text and exits with 1.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { cudaFamilies, families, familySource } from "../../../scripts/msl/families.ts";
import { TranslateError } from "../../../scripts/msl/tokens.ts";
import { compileToFile } from "../../metal/simulator.ts";

/** The text of a family, or of one of the hosts' own tests. */
export function sourceOf(family: string): string {
  if ([...families, ...cudaFamilies].includes(family)) return familySource(family);
  const own = readFileSync(join(import.meta.dir, `../../metal/host/kernels/${family}.metal`), "utf8");
  return `#include <metal_stdlib>\nusing namespace metal;\n#line 1 "${family}.metal"\n${own}`;
}

if (import.meta.main) {
  const [family, mode] = process.argv.slice(2);
  if (!family || (mode !== "fast" && mode !== "check")) {
    console.error(`usage: compile.ts <family> <fast|check>, given ${family} ${mode}`);
    process.exit(2);
  }
  try {
    console.log(compileToFile(sourceOf(family), { mode }).path);
  } catch (error) {
    if (!(error instanceof TranslateError)) throw error;
    console.log(error.message);
    process.exit(1);
  }
}
