// Where the peers come from: packages of PyPI and npm, each installed once into the ignored folder .peers.
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { output, root, say } from "../../scripts/run.ts";

const folder = `${root}/.peers`;
export const inputsFolder = `${folder}/inputs`;
export const modulesFolder = `${folder}/javascript`;
const environment = `${folder}/python`;

/** Python with the peers: `BNB_PYTHON`, which has to have them, or an environment of our own. */
export const python = process.env.BNB_PYTHON || `${environment}/bin/python`;

const pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];

/** What each peer needs beside numpy. */
export const pythonPackages = {
  onnxruntime: ["onnx==1.23.2", "onnxruntime==1.32.0"],
  openvino: ["openvino==2026.4.1"],
  ggml: ["libggml-python==0.20.2.post1", "gguf==0.19.0"],
  torch: ["torch==2.15.0"], // on Linux PyPI has only the build for CUDA, whose CPU code is the same: 5 GB
  bitsandbytes: ["torch==2.15.0", "bitsandbytes==0.50.2"],
  transformers: [
    ...["torch==2.15.0", "transformers==5.24.0", "accelerate==1.15.0", "bitsandbytes==0.50.2"],
    ...["gguf==0.19.0", "peft==0.21.2"],
  ],
  tokenizers: ["gguf==0.19.0", "tokenizers==0.23.3", "mistral-common==1.13.1", "sentencepiece==0.2.3"],
  coreml: ["coremltools==9.0", "scipy==1.17.1"],
  mlx: ["mlx==0.32.4", "mlx-cpu==0.32.4", "mlx-lm==0.32.2"],
} as const;

/** Runs a command; gives the last line of its complaint where it fails. */
function attempt(command: string[], cwd: string = folder): string | undefined {
  try {
    const { exitCode, stderr } = Bun.spawnSync(command, { cwd, stdout: "ignore" });
    if (exitCode === 0) return undefined;
    return stderr.toString().trim().split("\n").at(-1) || `${command[0]} ended with status ${exitCode}`;
  } catch (error) {
    return (error as Error).message; // not on PATH
  }
}

/** Does a step once; a failed one is tried again the next time. Gives the reason where it fails. */
function once(name: string, what: string, step: () => string | undefined): string | undefined {
  const stamp = `${folder}/${name.replaceAll("/", "-")}.installed`;
  if (existsSync(stamp)) return undefined;
  mkdirSync(folder, { recursive: true });
  say(`Installing ${what} into .peers: once …`);
  const reason = step();
  if (reason === undefined) writeFileSync(stamp, "");
  return reason;
}

function makeEnvironment(): string | undefined {
  const found = ["python3", "python"].find((name) => output([name, "-m", "pip", "--version"]) !== undefined);
  if (!found) return "neither python3 nor python with pip is on PATH";
  rmSync(environment, { recursive: true, force: true });
  return attempt([found, "-m", "venv", environment]) ?? attempt([python, ...pip, "numpy"]);
}

/** Installs a peer of PyPI. Gives the reason where it can't be had. */
export function installPython(peer: keyof typeof pythonPackages): string | undefined {
  if (process.env.BNB_PYTHON) return undefined; // its own importing says what it lacks
  const packages = pythonPackages[peer];
  return (
    once("python", "a Python environment with numpy", makeEnvironment) ??
    once(`python-${packages.join("-")}`, packages.join(", "), () => attempt([python, ...pip, ...packages]))
  );
}

/**
 * Installs a package of npm, such as `vega@6.4.0`, with others in the place of those that it has as optional. Gives the
 * reason where it can't be had.
 */
export function installJavaScript(wanted: string, ...instead: string[]): string | undefined {
  return once(`javascript-${wanted}`, wanted, () => {
    mkdirSync(modulesFolder, { recursive: true });
    if (!existsSync(`${modulesFolder}/package.json`)) writeFileSync(`${modulesFolder}/package.json`, "{}");
    const omit = instead.length ? ["--omit=optional"] : [];
    return attempt([process.execPath, "add", "--silent", ...omit, wanted, ...instead], modulesFolder);
  });
}
