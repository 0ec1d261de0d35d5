// What must hold before a release: the tag, package.json, the C header and the changelog name one version. Takes the
// tag, or none for a dry run of what the next tag will meet.
import packageJson from "../package.json" with { type: "json" };
import { root, say, stop } from "./run.ts";

const { version } = packageJson;

/** What stands in the way of releasing under a tag, each as a sentence. */
export async function obstacles(tag: string): Promise<string[]> {
  const header = await Bun.file(`${root}/csrc/bnb.h`).text();
  const changelog = await Bun.file(`${root}/CHANGELOG.md`).text();
  const found = /^#define BNB_VERSION "(.+)"$/m.exec(header)?.[1];
  const heading = new RegExp(`^## ${version.replaceAll(".", "\\.")}(, .+)?$`, "m").exec(changelog)?.[0];
  return [
    tag === `v${version}` ? "" : `The tag is ${tag}, and package.json says ${version}: the tag must be v${version}.`,
    found === version ? "" : `csrc/bnb.h says ${found}, and package.json ${version}.`,
    heading ? "" : `CHANGELOG.md has no "## ${version}".`,
    heading?.includes("unreleased") ? `CHANGELOG.md calls ${version} unreleased: write the day there.` : "",
  ].filter(Boolean);
}

if (import.meta.main) {
  const [, , tag = `v${version}`] = process.argv;
  const found = await obstacles(tag);
  if (found.length) stop(found.join("\n"));
  say(`${tag} can be released.`);
}
