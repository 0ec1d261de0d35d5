// The tests of families: each one's tiny model, held to transformers' logits or hidden states.
import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Device, Model } from "../../src/index.ts";
import { families } from "../../src/model/families.ts";
import { testDevices } from "../cases.ts";
import { difference, expectedOf, rejection, tiny, tinyNames } from "./fixtures.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-families-"));
afterAll(() => rmSync(scratch, { recursive: true }));

/** Of the largest logit: what sums in another order may differ by. */
const tolerance = 1e-5;

const modelType = (name: string): string =>
  JSON.parse(readFileSync(join(tiny(name), "config.json"), "utf8")).model_type;

const kindOf = (name: string) => families[modelType(name)]!.kind;
const decoders = tinyNames.filter((name) => kindOf(name) === "decoder");
const encoders = tinyNames.filter((name) => kindOf(name) === "encoder");

const load = (name: string, device: Device) => Model.load(tiny(name), { device, precision: "highest" });

test("every family that is known has a tiny model", () => {
  const same: Record<string, string> = { gemma3: "gemma3_text" }; // of the model that sees too, the part that reads
  expect(new Set(tinyNames.map(modelType))).toEqual(new Set(Object.keys(families).map((name) => same[name] ?? name)));
});

describe.each(testDevices)("on %s", (_, device) => {
  describe.each(decoders)("%s", (name) => {
    test("logits of whole texts are transformers'", async () => {
      using model = await load(name, device);
      const { ids, values, columns, largest } = expectedOf(name);
      for (const [i, text] of ids.entries()) {
        using session = model.session({ cacheDtype: "float32" });
        const want = values.subarray(i * text.length * columns, (i + 1) * text.length * columns);
        expect(difference(session.forward(text, { logits: "all" }), want)).toBeLessThan(tolerance * largest);
      }
    });

    test("token by token, and with others in the same step, they are the same", async () => {
      if (name === "phi3-long") return; // other frequencies for longer texts: see the next test
      using model = await load(name, device);
      const { ids, values, columns, largest } = expectedOf(name);
      const sessions = model.sessions(ids.length, { cacheDtype: "float32" });
      const { decoder, shared } = sessions[0]!;
      // One is three tokens behind the other: their rows stand at different positions of one step.
      const texts = ids.map((text, i) => text.slice(0, text.length - 3 * i));
      const cut = texts.map((text) => [text.slice(0, 7), ...text.slice(7).map((id) => [id])]);
      for (let step = 0; step < Math.max(...cut.map(({ length }) => length)); step++) {
        const live = sessions.filter((_, i) => cut[i]![step]);
        const parts = live.map((session) => cut[sessions.indexOf(session)]![step]!);
        using logits = decoder.forward(
          live.map((session, i) => session.segment(parts[i]!, "last")),
          shared.cache,
        )!;
        const rows = logits.read();
        for (const [i, session] of live.entries()) {
          session.advance(parts[i]!);
          const at = (sessions.indexOf(session) * ids[0]!.length + session.length - 1) * columns;
          const got = rows.subarray(i * columns, (i + 1) * columns);
          expect(difference(got, values.subarray(at, at + columns))).toBeLessThan(tolerance * largest);
        }
      }
      for (const session of sessions) session.dispose();
    });
  });

  test("narrower caches cost what docs/models.md says, and no more", async () => {
    for (const name of decoders) {
      using model = await load(name, device);
      const { ids, values, columns, largest } = expectedOf(name);
      const want = values.subarray(0, ids[0]!.length * columns);
      for (const [cacheDtype, most] of [["float16", 0.01] as const, ["int8", 0.06] as const]) {
        using session = model.session({ cacheDtype });
        const off = difference(session.forward(ids[0]!, { logits: "all" }), want) / largest;
        expect(off).toBeLessThan(most);
        expect(off).toBeGreaterThan(tolerance); // it is that cache
      }
    }
  });

  test("longrope: short and long texts in one step have their own angles", async () => {
    using model = await load("phi3-long", device);
    const { ids } = expectedOf("phi3-long");
    const [a, b] = model.sessions(2, { cacheDtype: "float32" });
    const segments = [b!.segment(ids[0]!, "last"), a!.segment(ids[1]!.slice(0, 5), "all")];
    using together = b!.decoder.forward(segments, b!.shared.cache)!;
    using alone = model.session({ cacheDtype: "float32" });
    const long = alone.forward(ids[0]!);
    alone.rewind(0);
    const short = alone.forward(ids[1]!.slice(0, 5), { logits: "all" });
    expect(difference(together.read(), [...long, ...short])).toBeLessThan(1e-5);
    for (const session of [a, b]) session!.dispose();
  });

  describe.each(encoders)("%s", (name) => {
    test("hidden states are transformers', of texts together and alone", async () => {
      using model = await load(name, device);
      const { ids, values, columns, largest } = expectedOf(name);
      const texts = [...ids, ids[1]!.slice(0, 5)]; // of another length, in one batch
      const pooling = { mode: "cls", normalize: false } as const;
      const vectors = await model.embed(texts, { pooling });
      for (const [i, text] of ids.entries()) {
        const first = values.subarray(i * text.length * columns, (i * text.length + 1) * columns);
        expect(difference(vectors[i]!, first)).toBeLessThan(tolerance * largest);
        const whole = values.subarray(i * text.length * columns, (i + 1) * text.length * columns);
        const [mean] = await model.embed([text], { pooling: { mode: "mean", normalize: false } });
        const want = Array.from({ length: columns }, (_, c) => {
          let sum = 0;
          for (let row = 0; row < text.length; row++) sum += whole[row * columns + c]!;
          return sum / text.length;
        });
        expect(difference(mean!, want)).toBeLessThan(tolerance * largest);
      }
      const [alone] = await model.embed([texts.at(-1)!], { pooling });
      expect(difference(vectors.at(-1)!, alone!)).toBeLessThan(tolerance * largest);
    });
  });
});

test.each(["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"])(
  "Granite's %s is what it says, 1 and 2 as all between",
  async (name) => {
    const { ids } = expectedOf("granite");
    const logits = async (value: number) => {
      using model = await Model.load(withConfig("granite", { [name]: value }), { device: "cpu", precision: "highest" });
      using session = model.session({ cacheDtype: "float32" });
      return session.forward(ids[0]!, { logits: "all" });
    };
    const [one, close, two, closeToTwo] = await Promise.all([1, 1.0005, 2, 2.0005].map(logits));
    const apart = difference(one!, two!);
    expect(difference(one!, close!)).toBeLessThan(0.02 * apart);
    expect(difference(two!, closeToTwo!)).toBeLessThan(0.02 * apart);
    expect(difference(one!, close!)).toBeGreaterThan(0);
  },
);

/** A copy of a tiny model with another config. */
function withConfig(name: string, change: Record<string, unknown>): string {
  const folder = mkdtempSync(join(scratch, `${name}-`));
  cpSync(tiny(name), folder, { recursive: true });
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, ...change }));
  return folder;
}

describe("what is not known is refused by name", () => {
  test.each([
    [{ model_type: "mamba" }, 'model_type is "mamba", expected a family that is known'],
    [{ model_type: ["llama"] }, 'model_type is ["llama"], expected text'],
    [{ model_type: null }, "model_type is missing"],
    [{ hidden_act: "relu" }, 'hidden_act is "relu"'],
    [{ rope_parameters: { rope_type: "spiral", rope_theta: 1 } }, 'rope_type is "spiral"'],
    [{ layer_types: ["full_attention", "linear_attention"] }, 'layer_types[1] is "linear_attention"'],
    [{ hidden_size: "32" }, 'hidden_size is "32", expected a number'],
    [{ num_attention_heads: 0 }, "num_attention_heads is 0"],
    [{ num_key_value_heads: 3 }, "num_key_value_heads is 3"],
    [{ num_hidden_layers: 1e9 }, "num_hidden_layers is 1000000000"],
    [{ num_hidden_layers: 3 }, "model.layers.2"],
    [{ vocab_size: 100 }, "has 64 rows, expected the 100"],
    [{ tie_word_embeddings: false }, "lm_head"],
    [{ eos_token_id: "2" }, 'eos_token_id is "2"'],
  ])("%j", async (change, sentence) => {
    const error = await rejection(Model.load(withConfig("llama", change)));
    expect(error.message).toContain(sentence);
  });

  test("old spellings of config.json mean the same", async () => {
    const { ids, values, columns, largest } = expectedOf("llama3");
    const scaling = { type: undefined, rope_type: "llama3", factor: 4, low_freq_factor: 1, high_freq_factor: 4 };
    const rope_scaling = { ...scaling, original_max_position_embeddings: 16 };
    const folder = withConfig("llama3", { rope_parameters: null, rope_theta: 10000, rope_scaling });
    using model = await Model.load(folder, { precision: "highest" });
    using session = model.session({ cacheDtype: "float32" });
    const want = values.subarray(0, ids[0]!.length * columns);
    expect(difference(session.forward(ids[0]!, { logits: "all" }), want)).toBeLessThan(tolerance * largest);
  });
});
