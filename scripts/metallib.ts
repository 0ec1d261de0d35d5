// bunsandbytes-<fingerprint>.metallib: the kernels compiled ahead by Apple's compiler, which needs a Mac with
// Xcode.
//
//     bun scripts/metallib.ts [folder]     beside the native library, unless a folder is given
//
// The library compiles its kernels itself when they are first used, and takes them from this file where it stands
// beside it. Compiling ahead also shows whether Apple's compiler accepts every kernel, on a Mac whose GPU can't run
// them: each family gets its line, and one that is refused does not keep the others from being tried.
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { families, familySource, fingerprint, kernelTexts } from "./msl/families.ts";
import { builtLibrary, hostPlatform } from "./platforms.ts";
import { output, root, run, stop } from "./run.ts";

const work = `${root}/.cache/metallib`;
const folder = process.argv[2] ?? dirname(builtLibrary(hostPlatform()));
const target = `${folder}/bunsandbytes-${fingerprint(kernelTexts())}.metallib`;
const metal = ["xcrun", "-sdk", "macosx", "metal"];

// Xcode 26 finds a program of that name before the compiler itself is there, so it is asked for its version.
if (output([...metal, "--version"]) === undefined)
  stop(
    "Apple's Metal compiler is not here: it comes with Xcode, since version 26 as a component of its own, " +
      '"xcodebuild -downloadComponent MetalToolchain". The library works without, and compiles at run time.',
  );
for (const made of [work, folder]) mkdirSync(made, { recursive: true });
const compiled = families.toSorted().map((stem) => {
  const source = `${work}/${stem}.metal`;
  const object = `${work}/${stem}.air`;
  writeFileSync(source, familySource(stem));
  // As pipelines.c asks for it: one flag makes the arithmetic safe and the functions precise.
  const flags = ["-std=metal3.0", "-mmacosx-version-min=13.1", "-fno-fast-math"];
  const accepted = run([...metal, ...flags, "-c", source, "-o", object]) === 0;
  console.log(`${accepted ? "accepted" : "REFUSED "}  metal/${stem}.metal`);
  return { stem, object, accepted };
});
const refused = compiled.filter(({ accepted }) => !accepted).map(({ stem }) => `metal/${stem}.metal`);
if (refused.length > 0) stop(`Apple's Metal compiler refuses ${refused.join(", ")}: its messages are above.`);
if (run(["xcrun", "-sdk", "macosx", "metallib", ...compiled.map(({ object }) => object), "-o", target]) !== 0)
  stop("The Metal library could not be linked: the message is above.");
console.log(`Wrote ${target}.`);
