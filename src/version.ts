// The version, which the package and the native library share.
import packageJson from "../package.json" with { type: "json" };

/** The library's version, as in package.json. */
export const version: string = packageJson.version;

/** The versions of Bun that it runs on, as package.json's `engines` has them. */
export const bunVersions: string = packageJson.engines.bun;
