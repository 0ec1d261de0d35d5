// A conversation with a model, streamed. Compiled, it is one file that needs no Bun:
//
//     bun build --compile examples/chat.ts --outfile chat
//     ./chat ./SmolLM2-135M-Instruct-nf4
import { Model } from "bunsandbytes";

const path = process.argv[2];
if (!path) throw new Error("usage: chat MODEL");

using model = await Model.load(path);
using chat = model.chat({ system: "Be brief.", overflow: "dropOldest" });

process.stdout.write("> ");
for await (const question of console) {
  for await (const text of chat.send(question, { maxTokens: 512 })) process.stdout.write(text);
  process.stdout.write("\n> ");
}
