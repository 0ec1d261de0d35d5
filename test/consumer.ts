// A folder outside the repository into which the package was installed from its tarball, as a user has it.
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { makePackage } from "../scripts/package.ts";
import { hostPlatform, platforms } from "../scripts/platforms.ts";

const root = resolve(import.meta.dir, "..");

/** Whether the package gets the libraries of all platforms, as what is published does: `bun run test:package`. */
export const whole = process.env.BNB_TEST_PACKAGE === "whole";

/** What ran: the exit status, and the output without colours. */
export interface Ran {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

/** Runs a command with nothing in its environment but what is given. */
export function spawn(command: string[], cwd: string, env: Record<string, string> = {}): Ran {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command, { cwd, env });
  return { status: exitCode, out: stdout.toString(), err: stderr.toString() };
}

/** The folder of a project that depends on the package. */
export class Consumer implements Disposable {
  readonly folder = realpathSync(mkdtempSync(join(tmpdir(), "bnb-consumer-")));
  /** What is in the environment of a user who has Bun and the system's own programs, and above all no zig. */
  readonly environment = { PATH: `${this.folder}/bin:/usr/bin:/bin`, HOME: process.env.HOME ?? "/" };

  /** Packs and installs, with `install`'s command or else with Bun. */
  constructor(tarball: string, install = [process.execPath, "install"]) {
    mkdirSync(join(this.folder, "bin"));
    symlinkSync(process.execPath, join(this.folder, "bin/bun")); // as installed by npm, it has another name
    const manifest = {
      type: "module",
      dependencies: { bunsandbytes: `file:${tarball}` },
      devDependencies: { "@types/bun": packageJson.devDependencies["bun-types"] }, // as `bun init` has it, of one version
    };
    writeFileSync(join(this.folder, "package.json"), JSON.stringify(manifest));
    // Where packages come from may be said in the environment, and so it may where npm is.
    const { status, err } = spawn(install, this.folder, process.env as Record<string, string>);
    if (status !== 0 || !existsSync(join(this.folder, "node_modules/bunsandbytes")))
      throw new Error(`${install.join(" ")}: ${err}`);
  }

  run(command: string[], env: Record<string, string> = this.environment): Ran {
    return spawn(command, this.folder, env);
  }

  /** Does something while the installed packages are out of sight. */
  hidden(act: () => void): void {
    const [here, away] = [join(this.folder, "node_modules"), join(this.folder, "hidden")];
    renameSync(here, away);
    act();
    renameSync(away, here);
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true });
  }
}

/** The package's tarball, in a folder of the repository that is ignored. */
export function packed(): Promise<string> {
  return makePackage(join(root, ".cache/package"), whole ? platforms : [hostPlatform()], whole);
}
