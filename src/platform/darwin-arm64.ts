// The path of the native library for darwin-arm64: in the package's folder, or inside a single-file executable.
import path from "#library/darwin-arm64" with { type: "file" };

export default path;
