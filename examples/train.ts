// Trains a LoRA over two NF4 layers of all-MiniLM-L6-v2, with 32-bit Adam and with Adam8bit: their losses fall alike,
// and the 8-bit states take a quarter of the memory. `bun examples/train.ts [steps] [curves.svg]`
import { checkpoint, currentDevice, nn, optim } from "bunsandbytes";
import { plot, sparkline } from "./train/plot.ts";
import { batches, score, width } from "./train/task.ts";

const steps = Number(process.argv[2] ?? 150);
using weights = checkpoint.openCheckpoint(`${import.meta.dir}/../test/fixtures/minilm.safetensors`);
const adapted = (name: string) => nn.Lora.init(nn.Linear4bit.load(weights, name), { r: 16, alpha: 32 });

/** Trains a new model on the same batches as any other, and gives the loss of each step. */
function train(Class: typeof optim.Adam8bit): number[] {
  using first = adapted("encoder.layer.0.attention.self.query"); // its weight stays in 4 bits
  using second = adapted("encoder.layer.5.attention.output.dense");
  using norm = nn.LayerNorm.init(width);
  using optimizer = new Class(
    [first, norm, second].flatMap((layer) => layer.parameters()),
    { lr: 1e-3 },
  );
  return Array.from(batches(steps), ({ x, labels }) => {
    using hidden = first.forward(x);
    using normed = norm.forward(hidden);
    using outputs = second.forward(normed);
    const { loss, dy } = score(outputs, labels);
    using dNormed = second.backward(dy, normed);
    using dHidden = norm.backward(dNormed, hidden);
    first.backward(dHidden, x).dispose();
    optimizer.step();
    optimizer.zeroGrad();
    return loss;
  });
}

console.log(`LoRA over two NF4 layers of MiniLM, ${steps} steps on ${currentDevice()}: cross-entropy of 16 classes\n`);
const curves = { "32-bit Adam": train(optim.Adam32bit), Adam8bit: train(optim.Adam8bit) };
for (const [name, losses] of Object.entries(curves))
  console.log(`${name.padEnd(11)}  ${sparkline(losses)}  ${losses[0]!.toFixed(3)} → ${losses.at(-1)!.toFixed(3)}`);
if (process.argv[3]) await Bun.write(process.argv[3], plot(curves, `${steps} steps`));
