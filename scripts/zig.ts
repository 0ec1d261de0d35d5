// Owns where zig comes from: the pinned version on PATH, else the `ziglang` wheel in an ignored folder.
import { existsSync } from "node:fs";
import { output, root, run, say, stop } from "./run.ts";

/** The version that the library is built with. Zig changes between versions, so another one will not do. */
export const zigVersion = "0.17.1";

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

  say(`Installing zig ${zigVersion} (the ziglang wheel) into .tools: once, about 100 MB …`);
  const partial = `${wheelFolder}.partial`;
  run(["rm", "-rf", partial]);
  const pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location"];
  const status = run([...pip, "--target", partial, `ziglang==${zigVersion}`], { PIP_ROOT_USER_ACTION: "ignore" });
  if (status !== 0) stop(`pip could not install ziglang ${zigVersion}: its message is above. ${advice}`);
  run(["mv", partial, wheelFolder]); // only a whole one gets the name that is looked for
}
