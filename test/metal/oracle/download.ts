// What the oracle tests fetch from package registries, kept in .cache/oracle/.
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

const cache = resolve(import.meta.dir, "../../../.cache/oracle");

function run(command: string[], cwd: string): void {
  const { exitCode, stderr } = Bun.spawnSync(command, { cwd, stdout: "pipe", stderr: "pipe" });
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stderr}`);
}

/** The unpacked folder of a wheel for a platform that need not be this one. */
export function wheel(name: string, version: string, platform: string): string {
  const folder = join(cache, `${name}-${version}`);
  if (existsSync(folder)) return folder;
  const download = join(cache, "wheels");
  const only = ["--no-deps", "--only-binary=:all:", `--platform=${platform}`, `--dest=${download}`];
  run(["python3", "-m", "pip", "download", "--quiet", ...only, `${name}==${version}`], ".");
  const [file] = new Bun.Glob(`${name.replaceAll("-", "_")}-${version}-*.whl`).scanSync(download);
  if (!file) throw new Error(`pip downloaded no wheel of ${name} ${version}`);
  run(["python3", "-m", "zipfile", "-e", join(download, file), folder], ".");
  return folder;
}

/** The source folders of crates, by name. Needs cargo. */
export function crates(versions: Record<string, string>): Record<string, string> {
  const names = Object.keys(versions);
  const folder = join(cache, `crates-${Bun.hash(JSON.stringify(versions)).toString(16)}`);
  const vendor = join(folder, "vendor");
  if (!existsSync(vendor)) {
    mkdirSync(join(folder, "src"), { recursive: true });
    const dependencies = names.map((name) => `${name} = "=${versions[name]}"\n`).join("");
    writeFileSync(join(folder, "src/lib.rs"), "");
    writeFileSync(
      join(folder, "Cargo.toml"),
      `[package]\nname = "oracle"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\n${dependencies}`,
    );
    run(["cargo", "vendor", "--quiet", "--versioned-dirs", "vendor"], folder);
  }
  return Object.fromEntries(names.map((name) => [name, join(vendor, `${name}-${versions[name]}`)]));
}
