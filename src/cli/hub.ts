// How commands take an id of the Hugging Face hub in the place of a path.
import { existsSync } from "node:fs";
import { fetchModel, isHubId } from "../checkpoint/hub.ts";
import type { ReportOptions } from "./options.ts";
import { bytes, progress } from "./terminal.ts";

/**
 * The path of a model: what was named, where it exists, else where the hub's model of that id is, fetched where need
 * be.
 */
export async function located(input: string, flags: ReportOptions): Promise<string> {
  if (existsSync(input) || !isHubId(input)) return input;
  const reporter = progress("Fetching", bytes, flags);
  return await fetchModel(input, { onProgress: reporter.update }).finally(reporter.stop);
}
