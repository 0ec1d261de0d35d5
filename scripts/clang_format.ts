// The format of C and of kernels: `bun scripts/clang_format.ts` says which files differ from .clang-format, and
// rewrites them with --write.
import { output, root, run, stop } from "./run.ts";
import { fromWheel } from "./wheel.ts";

const clangFormat = fromWheel({
  name: "clang-format",
  version: "23.1.5",
  what: "clang-format, 2 MB",
  hashes: [
    "d97ce49911ba8c89ef3f3c0735a9c7818e4780ab4812c67d1c5fcd829d16ae52",
    "e8037e12eae19a9779e01ca6719b8d7f6a939ade8869b061912551c9748a27ad",
    "3fb740335d939dd02252cd5075050fc8858466b16cf9c1efa2f52da3baa816a7",
    "32ec7498f9f1672dff2e65624cf317a1fd64e48a4f582d6c172d440c511bff00",
  ],
  program: "clang_format/data/bin/clang-format",
});

// Not the list of `#embed`, whose names it would put a space into, nor what stands in for Apple's compiler.
const files = output(["git", "ls-files", "csrc/*.[ch]", "metal/*.h", "test/*.[ch]"])!
  .split("\n")
  .filter((file) => !/^csrc\/gpu\/kernels\.c$|^test\/metal\/(estimate|planted|oracle)\//.test(file));
const how = process.argv.includes("--write") ? ["-i"] : ["--dry-run", "--Werror"];
if (run([clangFormat, ...how, ...files], {}, root) !== 0)
  stop("Not formatted: the files above. `bun run format` does it.");
