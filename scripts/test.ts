// `bun run test [file…]`: the suite, less the simulator's own tests on a machine that it can't run on.
import { run, say } from "./run.ts";

const simulates = process.platform === "linux" && process.arch === "x64";
if (!simulates) say("The Metal simulator runs on Linux x64 only: its tests (test/metal) are left out.");
const ignored = simulates ? [] : ["--path-ignore-patterns=test/metal/**"];
// A minute a test, where Bun gives five seconds: a busy machine must not make a test fail.
process.exit(run([process.execPath, "test", "--timeout=60000", ...ignored, ...process.argv.slice(2)]));
