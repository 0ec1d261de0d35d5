// Owns bunsandbytes-<fingerprint>.metallib: the kernels compiled ahead by Apple's compiler, which needs a Mac with Xcode.
//
// The library compiles its kernels itself when they are first used, and takes them from this file where it stands beside
// it. Compiling ahead also shows that Apple's compiler accepts every kernel, on a Mac whose GPU can't run them.
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { families, familySource, fingerprint, kernelTexts } from "./msl/families.ts";
import { builtLibrary, hostPlatform } from "./platforms.ts";
import { output, root, run, stop } from "./run.ts";

const folder = `${root}/.cache/metallib`;
const target = `${dirname(builtLibrary(hostPlatform()))}/bunsandbytes-${fingerprint(kernelTexts())}.metallib`;

if (output(["xcrun", "-sdk", "macosx", "-f", "metal"]) === undefined)
  stop("Apple's Metal compiler is not here: it comes with Xcode. The library works without, and compiles at run time.");
mkdirSync(folder, { recursive: true });
const objects = families.map((stem) => {
  const source = `${folder}/${stem}.metal`;
  const object = source.replace(/metal$/, "air");
  writeFileSync(source, familySource(stem));
  const flags = ["-std=metal3.0", "-mmacosx-version-min=13.1", "-fno-fast-math"];
  if (run(["xcrun", "-sdk", "macosx", "metal", ...flags, "-c", source, "-o", object]) !== 0)
    stop(`Apple's Metal compiler refuses metal/${stem}.metal: its message is above.`);
  return object;
});
if (run(["xcrun", "-sdk", "macosx", "metallib", ...objects, "-o", target]) !== 0)
  stop("The Metal library could not be linked: the message is above.");
console.log(`Wrote ${target}.`);
