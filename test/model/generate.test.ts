// Texts that models write: streaming, sampling, stops, sessions, conversations, guesses; with the tiny llama.
import { describe, expect, test } from "bun:test";
import { type Message, Model, type Session } from "../../src/index.ts";
import { Generation, step } from "../../src/model/generation.ts";
import { logprobsOf, Sampler, type SamplingOptions } from "../../src/model/sample.ts";
import { StopFilter, TextStream } from "../../src/model/stream.ts";
import { testDevices } from "../cases.ts";
import { difference, expectedOf, rejection, tiny } from "./fixtures.ts";

const cpu = () => Model.load(tiny("llama"), { device: "cpu", precision: "highest" });

describe.each(testDevices)("on %s", (_, device) => {
  test("greedy ids are those of the largest logits, in a stream and at once", async () => {
    using model = await Model.load(tiny("llama"), { device, precision: "highest" });
    using session = model.session();
    const ids = [1, 5, 9];
    const want: number[] = [];
    for (let fed = ids; want.length < 8; fed = [want.at(-1)!]) {
      const logits = session.forward(fed);
      want.push(logits.indexOf(Math.max(...logits)));
    }
    const generation = model.generate(ids, { maxTokens: 8, ignoreEos: true });
    let streamed = "";
    for await (const text of generation) streamed += text;
    expect(generation.ids).toEqual(want);
    expect(streamed).toBe(model.tokenizer.decode([...ids, ...want]).slice(model.tokenizer.decode(ids).length));
    expect(generation.finishReason).toBe("length");
    expect(generation.usage).toEqual({ promptTokens: 3, cachedTokens: 0, completionTokens: 8 });
    const batch = await model.generateBatch([ids, [1, 7], ids], { maxTokens: 8, ignoreEos: true });
    expect(batch[0]!.ids).toEqual(want);
    expect(batch[2]!.ids).toEqual(want);
    expect(batch[1]!.ids).toEqual((await model.generateBatch([[1, 7]], { maxTokens: 8, ignoreEos: true }))[0]!.ids);
  });

  test("guessing ahead changes nothing, greedy or by chance", async () => {
    using model = await Model.load(tiny("llama"), { device, precision: "highest" });
    const prompt = [1, 5, 6, 7, 8, 5, 6, 7, 8, 5, 6];
    for (const options of [{ temperature: 0 }, { temperature: 0.7, seed: 5 }, { temperature: 0.9, topK: 3, seed: 6 }]) {
      const plain = model.generate(prompt, { ...options, maxTokens: 20, ignoreEos: true });
      const guessed = model.generate(prompt, { ...options, maxTokens: 20, ignoreEos: true, promptLookup: 6 });
      expect(await guessed.text()).toBe(await plain.text());
      expect(guessed.ids).toEqual(plain.ids);
    }
  });

  test.each(["float32", "float16", "int8"] as const)(
    "a session in %s: rewound, saved, restored",
    async (cacheDtype) => {
      using model = await Model.load(tiny("qwen3"), { device, precision: "highest" });
      const { ids } = expectedOf("qwen3");
      const text = ids[0]!;
      using session = model.session({ cacheDtype });
      const whole = session.forward(text);
      session.rewind(6);
      expect(session.tokens).toEqual(text.slice(0, 6));
      expect(difference(session.forward(text.slice(6)), whole)).toBeLessThan(1e-4);
      const saved = session.save();
      using other = model.session({ cacheDtype });
      other.restore(saved);
      expect(other.tokens).toEqual(text);
      session.rewind(text.length - 1);
      other.rewindTo([...text.slice(0, -1), 63]);
      expect(difference(other.forward([text.at(-1)!]), session.forward([text.at(-1)!]))).toBe(0);
    },
  );
});

test("a step takes in as many tokens as it may, shared by the prompts, and none waits for another", async () => {
  using model = await cpu();
  for (let tokens = 4; tokens <= 40; tokens++) {
    const sessions = model.sessions(4, { capacity: 64 });
    const prompts = [1, 2, 20, 20].map((length) => Array.from({ length }, (_, i) => (i % 60) + 1));
    const texts = prompts.map((prompt, i) => new Generation(sessions[i]!, prompt, { maxTokens: 4, ignoreEos: true }));
    await step(texts, tokens);
    const taken = sessions.map(({ length }) => length);
    expect(taken.reduce((sum, length) => sum + length)).toBeLessThanOrEqual(tokens);
    const share = Math.max(1, Math.floor((tokens - 1) / 3)); // one text reads a token, and three share the rest
    expect(taken).toEqual([1, Math.min(2, share), Math.min(20, share), Math.min(20, share)]);
    for (const session of sessions) session.dispose();
  }
});

describe("a text ends", () => {
  test("at a stop string, of which nothing shows, and what only begins like one does", async () => {
    using model = await cpu();
    const options = { maxTokens: 30, ignoreEos: true };
    const whole = await model.generate("Hello", options).text();
    const stop = whole.slice(3, 6);
    const generation = model.generate("Hello", { ...options, stop: ["never", stop] });
    let text = "";
    for await (const piece of generation) {
      text += piece;
      expect(whole.slice(0, whole.indexOf(stop))).toStartWith(text);
    }
    expect(text).toBe(whole.slice(0, whole.indexOf(stop)));
    expect(generation.finishReason).toBe("stop");
  });

  test("at a token that ends texts", async () => {
    using model = await cpu();
    const ids = (await model.generateBatch(["a"], { maxTokens: 9, ignoreEos: true }))[0]!.ids;
    const eos = model.architecture.tokens.eos as number[];
    eos.splice(0, eos.length, ids[4]!);
    const generation = model.generate("a", { maxTokens: 9 });
    await generation.text();
    expect([generation.finishReason, generation.ids]).toEqual(["stop", ids.slice(0, ids.indexOf(ids[4]!) + 1)]);
  });

  test("where it is broken off, and the session goes on from there", async () => {
    using model = await cpu();
    using session = model.session();
    const generation = model.generate("Hello", { maxTokens: 20, ignoreEos: true, session });
    for await (const _ of generation) break;
    expect(generation.finishReason).toBe("abort");
    expect(session.length).toBeGreaterThanOrEqual(generation.usage.promptTokens);
    const again = model.generate("Hello", { maxTokens: 20, ignoreEos: true, session });
    const fresh = model.generate("Hello", { maxTokens: 20, ignoreEos: true });
    expect(await again.text()).toBe(await fresh.text());
    expect(again.usage.cachedTokens).toBe(again.usage.promptTokens - 1);
  });

  test("with a signal's reason", async () => {
    using model = await cpu();
    const controller = new AbortController();
    const generation = model.generate("Hello", { maxTokens: 50, ignoreEos: true, signal: controller.signal });
    const reading = (async () => {
      for await (const _ of generation) controller.abort(new Error("enough"));
    })();
    expect((await rejection(reading)).message).toBe("enough");
    expect(generation.finishReason).toBe("abort");
    expect((await rejection(Model.load(tiny("llama"), { signal: controller.signal }))).message).toBe("enough");
  });

  test("where it no longer fits, and a prompt that does not says by how much", async () => {
    using model = await cpu();
    const generation = model.generate([1, 5, 6], { maxTokens: 50, ignoreEos: true, capacity: 10 });
    await generation.text();
    expect([generation.finishReason, generation.ids.length]).toEqual(["length", 7]);
    const long = model.generate(Array(64).fill(5), {}).text();
    expect((await rejection(long)).message).toContain("64 tokens, 1 more than leave room");
    using session = model.session({ capacity: 8 });
    session.forward([1, 2, 3, 4, 5]);
    expect(() => session.forward([1, 2, 3, 4])).toThrow("4 tokens after 5 are 1 more than the 8 that fit");
  });
});

describe("sampling", () => {
  const logits = Float32Array.from([1, 3, 2, 0, -1, 2.5]);
  const counts = (options: ConstructorParameters<typeof Sampler>[0], ids: number[] = [], draws = 20000) => {
    const sampler = new Sampler({ seed: 1, ...options }, "test");
    const count = new Array<number>(logits.length).fill(0);
    for (let i = 0; i < draws; i++) count[sampler.choose(logits.slice(), ids)]!++;
    return count.map((n) => n / draws);
  };
  const softmax = (values: number[]) => {
    const weights = values.map(Math.exp);
    return weights.map((weight) => weight / weights.reduce((sum, w) => sum + w, 0));
  };
  const close = (got: number[], want: number[]) => expect(difference(got, want)).toBeLessThan(0.015);

  test("has the chances of the softmax, under a temperature", () => {
    close(counts({ temperature: 1 }), softmax([...logits]));
    close(counts({ temperature: 0.5 }), softmax([...logits].map((v) => 2 * v)));
  });

  test("cuts by count, by sum of chances, and by share of the largest", () => {
    const of = (kept: number[]) => softmax([...logits].map((v, i) => (kept.includes(i) ? v : -Infinity)));
    close(counts({ temperature: 1, topK: 2 }), of([1, 5]));
    close(counts({ temperature: 1, topP: 0.7 }), of([1, 5])); // 0.46 + 0.28
    close(counts({ temperature: 1, topP: 0.75 }), of([1, 5, 2]));
    close(counts({ temperature: 1, minP: 0.3 }), of([1, 5, 2])); // e^-0.5, e^-1
    close(counts({ temperature: 1, topK: 3, topP: 0.01 }), of([1]));
  });

  test("needs as many of the largest logits as can be chosen", () => {
    const largest = (options: SamplingOptions) => new Sampler(options, "test").largest;
    expect([{}, { topK: 7 }, { temperature: 1, topK: 7 }, { temperature: 1, topK: 1024 }].map(largest)).toEqual([
      ...[1, 1, 7, 1024],
    ]);
    const all = [{ temperature: 1 }, { temperature: 1, topK: 1025 }, { repetitionPenalty: 2 }];
    expect([...all, { logitsProcessor: () => {} }].map(largest)).toEqual(Array(4).fill(undefined));
  });

  test("penalises what stands there: as transformers, first of all", () => {
    close(counts({ temperature: 1, repetitionPenalty: 2 }, [1, 4, 4]), softmax([1, 1.5, 2, 0, -2, 2.5]));
    expect(new Sampler({ repetitionPenalty: 2 }, "test").choose(logits.slice(), [1])).toBe(5);
  });

  test("the same seed gives the same, by all logits and by the largest alone", () => {
    const [a, b, c] = [1, 1, 2].map((seed) => new Sampler({ temperature: 1, topK: 3, seed }, "test"));
    const largest = { indices: Int32Array.of(1, 5, 2), values: Float32Array.of(3, 2.5, 2) };
    const draws = (choose: () => number) => Array.from({ length: 50 }, choose);
    const first = draws(() => a!.choose(logits.slice(), []));
    expect(draws(() => b!.chooseOf(largest))).toEqual(first);
    expect(draws(() => c!.chooseOf(largest))).not.toEqual(first);
  });

  test("logprobs are of the softmax, largest first", () => {
    const want = softmax([...logits]).map(Math.log);
    const { chosen, top } = logprobsOf(logits, 4, 3);
    expect(chosen).toBeCloseTo(want[4]!, 6);
    expect(top.map(({ id }) => id)).toEqual([1, 5, 2]);
    for (const { id, logprob } of top) expect(logprob).toBeCloseTo(want[id]!, 6);
  });

  test.each([
    [{ temperature: -1 }, "temperature is -1"],
    [{ topP: 0 }, "topP is 0, expected a number above 0"],
    [{ minP: 2 }, "minP is 2"],
    [{ topK: 1.5 }, "topK is 1.5, expected a whole number"],
    [{ repetitionPenalty: 0 }, "repetitionPenalty is 0"],
    [{ maxTokens: 0 }, "maxTokens is 0"],
  ])("%j is refused", async (options, sentence) => {
    using model = await cpu();
    expect((await rejection(model.generate("a", options).text())).message).toContain(sentence);
  });

  test("a processor of logits has the last word", async () => {
    using model = await cpu();
    const only = (logits: Float32Array) => logits.fill(-Infinity).fill(0, 9, 10);
    const generation = model.generate("a", { maxTokens: 3, temperature: 1, logitsProcessor: only });
    await generation.text();
    expect(generation.ids).toEqual([9, 9, 9]);
  });
});

describe("streams", () => {
  test("characters of several tokens come whole", async () => {
    using model = await cpu();
    const { tokenizer } = model;
    const text = "é 🙂 Hello, é!";
    const stream = new TextStream(tokenizer);
    const pieces = tokenizer.encode(text, { addSpecialTokens: false }).map((id) => stream.push(id));
    expect(pieces.join("") + stream.flush()).toBe(text);
    expect(pieces.filter((piece) => piece.includes("\ufffd"))).toEqual([]);
    expect(pieces).toContain("🙂");
    const cut = new TextStream(tokenizer);
    for (const id of tokenizer.encode("🙂", { addSpecialTokens: false }).slice(0, 2)) expect(cut.push(id)).toBe("");
    expect(cut.flush()).toContain("\ufffd");
  });

  test("stop strings over any cut of the text", () => {
    const text = "one two three";
    for (let size = 1; size < 5; size++) {
      const filter = new StopFilter(["two t", "tho"]);
      let out = "";
      for (let at = 0; at < text.length; at += size) out += filter.push(text.slice(at, at + size));
      expect([out + filter.flush(), filter.met]).toEqual(["one ", "two t"]);
      const none = new StopFilter(["threes"]);
      out = "";
      for (let at = 0; at < text.length; at += size) out += none.push(text.slice(at, at + size));
      expect([out + none.flush(), none.met]).toEqual([text, undefined]);
    }
  });
});

describe("conversations", () => {
  test("a turn reads only what is new, and knows what was said", async () => {
    using model = await cpu();
    using chat = model.chat({ system: "Be" });
    const say = async (text: string) => {
      let answer = "";
      for await (const piece of chat.send(text, { maxTokens: 3, ignoreEos: true })) answer += piece;
      return answer;
    };
    const answer = await say("hi");
    expect(chat.messages).toEqual([
      { role: "system", content: "Be" },
      { role: "user", content: "hi" },
      { role: "assistant", content: answer },
    ]);
    const { promptTokens } = chat.usage;
    await say("go");
    expect(chat.usage.cachedTokens).toBeGreaterThanOrEqual(promptTokens);
    chat.undo();
    expect(chat.messages.length).toBe(3);
    const conversation: Message[] = [...chat.messages, { role: "user", content: "go" }];
    const fresh = model.generate(model.tokenizer.applyChatTemplate(conversation), { maxTokens: 3, ignoreEos: true });
    expect(await say("go")).toBe(await fresh.text());
  });

  test("one that outgrows its session is refused, or loses its oldest turns", async () => {
    using model = await cpu();
    const send = async (overflow: "error" | "dropOldest") => {
      using chat = model.chat({ system: "Be", overflow, capacity: 60 });
      for (const text of ["aaaa", "bbbb", "cc"])
        for await (const _ of chat.send(text, { maxTokens: 2, ignoreEos: true }));
      return chat.messages.map(({ role, content }) => (role === "assistant" ? "…" : content));
    };
    expect((await rejection(send("error"))).message).toContain("shorten it");
    const kept = await send("dropOldest");
    expect(kept[0]).toBe("Be");
    expect(kept).not.toContain("aaaa");
    expect(kept.slice(-2)).toEqual(["cc", "…"]);
  });

  test("two answers at once are refused, and a model without a template says so", async () => {
    using model = await cpu();
    using chat = model.chat();
    const first = chat.send("a", { maxTokens: 30, ignoreEos: true });
    await first.next();
    expect((await rejection(chat.send("b").next())).message).toContain("another answer is under way");
    await first.return();
    using bare = await Model.load(tiny("qwen2"));
    using talk = bare.chat();
    expect((await rejection(talk.send("a").next())).message).toContain("has no tokenizer.json");
  });
});

describe("what is wrong is refused, with a sentence", () => {
  test("sessions", async () => {
    using model = await cpu();
    using session = model.session();
    const refused = (act: (session: Session) => unknown) => {
      try {
        act(session);
      } catch (error) {
        return (error as Error).message;
      }
      return "nothing was thrown";
    };
    expect(refused((s) => s.forward([]))).toContain("ids is empty");
    expect(refused((s) => s.forward([64]))).toContain("ids[0] is 64, expected an id of the vocabulary, 0 to 63");
    expect(refused((s) => s.forward([1.5]))).toContain("ids[0] is 1.5");
    for (const length of [1, -1, 0.5, Number.NaN])
      expect(refused((s) => s.rewind(length))).toContain(`length is ${length}, expected 0 to the 0`);
    expect(refused(() => model.session({ capacity: 65 }))).toContain("capacity is 65, expected 1 to the 64");
    session.forward([1, 2]);
    const saved = session.save();
    expect(refused((s) => s.restore(saved.subarray(0, 20)))).toContain("cut short");
    expect(refused((s) => s.restore(new Uint8Array(4)))).toContain("do not begin with BNBS");
    expect(refused((s) => s.restore(saved.subarray(0, -1)))).toContain("bytes follow, expected");
    using int8 = model.session({ cacheDtype: "int8" });
    int8.forward([1]);
    expect(refused((s) => s.restore(int8.save()))).toContain('dtype is "int8", expected float16');
    session.dispose();
    expect(refused((s) => s.forward([1]))).toContain("used after dispose");
  });

  test("encoders write no text, and decoders embed none", async () => {
    using encoder = await Model.load(tiny("bert"));
    expect(() => encoder.session()).toThrow("which writes no text: use embed()");
    using decoder = await cpu();
    expect((await rejection(decoder.embed([[1]]))).message).toContain("which is no encoder: use generate()");
    expect((await rejection(encoder.embed([Array(41).fill(5)]))).message).toContain(
      "41 tokens, 1 more than the model reads",
    );
    expect((await encoder.embed([Array(41).fill(5)], { truncate: true }))[0]!.length).toBe(32);
    expect((await rejection(encoder.embed([[64]]))).message).toContain("ids[0] is 64");
  });
});

describe("quantised on load", () => {
  test.each([
    ["nf4", false],
    ["fp4", true],
    ["int8", false],
  ] as const)("%s, double quant %p: close to what it was", async (quantType, doubleQuant) => {
    using model = await Model.load(tiny("llama"), { quantType, doubleQuant, blocksize: 32, precision: "highest" });
    const { ids, values, columns, largest } = expectedOf("llama");
    using session = model.session({ cacheDtype: "float32" });
    const off = difference(session.forward(ids[0]!, { logits: "all" }), values.subarray(0, ids[0]!.length * columns));
    expect(off).toBeGreaterThan(1e-3 * largest); // it was quantised
    expect(off).toBeLessThan((quantType === "int8" ? 0.1 : 0.9) * largest);
  });
});
