// Trains a LoRA over NF4 weights with Adam8bit and with 32-bit Adam, and shows that their losses fall alike.
//
//     bun examples/train.ts [steps]
//
// The model is two linear layers of all-MiniLM-L6-v2 with a LayerNorm between them; the weights stay in 4 bits, and only the
// adapters are trained. The task: vectors of 384 numbers scatter around 48 centres, three to a class, so that no class has a
// direction of its own; the first 16 outputs are to say which class it is.
import { tmpdir } from "node:os";
import { checkpoint, currentDevice, nn, optim, Tensor } from "../src/index.ts";

const steps = Number(process.argv[2] ?? 150);
const [width, classes, batch, r] = [384, 16, 128, 16];
const fixture = `${import.meta.dir}/../test/fixtures/minilm.safetensors`;

// ── The task ────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Random numbers that are the same in every run: a multiplicative generator (Lehmer 1949), and Box and Muller's normal. */
function generator(seed: number) {
  let state = seed;
  const uniform = () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}

const { normal } = generator(1);
const centres = Array.from({ length: 3 * classes }, () => Float32Array.from({ length: width }, normal));

/** `count` vectors, each a centre and twice as much noise, and the class of each. */
function sample(count: number, { uniform, normal }: ReturnType<typeof generator>) {
  const which = Array.from({ length: count }, () => Math.floor(uniform() * centres.length));
  const values = Float32Array.from({ length: count * width }, (_, i) => {
    return centres[which[Math.floor(i / width)]!]![i % width]! + 2 * normal();
  });
  return { x: Tensor.from(values, [count, width]), labels: which.map((centre) => centre % classes) };
}

/** Cross-entropy of the first outputs, its gradient, and how many were right. */
function score(outputs: Tensor<"float32">, labels: number[]) {
  const y = outputs.read();
  const gradient = new Float32Array(y.length);
  let [loss, right] = [0, 0];
  for (const [row, label] of labels.entries()) {
    const logits = y.subarray(row * width, row * width + classes);
    const most = Math.max(...logits);
    const sum = logits.reduce((total, logit) => total + Math.exp(logit - most), 0);
    loss += (most + Math.log(sum) - logits[label]!) / labels.length;
    if (logits[label] === most) right++;
    for (const [i, logit] of logits.entries())
      gradient[row * width + i] = (Math.exp(logit - most) / sum - Number(i === label)) / labels.length;
  }
  return { loss, gradient, accuracy: right / labels.length };
}

// ── The model ───────────────────────────────────────────────────────────────────────────────────────────────────────

/** Two frozen NF4 layers with an adapter each, and a LayerNorm between them. */
function model() {
  using weights = checkpoint.openCheckpoint(fixture);
  const adapt = (name: string, seed: number) =>
    nn.Lora.init(nn.Linear4bit.load(weights, name), { r, alpha: 2 * r, seed });
  const first = adapt("encoder.layer.0.attention.self.query", 1);
  const second = adapt("encoder.layer.5.attention.output.dense", 2);
  const norm = nn.LayerNorm.init(width);
  for (const parameter of norm.parameters()) parameter.requiresGrad = false;

  return {
    layers: [first, second],
    parameters: [...first.parameters(), ...second.parameters()],
    /** The outputs, and what the backward pass needs. */
    forward(x: Tensor<"float32">) {
      const hidden = first.forward(x);
      const normed = norm.forward(hidden);
      return { hidden, normed, outputs: second.forward(normed) };
    },
    backward(
      dy: Tensor<"float32">,
      x: Tensor<"float32">,
      { hidden, normed }: Record<"hidden" | "normed", Tensor<"float32">>,
    ) {
      using dNormed = second.backward(dy, normed);
      using dHidden = norm.backward(dNormed, hidden);
      first.backward(dHidden, x).dispose();
    },
    [Symbol.dispose]() {
      for (const layer of [first, second, norm]) layer.dispose();
    },
  };
}

/** Trains a new model on the same batches as any other, and gives the loss of each step. */
function train(make: (parameters: ReturnType<typeof model>["parameters"]) => optim.Optimizer) {
  using network = model();
  using optimizer = make(network.parameters);
  const heldOut = sample(1024, generator(2));
  const test = () => score(network.forward(heldOut.x).outputs, heldOut.labels).accuracy;

  const before = test();
  const random = generator(3);
  const losses: number[] = [];
  for (let step = 0; step < steps; step++) {
    const { x, labels } = sample(batch, random);
    using input = x;
    const passed = network.forward(input);
    const { loss, gradient } = score(passed.outputs, labels);
    using dy = Tensor.from(gradient, [batch, width]);
    network.backward(dy, input, passed);
    optimizer.step();
    optimizer.zeroGrad();
    losses.push(loss);
    for (const tensor of Object.values(passed)) tensor.dispose();
  }
  const states = Object.values(optimizer.stateDict().state);
  const tensors = states.flatMap((state) => Object.values(state.__bnb_optimizer_quant_state__!) as Tensor[]);
  const stateBytes = tensors.reduce((sum, tensor) => sum + (tensor.size === 256 ? 0 : tensor.byteLength), 0); // less the maps
  return { losses, before, after: test(), stateBytes };
}

// ── What came out ───────────────────────────────────────────────────────────────────────────────────────────────────

/** A curve in one line of text, from 0 to the most. */
function sparkline(values: number[], columns = 60): string {
  const most = Math.max(...values);
  return Array.from({ length: columns }, (_, column) => {
    const value = values[Math.floor((column / columns) * values.length)]!;
    return "▁▂▃▄▅▆▇█"[Math.min(7, Math.floor((8 * value) / most))];
  }).join("");
}

/** Curves over the steps as an SVG picture; the first is drawn broad, so that one on top of it does not hide it. */
function plot(curves: { name: string; losses: number[]; style: string }[]): string {
  const most = Math.max(...curves.flatMap(({ losses }) => losses));
  const at = (loss: number, step: number) => `${50 + (500 * step) / steps},${(310 - (290 * loss) / most).toFixed(1)}`;
  const marks = Array.from({ length: Math.floor(most) + 1 }, (_, loss) => {
    const y = 310 - (290 * loss) / most;
    return `<path d="M50,${y}H550" stroke="#ddd"/><text x="42" y="${y + 4}" text-anchor="end">${loss}</text>`;
  });
  const lines = curves.map(({ name, losses, style }, i) => {
    const key = `<path d="M380,${30 + 20 * i}h30" ${style}/><text x="418" y="${34 + 20 * i}">${name}</text>`;
    return `<polyline points="${losses.map(at).join(" ")}" fill="none" ${style}/>${key}`;
  });
  const axis = `<text x="300" y="335" text-anchor="middle">${steps} steps; cross-entropy of ${classes} classes</text>`;
  const font = 'font-family="sans-serif" font-size="12"';
  return `<svg xmlns="http://www.w3.org/2000/svg" width="570" height="345" ${font}><path d="M0,0H570V345H0z" fill="#fff"/>${marks.join("")}${lines.join("")}${axis}</svg>\n`;
}

const started = performance.now();
const byte = train((parameters) => new optim.Adam8bit(parameters, { lr: 1e-3 }));
const word = train((parameters) => new optim.Adam32bit(parameters, { lr: 1e-3 }));
const seconds = (performance.now() - started) / 1000;

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
const row = (name: string, run: typeof byte) =>
  `${name}  ${sparkline(run.losses)}  ${run.losses[0]!.toFixed(3)} → ${run.losses.at(-1)!.toFixed(3)}`;
console.log(`LoRA (r ${r}) over two NF4 layers of MiniLM, ${steps} steps of ${batch} on ${currentDevice()}:\n`);
console.log(row("Adam8bit ", byte));
console.log(row("Adam32bit", word));

const apart = byte.losses.map((loss, step) => Math.abs(loss - word.losses[step]!));
console.log(`\nThe curves are at most ${Math.max(...apart).toFixed(4)} apart.`);
console.log(`Right, of 1024 vectors that were not trained on: ${percent(byte.before)} before, after`);
console.log(`  ${percent(byte.after)} with Adam8bit, whose states take ${(byte.stateBytes / 1024).toFixed(0)} KB;`);
console.log(`  ${percent(word.after)} with Adam32bit, whose states take ${(word.stateBytes / 1024).toFixed(0)} KB.`);

const path = `${tmpdir()}/bunsandbytes-train.svg`;
await Bun.write(
  path,
  plot([
    { name: "32-bit Adam", losses: word.losses, style: 'stroke="#9cf" stroke-width="6"' },
    { name: "Adam8bit", losses: byte.losses, style: 'stroke="#024" stroke-width="1.5"' },
  ]),
);
console.log(`\nBoth runs took ${seconds.toFixed(1)} s. The curves: ${path}`);
