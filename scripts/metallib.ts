// Owns zig-out/lib/bunsandbytes.metallib: the kernels compiled ahead by Apple's compiler, which needs a Mac with Xcode.
//
// The library compiles its kernels itself when they are first used, and takes them from this file where it stands beside
// it. Compiling ahead also shows that Apple's compiler accepts every kernel, on a Mac whose GPU can't run them.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { output, root, run, stop } from "./run.ts";

const folder = `${root}/.cache/metallib`;
const target = `${root}/zig-out/lib/bunsandbytes.metallib`;

/** Each family's text as csrc/gpu/metal_kernels.c hands it to Metal; which there are, csrc/gpu/kernels.c says. */
export function families(): [name: string, text: string][] {
  const embedded = readFileSync(`${root}/csrc/gpu/kernels.c`, "utf8").matchAll(/^#embed <([\w.]+)>/gm);
  const files = [...embedded].map(([, file]) => file!);
  const part = (file: string) => `#line 1 "metal/${file}"\n${readFileSync(`${root}/metal/${file}`, "utf8")}\n`;
  const headers = files.filter((file) => file.endsWith(".h")).map(part);
  return files
    .filter((file) => file.endsWith(".metal"))
    .map((file) => [file, ["#include <metal_stdlib>\nusing namespace metal;\n", ...headers, part(file)].join("")]);
}

if (import.meta.main) {
  if (output(["xcrun", "-sdk", "macosx", "-f", "metal"]) === undefined)
    stop(
      "Apple's Metal compiler is not here: it comes with Xcode. The library works without, and compiles at run time.",
    );
  mkdirSync(folder, { recursive: true });
  const objects = families().map(([name, text]) => {
    const source = `${folder}/${name}`;
    const object = source.replace(/metal$/, "air");
    writeFileSync(source, text);
    const flags = ["-std=metal3.0", "-mmacosx-version-min=13.1", "-fno-fast-math", "-Werror"];
    if (run(["xcrun", "-sdk", "macosx", "metal", ...flags, "-c", source, "-o", object]) !== 0)
      stop(`Apple's Metal compiler refuses metal/${name}: its message is above.`);
    return object;
  });
  if (run(["xcrun", "-sdk", "macosx", "metallib", ...objects, "-o", target]) !== 0)
    stop("The Metal library could not be linked: the message is above.");
  console.log(`Wrote ${target}.`);
}
