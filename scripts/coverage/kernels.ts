// Kernels' lines in the text that they were translated to: its `#line` rows say where each comes from.
import { existsSync, readFileSync } from "node:fs";
import { basename } from "node:path";
import { root } from "../run.ts";
import type { PlaceOf } from "./lcov.ts";

/** By line of a translated text, counted from 1: the kernel's file and line. */
export function linesOfText(text: string): ([name: string, line: number] | undefined)[] {
  const places: ([string, number] | undefined)[] = [undefined];
  let name = "";
  let next = 0;
  for (const row of text.split("\n")) {
    const marker = /^#\s*(?:line\s+)?(\d+)\s+"(.*)"/.exec(row);
    places.push(marker || !name ? undefined : [name, next]);
    if (marker) [name, next] = [marker[2]!, Number(marker[1])];
    else next++;
  }
  return places;
}

const known = new Map<string, ReturnType<typeof linesOfText>>();

function placesOf(path: string): ReturnType<typeof linesOfText> {
  const places = known.get(path) ?? (existsSync(path) ? linesOfText(readFileSync(path, "utf8")) : []);
  known.set(path, places);
  return places;
}

/** Our own kernels' places; headers of the simulator and kernels of its tests do not count. */
export const placeOfKernel: PlaceOf = (path, line) => {
  const place = path.endsWith(".cpp") ? placesOf(path)[line] : undefined;
  if (!place) return undefined;
  const name = basename(place[0]);
  const folder = ["metal", "cuda"].find((one) => existsSync(`${root}/${one}/${name}`));
  return folder === undefined ? undefined : [`${folder}/${name}`, place[1]];
};
