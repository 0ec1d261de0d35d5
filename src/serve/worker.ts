// The Worker in which a served model lives: its first message says what to load.
import { host, plain } from "./host.ts";
import type { FromHost, HostOptions, ToHost } from "./protocol.ts";

declare const self: Worker;

/** Set in the Workers of an executable, which run its program from the start. */
export const workerVariable = "BNB_SERVE_WORKER";

/** Whether this thread is such a Worker. */
export const isOwnWorker = () => !Bun.isMainThread && process.env[workerVariable] === "1";

/** Waits for the message that says what to load, and answers all that follow. */
export function listen(): void {
  const say = (message: FromHost) => self.postMessage(message);
  self.onmessage = async ({ data }: MessageEvent<HostOptions>) => {
    const early: ToHost[] = [];
    self.onmessage = ({ data }: MessageEvent<ToHost>) => early.push(data);
    try {
      const answer = await host(data, say);
      for (const message of early) answer(message);
      self.onmessage = ({ data }: MessageEvent<ToHost>) => answer(data);
    } catch (error) {
      say({ type: "error", id: undefined, error: plain(error) });
    }
  };
}

// As the module of a Worker; imported by the program, it only lends its functions.
if (!Bun.isMainThread && Bun.main === import.meta.path) listen();
