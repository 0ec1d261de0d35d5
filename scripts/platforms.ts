// Which platforms the native library is built for, and where a build of it lies. Imports no packages: setup needs
// it.
import { root } from "./run.ts";
import { findZig } from "./zig.ts";

/** A platform under its name in JavaScript, `process.platform-process.arch`, and what zig calls it. */
export interface Platform {
  readonly name: string;
  /** With the oldest system that the library runs on. */
  readonly target: string;
  readonly file: string;
}

export const platforms: readonly Platform[] = [
  { name: "darwin-arm64", target: "aarch64-macos.13.1", file: "libbunsandbytes.dylib" },
  { name: "darwin-x64", target: "x86_64-macos.13.1", file: "libbunsandbytes.dylib" },
  { name: "linux-arm64", target: "aarch64-linux-gnu.2.28", file: "libbunsandbytes.so" },
  { name: "linux-x64", target: "x86_64-linux-gnu.2.28", file: "libbunsandbytes.so" },
];

export function platformNamed(name: string): Platform {
  const platform = platforms.find((platform) => platform.name === name);
  if (platform) return platform;
  throw new Error(`The library is not built for ${name}, only for ${platforms.map(({ name }) => name).join(", ")}.`);
}

/** The platform that this process runs on. */
export function hostPlatform(): Platform {
  return platformNamed(`${process.platform}-${process.arch}`);
}

/** The command that builds a platform's library as it ships. */
export function buildCommand({ target }: Platform): string[] {
  return [findZig(), "build", "--release=fast", `-Dtarget=${target}`];
}

/** Where a platform's library lies, by whichever way it was built. */
export function builtLibrary({ name, file }: Platform): string {
  return `${root}/zig-out/lib/${name}/${file}`;
}
