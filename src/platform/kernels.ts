// The path of CUDA's kernels: in the package's folder, or inside a single-file executable.
import path from "#kernels/cuda" with { type: "file" };

export default path;
