// A peer's worker as a process: asked one thing at a time, and stopped while another one is measured.
import type { Subprocess } from "bun";
import type { Answer, Command } from "./protocol.ts";

/** One that takes longer is too slow even for the largest case, or hangs. */
const answerSecondsDefault = 180;

/** A worker is of no more use: what happened to it. */
export class WorkerEnded extends Error {}

export class PeerProcess<C extends object = Command, A = Answer> implements Disposable {
  static readonly #running = new Set<Disposable>();

  readonly #child: Subprocess<"pipe", "pipe", "inherit">;
  readonly #lines: AsyncIterator<string>;

  constructor(
    readonly name: string,
    command: string[],
    env: Record<string, string>,
    readonly answerSeconds = answerSecondsDefault,
  ) {
    this.#child = Bun.spawn(command, {
      env: { ...process.env, ...env },
      stdin: "pipe",
      stdout: "pipe",
      stderr: process.env.BNB_PEERS_VERBOSE ? "inherit" : "ignore",
    }) as Subprocess<"pipe", "pipe", "inherit">;
    this.#lines = linesOf(this.#child.stdout);
    PeerProcess.#running.add(this);
  }

  /** A stopped process would not notice the end of this one: ends them all, however this one ends. */
  static {
    process.on("exit", () => {
      for (const worker of PeerProcess.#running) worker[Symbol.dispose]();
    });
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => process.exit(1));
  }

  /** Its first answer, which comes unasked. */
  hello(): Promise<A> {
    return this.#answer();
  }

  /**
   * Lets the worker run until it has answered. Between answers it is stopped, so that its idle threads take no time.
   *
   * @throws WorkerEnded if it has ended, or does not answer
   */
  async ask(command: C): Promise<A> {
    this.#child.kill("SIGCONT");
    try {
      this.#child.stdin.write(`${JSON.stringify(command)}\n`);
      await this.#child.stdin.flush();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error; // it has ended: its answer will tell how
    }
    return await this.#answer();
  }

  async #answer(): Promise<A> {
    const timer = Promise.withResolvers<never>();
    const timeout = setTimeout(
      () => timer.reject(new WorkerEnded(`${this.name} did not answer within ${this.answerSeconds} s.`)),
      this.answerSeconds * 1000,
    );
    try {
      const { value, done } = await Promise.race([this.#lines.next(), timer.promise]);
      if (done)
        throw new WorkerEnded(
          `${this.name} ended with status ${await this.#child.exited}: BNB_PEERS_VERBOSE=1 shows why.`,
        );
      this.#child.kill("SIGSTOP");
      return JSON.parse(value);
    } finally {
      clearTimeout(timeout);
    }
  }

  [Symbol.dispose](): void {
    this.#child.kill("SIGKILL");
    PeerProcess.#running.delete(this);
  }
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream() as never) as unknown as AsyncIterable<string>) {
    const lines = (rest + text).split("\n");
    rest = lines.pop()!;
    yield* lines;
  }
}
