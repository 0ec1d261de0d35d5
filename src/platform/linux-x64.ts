// The path of the native library for linux-x64: in the package's folder, or inside a single-file executable.
import path from "#library/linux-x64" with { type: "file" };

export default path;
