// Save a quantised layer in bitsandbytes' own layout, which transformers reads, and load it again.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { checkpoint, QuantizedTensor, quantize4bit, Tensor } from "bunsandbytes";

const folder = mkdtempSync(`${tmpdir()}/bunsandbytes-`);
const path = `${folder}/model.safetensors`;

using w = Tensor.from(new Float32Array(256 * 512).map(Math.random), [256, 512], { dtype: "bfloat16" });
using q = quantize4bit(w, { compressStatistics: true });
await checkpoint.writeSafetensors(path, checkpoint.toStateDict("layer.weight", q));

using model = checkpoint.openCheckpoint(path);
for (const { name, dtype, shape } of model.tensors.values()) console.log(`${name} ${dtype} [${shape.join(", ")}]`);

using loaded = checkpoint.loadWeight(model, "layer.weight");
if (!(loaded instanceof QuantizedTensor)) throw new Error("a dense tensor came back");
console.log(`${loaded}: ${Bun.deepEquals(loaded.codes.read(), q.codes.read()) ? "the same codes" : "other codes"}`);

rmSync(folder, { recursive: true });
