// Names that attack a terminal: in tensors, configs, indices, states, GGUF files, paths and arguments, they are
// given to every command, and nothing that a terminal would obey may come out.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { packState } from "../../src/checkpoint/packed_state.ts";
import { writeSafetensors } from "../../src/checkpoint/writer.ts";
import { f32, ggufFile, llamaGgufMetadata, llamaGgufTensors, weights } from "../models.ts";

/** A title, a colour, one by C1, a line turned around, lines of its own, going back, and what can't be seen. */
export const attacks = [
  ...[
    "\u001b]0;owned\u0007",
    "\u001b[31mred",
    "\u009b31mred",
    "\u202egnp.exe",
    "a\nmodel is sound",
    "\rbunsandbytes: done",
  ],
  ...["\b\b\b", "\u2028", "\u007f", "\ufeff\u200b\u2066", "\u{e0041}"],
];

const obeyed = /[^\n\P{Cc}]|[\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;

export interface TerminalReport {
  runs: number;
  /** Characters that came out. */
  characters: number;
}

const main = join(import.meta.dir, "../../src/cli/main.ts");

/** Gives an attack to every command, in every place. @throws Error naming the command that lets it through */
export async function attackTerminal(folder: string, attack: string, report: TerminalReport): Promise<void> {
  const at = (name: string) => join(folder, name);
  const command = (...args: string[]) => {
    const env = { ...process.env, BNB_DEVICE: "cpu" };
    const child = Bun.spawnSync([process.execPath, main, ...args], {
      env,
      cwd: folder,
      stdout: "pipe",
      stderr: "pipe",
    });
    const out = `${child.stdout}${child.stderr}`;
    report.runs++;
    report.characters += out.length;
    const where = JSON.stringify(args);
    if (obeyed.test(out))
      throw new Error(`${where} prints ${JSON.stringify(obeyed.exec(out)![0])}: ${JSON.stringify(out)}`);
    if (/^model is sound|this is a defect/m.test(out)) throw new Error(`${where} prints ${JSON.stringify(out)}`);
  };
  mkdirSync(folder, { recursive: true });
  await makeModels(at, attack);
  for (const args of [["inspect"], ["inspect", "--all"], ["inspect", "--json"], ["verify"], ["verify", "--json"]])
    for (const name of ["names", "config", "index", "state.safetensors", "broken.safetensors", "model.gguf"])
      command(...args, name);
  command("quantize", "names", "-o", "out");
  command("quantize", "names", "-o", `out${attack}`, "--json");
  command("quantize", "names", "-o", `out${attack}`);
  command("quantize", "names", "-o", "out2", "--skip", attack);
  command("dequantize", "out", "-o", "out3");
  command("inspect", "out", "--error-against", "names");
  command("convert", "model.gguf", "-o", "out4");
  command("convert", "layers.gguf", "-o", "out5");
  command("inspect", attack);
  command(attack);
  command("quantize", "names", "-o", "x", "--quant-type", attack);
  command("bench", "--filter", attack);
  command("bench", "--compare", attack);
}

async function makeModels(at: (name: string) => string, attack: string): Promise<void> {
  const fileName = attack.replaceAll("/", "_");
  const matrix = { dtype: "F32" as const, shape: [64, 64], bytes: weights(64 * 64) };
  for (const folder of ["names", "config", "index"]) mkdirSync(at(folder), { recursive: true });
  const named = [attack, `${attack}0`].map((name) => ({ name: `${name}.weight`, ...matrix }));
  await writeSafetensors(
    at("names/model.safetensors"),
    [{ name: `${attack}.bias`, dtype: "F32", shape: [1], bytes: Float32Array.of(Number.NaN) }, ...named],
    {
      metadata: { [attack]: attack },
    },
  );
  writeFileSync(at("names/config.json"), JSON.stringify({ model_type: attack, [attack]: attack }));
  writeFileSync(at(`names/${fileName}.txt`), attack);
  await writeSafetensors(at("config/model.safetensors"), named);
  writeFileSync(at("config/config.json"), JSON.stringify({ quantization_config: { quant_method: attack } }));
  writeFileSync(
    at("index/model.safetensors.index.json"),
    JSON.stringify({ weight_map: { [attack]: `${fileName}.x` } }),
  );
  const state = packState({ quantType: "nf4", blocksize: 64, dtype: attack as "float32", shape: [8, 8] });
  await writeSafetensors(at("state.safetensors"), [
    { name: attack, dtype: "U8", shape: [32, 1], bytes: new Uint8Array(32) },
    { name: `${attack}.quant_state.bitsandbytes__nf4`, dtype: "U8", shape: [state.length], bytes: state },
  ]);
  const header = Buffer.from(`{"${attack}": ${attack}`);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(at("broken.safetensors"), Buffer.concat([length, header]));
  const tensors = [f32(`${attack}.weight`, [64]), ...llamaGgufTensors];
  writeFileSync(
    at("model.gguf"),
    ggufFile({ ...llamaGgufMetadata, "general.architecture": attack, [attack]: attack }, []),
  );
  writeFileSync(at("layers.gguf"), ggufFile({ ...llamaGgufMetadata, [attack]: attack }, tensors));
}
