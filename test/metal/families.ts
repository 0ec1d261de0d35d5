// Owns the product's kernel families as the host gives them to Metal: the shared headers, then one family's text.

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const folder = join(import.meta.dir, "../../metal");
const embedded = readFileSync(join(import.meta.dir, "../../csrc/gpu/kernels.c"), "utf8");
const headers = [...embedded.matchAll(/^#embed <(\w+\.h)>/gm)].map(([, file]) => file!);

/** The stems of metal/*.metal. */
export const families = readdirSync(folder)
  .filter((file) => file.endsWith(".metal"))
  .map((file) => file.slice(0, -".metal".length));

/** A family's whole source; places in it are named by `#line`. */
export function familySource(stem: string): string {
  const parts = [...headers, `${stem}.metal`].map(
    (file) => `#line 1 "${file}"\n${readFileSync(join(folder, file), "utf8")}`,
  );
  return `#include <metal_stdlib>\nusing namespace metal;\n${parts.join("\n")}`;
}
