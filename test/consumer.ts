// Owns a folder outside the repository into which the package was installed from its tarball, as a user has it.
import { existsSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
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

/** The environment of a user who has Bun and the system's own programs, and above all no zig. */
export const userEnvironment = { PATH: `${dirname(process.execPath)}:/usr/bin:/bin`, HOME: process.env.HOME ?? "/" };

export class Consumer implements Disposable {
  readonly folder = mkdtempSync(join(tmpdir(), "bnb-consumer-"));
  readonly tarball: string;

  /** Packs and installs, with `install`'s command or else with Bun. */
  constructor(tarball: string, install = [process.execPath, "install"]) {
    this.tarball = tarball;
    const { "@types/bun": types } = require("../package.json").devDependencies;
    const manifest = {
      type: "module",
      dependencies: { bunsandbytes: `file:${tarball}` },
      devDependencies: { "@types/bun": types },
    };
    writeFileSync(join(this.folder, "package.json"), JSON.stringify(manifest));
    // The registry may be one of the user's: what the environment says about it holds.
    const { status, err } = spawn(install, this.folder, {
      ...(process.env as Record<string, string>),
      ...userEnvironment,
    });
    if (status !== 0 || !existsSync(join(this.folder, "node_modules/bunsandbytes")))
      throw new Error(`${install.join(" ")}: ${err}`);
  }

  run(command: string[], env: Record<string, string> = userEnvironment): Ran {
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
export function packed(): string {
  return makePackage(join(root, ".cache/package"), whole ? platforms : [hostPlatform()]);
}
