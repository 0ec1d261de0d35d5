// The path of the native library for linux-arm64: in the package's folder, or inside a single-file executable.
import path from "#library/linux-arm64" with { type: "file" };

export default path;
