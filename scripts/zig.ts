// Where zig comes from: the pinned version on PATH, else the `ziglang` wheel in an ignored folder.
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { output, root, run, say, stop } from "./run.ts";

/** The version that the library is built with. Zig changes between versions, so another one will not do. */
export const zigVersion = "0.17.1";

/** SHA-256 of its wheels, for Linux x64 and arm64, and macOS arm64 and x64: pip takes no other file. */
const wheelHashes = [
  "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",
  "b7c5f02fccd40f89b999ee16a1f5ddced56e6182370f8affe494bcf8a28cf07e",
  "09953b6af7f64168b915180a42774f520f92d86ef6331b28e33915c7e1f0bb23",
  "4e0b4b9c02b8d0d220e9948010f860b62ff11d96abb39762eca5fa2ef3f7bc97",
];

const wheelFolder = `${root}/.tools/ziglang-${zigVersion}`;

/** The path of zig {@link zigVersion}, installed if need be. Stops the script with a sentence where it can't be had. */
export function findZig(): string {
  const onPath = Bun.which("zig");
  if (onPath && output([onPath, "version"]) === zigVersion) return onPath;
  const installed = `${wheelFolder}/ziglang/zig`;
  if (!existsSync(installed)) install();
  return installed;
}

function install(): void {
  const python = ["python3", "python"].find((name) => output([name, "-m", "pip", "--version"]) !== undefined);
  const advice = `Put zig ${zigVersion} on PATH, or install Python 3 with pip, and run this again.`;
  if (!python)
    stop(`zig ${zigVersion} is needed to build the native library, and neither it nor Python's pip is here. ${advice}`);

  say(`Downloading zig ${zigVersion}, the C compiler (the ziglang wheel, about 100 MB), into .tools: once …`);
  const partial = `${wheelFolder}.partial`;
  run(["rm", "-rf", partial]);
  mkdirSync(partial, { recursive: true });
  const requirements = `${partial}/requirements.txt`;
  writeFileSync(
    requirements,
    `ziglang==${zigVersion} ${wheelHashes.map((hash) => `--hash=sha256:${hash}`).join(" ")}\n`,
  );
  const pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location"];
  const status = run([...pip, "--require-hashes", "--only-binary=:all:", "--target", partial, "-r", requirements], {
    PIP_ROOT_USER_ACTION: "ignore",
  });
  if (status !== 0) stop(`pip could not install ziglang ${zigVersion}: its message is above. ${advice}`);
  run(["mv", partial, wheelFolder]); // only a whole one gets the name that is looked for
}
