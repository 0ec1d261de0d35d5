// Owns the version: of the native library, which is the package's.
import { native, text } from "./native.ts";

/** The library's version, as in package.json. */
export const version: string = text(native.bnb_version());
