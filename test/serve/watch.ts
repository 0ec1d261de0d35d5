// A process that asks a server's /health again and again, and prints how long each answer took without the time for
// which the two processes waited for a processor: that is the machine's matter, where others use it too.
import { existsSync, readFileSync } from "node:fs";

const [url = "", pid = "", seconds = "1"] = process.argv.slice(2);

/** Milliseconds for which both main threads were ready to run and did not; 0 where the system does not tell. */
function waited(): number {
  const of = (path: string) => (existsSync(path) ? Number(readFileSync(path, "utf8").split(" ")[1]) / 1e6 : 0);
  return of(`/proc/${pid}/task/${pid}/schedstat`) + of(`/proc/self/task/${process.pid}/schedstat`);
}

const times: { took: number; own: number }[] = [];
for (const end = performance.now() + 1000 * Number(seconds); performance.now() < end; await Bun.sleep(100)) {
  const [before, started] = [waited(), performance.now()];
  await (await fetch(`${url}/health`)).json();
  const took = performance.now() - started;
  times.push({ took, own: Math.max(0, took - (waited() - before)) });
}
console.log(JSON.stringify(times));
