// Owns one quantisation in a process of its own, which a test kills or starves: `bun quantize.ts <input> <output>
// [quantType]`. Prints JSON: the error's message, if there was one, and what lies in the output's parent after it.
import { readdirSync } from "node:fs";
import { dirname } from "node:path";
import { quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { BnbError } from "../../src/error.ts";

const [input, output, quantType = "nf4"] = process.argv.slice(2) as [string, string, string?];
let error: string | undefined;
try {
  // Small shards, so that there are many files to be caught between.
  await quantizeCheckpoint(input, { output, quantType: quantType as "nf4", shardBytes: 30_000, force: true });
} catch (cause) {
  if (!(cause instanceof BnbError || (cause instanceof Error && "syscall" in cause))) throw cause;
  error = cause.message;
}
console.log(JSON.stringify({ error, left: readdirSync(dirname(output)).sort() }));
