// A process that asks a server's /health again and again, and prints how long each answer took, without the time for
// which the two processes waited for a processor too, and for how long the server's main thread ran meanwhile.
import { existsSync, readFileSync } from "node:fs";

const [url = "", pid = "", seconds = "1"] = process.argv.slice(2);

const server = `/proc/${pid}/task/${pid}/schedstat`;
const self = `/proc/self/task/${process.pid}/schedstat`;

/** Milliseconds for which a thread ran, and was ready to run and did not; 0 where the system does not tell. */
function of(path: string): [ran: number, waited: number] {
  if (!existsSync(path)) return [0, 0];
  const [ran, waited] = readFileSync(path, "utf8").split(" ");
  return [Number(ran) / 1e6, Number(waited) / 1e6];
}
const waited = () => of(server)[1] + of(self)[1];

const times: { took: number; own: number; ran: number }[] = [];
for (const end = performance.now() + 1000 * Number(seconds); performance.now() < end; await Bun.sleep(100)) {
  const [before, ran, started] = [waited(), of(server)[0], performance.now()];
  await (await fetch(`${url}/health`)).json();
  const took = performance.now() - started;
  times.push({ took, own: Math.max(0, took - (waited() - before)), ran: of(server)[0] - ran });
}
console.log(JSON.stringify(times));
