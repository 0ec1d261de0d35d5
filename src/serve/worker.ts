// The Worker in which a served model lives: its first message says what to load.
import { host, plain } from "./host.ts";
import type { FromHost, HostOptions, ToHost } from "./protocol.ts";

declare const self: Worker;

const say = (message: FromHost) => self.postMessage(message);

self.onmessage = async ({ data }: MessageEvent<HostOptions>) => {
  try {
    const answer = await host(data, say);
    self.onmessage = ({ data }: MessageEvent<ToHost>) => answer(data);
  } catch (error) {
    say({ type: "error", id: undefined, error: plain(error) });
  }
};
