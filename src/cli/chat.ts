// `bunsandbytes chat`: a conversation in a terminal.
import { createInterface, type Interface } from "node:readline";
import { Command } from "commander";
import { BnbError } from "../error.ts";
import type { Chat } from "../model/chat.ts";
import type { Model } from "../model/model.ts";
import { loadModel, type SamplingFlags, samplingOptions, withSampling } from "./models.ts";
import { line, print, printPiece, styled, warn } from "./print.ts";
import { bytes } from "./terminal.ts";

interface Flags extends SamplingFlags {
  readonly system?: string;
}

const help = `/help    this text
/undo    take back the last question and its answer
/reset   begin anew
/exit    leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one. Arrows bring back what you said.`;

export function chatCommand(): Command {
  const command = new Command("chat")
    .description("Talk with a model in the terminal.")
    .argument("<model>", "a model's directory or .gguf file that has a chat template")
    .option("--system <text>", "what the model is told before the first turn")
    .addHelpText("after", `\nIn the conversation:\n${help.replaceAll(/^/gm, "  ")}`);
  return withSampling(command, 1024).action(run);
}

async function run(path: string, flags: Flags): Promise<void> {
  using model = await loadModel(path, flags);
  if (!model.tokenizer.hasChatTemplate)
    throw new BnbError(`${path} has no chat template: use \`bunsandbytes generate\`.`, "unsupported");
  if (!flags.quiet) print(line`${String(model)}; /help says what can be done`);
  await new Conversation(model, flags).run();
}

/** Questions and answers by turns, until the input ends. */
class Conversation {
  readonly #model: Model;
  readonly #flags: Flags;
  readonly #terminal: Interface;
  #chat: Chat;
  #answering: AbortController | undefined;
  readonly #lines: string[] = [];
  #closed = false;

  constructor(model: Model, flags: Flags) {
    this.#model = model;
    this.#flags = flags;
    this.#chat = this.#begin();
    const { stdin: input, stdout: output } = process;
    this.#terminal = createInterface({ input, output, terminal: input.isTTY === true, prompt: "> " });
    this.#terminal.on("SIGINT", () => this.#interrupt());
    this.#terminal.on("line", (typed) => this.#lines.push(typed));
    this.#terminal.on("close", () => {
      this.#closed = true;
    });
  }

  /** The next line; undefined at the end of the input. Lines that came while an answer was under way wait here. */
  async #next(): Promise<string | undefined> {
    while (this.#lines.length === 0 && !this.#closed) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#terminal.once("line", () => resolve());
      this.#terminal.once("close", () => resolve());
      await promise;
    }
    return this.#lines.shift();
  }

  #prompt(): void {
    if (!this.#closed) this.#terminal.prompt();
  }

  #begin(): Chat {
    return this.#model.chat({ system: this.#flags.system, overflow: "dropOldest" });
  }

  /** Ctrl-C stops the answer, or throws away the line; an empty one it does nothing to but say how to leave. */
  #interrupt(): void {
    if (this.#answering) {
      this.#answering.abort();
      return;
    }
    print("", "(/exit or Ctrl-D leaves)");
    this.#terminal.write(null, { ctrl: true, name: "u" });
    this.#prompt();
  }

  async run(): Promise<void> {
    let said = "";
    for (;;) {
      this.#prompt();
      const typed = await this.#next();
      if (typed === undefined) break;
      if (typed.endsWith("\\")) {
        said += `${typed.slice(0, -1)}\n`;
      } else {
        const whole = said + typed;
        said = "";
        if (whole.trim() === "/exit") break;
        if (whole.trim() !== "") await this.#turn(whole);
      }
    }
    this.#terminal.close();
    this.#chat[Symbol.dispose]();
  }

  async #turn(said: string): Promise<void> {
    switch (said.trim()) {
      case "/help":
        return print(...help.split("\n"));
      case "/undo":
        return this.#chat.undo();
      case "/reset":
        this.#chat[Symbol.dispose]();
        this.#chat = this.#begin();
        return;
    }
    this.#answering = new AbortController();
    const { signal } = this.#answering;
    const started = performance.now();
    try {
      for await (const piece of this.#chat.send(said, samplingOptions(this.#flags))) {
        printPiece(piece);
        if (signal.aborted) break;
      }
    } catch (error) {
      if (!(error instanceof BnbError)) throw error;
      warn(error.message);
    } finally {
      this.#answering = undefined;
    }
    print("");
    if (!this.#flags.quiet) this.#figures(performance.now() - started, signal.aborted);
  }

  #figures(milliseconds: number, stopped: boolean): void {
    const { promptTokens, cachedTokens, completionTokens } = this.#chat.usage;
    const rate = (completionTokens / (milliseconds / 1000)).toFixed(1);
    const memory = bytes(this.#model.devices.reduce((sum, device) => sum + device.counters.bytes, 0));
    const text = `${stopped ? "stopped; " : ""}${completionTokens} tokens, ${rate} a second; read ${promptTokens - cachedTokens} of ${promptTokens}; ${memory}`;
    print(styled("dim", text));
  }
}
