// A model behind OpenAI's protocol, in one file: bun examples/server.ts ./model [port]
// As one file: bun build --compile examples/server.ts --outfile chat-server
import { serve } from "bunsandbytes/serve";

const [path = "./model", port = "8080"] = process.argv.slice(2);
const server = await serve({
  models: [{ name: "model", path, slots: 8, queue: 64 }],
  port: Number(port),
  log: console.error,
});
console.log(`${server.url}: open it to chat, or ask ${server.url}/v1/chat/completions`);

for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => server.stop());
