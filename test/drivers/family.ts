// The command by which the discrete test driver compiles a family: `bun family.ts <family> <fast|check>` prints the
// path of the library.
import { familySource } from "../../scripts/msl/families.ts";
import { compileToFile, type Mode } from "../metal/simulator.ts";

const [family, mode] = process.argv.slice(2);
if (!family || (mode !== "fast" && mode !== "check")) {
  console.error(`usage: family.ts <family> <fast|check>, given ${family} ${mode}`);
  process.exit(2);
}
console.log(compileToFile(familySource(family), { mode: mode satisfies Mode }).path);
