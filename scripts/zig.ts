// Where zig comes from: the pinned version on PATH, else the `ziglang` wheel in an ignored folder.
import { output } from "./run.ts";
import { fromWheel } from "./wheel.ts";

/** The version that the library is built with. Zig changes between versions, so another one will not do. */
export const zigVersion = "0.17.1";

/** The path of zig {@link zigVersion}, installed if need be. Stops the script with a sentence where it can't be had. */
export function findZig(): string {
  const onPath = Bun.which("zig");
  if (onPath && output([onPath, "version"]) === zigVersion) return onPath;
  return fromWheel({
    name: "ziglang",
    version: zigVersion,
    what: "zig, the C compiler, about 100 MB",
    hashes: [
      "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",
      "b7c5f02fccd40f89b999ee16a1f5ddced56e6182370f8affe494bcf8a28cf07e",
      "09953b6af7f64168b915180a42774f520f92d86ef6331b28e33915c7e1f0bb23",
      "4e0b4b9c02b8d0d220e9948010f860b62ff11d96abb39762eca5fa2ef3f7bc97",
    ],
    program: "ziglang/zig",
  });
}
