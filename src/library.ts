// Owns the way to the native library: which file it is on this platform, and what to say when it is missing.
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { BnbError } from "./error.ts";

const suffix = process.platform === "darwin" ? "dylib" : "so";

/**
 * The library's path: `BNB_LIBRARY` from the environment if it is set, else the one that `zig build` puts into zig-out.
 *
 * @throws BnbError if there is none, with the command that makes it
 */
export function libraryPath(): string {
  const forced = process.env.BNB_LIBRARY;
  const path = forced ? resolve(forced) : resolve(import.meta.dir, `../zig-out/lib/libbunsandbytes.${suffix}`);
  if (existsSync(path)) return path;
  throw new BnbError(
    forced
      ? `BNB_LIBRARY names ${path}, which does not exist. Unset it, or give the path of libbunsandbytes.${suffix}.`
      : `The native library is missing: ${path}. In a clone, build it with "bun run setup".`,
    "unsupported",
  );
}
