// Programs that come as a Python wheel: installed once into an ignored folder, and only the file whose hash is known.
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { output, root, run, say, stop } from "./run.ts";

/** A pinned program. */
export interface Wheel {
  /** As PyPI has it, such as `ziglang`. */
  readonly name: string;
  readonly version: string;
  /** What it is, and how large, for people. */
  readonly what: string;
  /** SHA-256 of the wheels for Linux x64 and arm64, and macOS arm64 and x64: pip takes no other file. */
  readonly hashes: readonly string[];
  /** Where the program lies in the folder that pip makes. */
  readonly program: string;
}

/** The path of a wheel's program, installed if need be. Stops the script with a sentence where it can't be had. */
export function fromWheel(wheel: Wheel): string {
  const folder = `${root}/.tools/${wheel.name}-${wheel.version}`;
  if (!existsSync(`${folder}/${wheel.program}`)) install(wheel, folder);
  return `${folder}/${wheel.program}`;
}

function install({ name, version, what, hashes }: Wheel, folder: string): void {
  const python = ["python3", "python"].find((name) => output([name, "-m", "pip", "--version"]) !== undefined);
  if (!python)
    stop(`${what} ${version} is needed, and Python's pip, which would install it, is not here: install Python 3.`);
  say(`Downloading ${what} (the ${name} wheel, ${version}) into .tools: once …`);
  const partial = `${folder}.partial`;
  run(["rm", "-rf", partial]);
  mkdirSync(partial, { recursive: true });
  const requirements = `${partial}/requirements.txt`;
  writeFileSync(requirements, `${name}==${version} ${hashes.map((hash) => `--hash=sha256:${hash}`).join(" ")}\n`);
  const pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location"];
  const options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--target", partial, "-r", requirements];
  const status = run([...pip, ...options], { PIP_ROOT_USER_ACTION: "ignore" });
  if (status !== 0) stop(`pip could not install ${name} ${version}: its message is above. Run this again when it can.`);
  run(["mv", partial, folder]); // only a whole one gets the name that is looked for
}
