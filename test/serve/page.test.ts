// The page, used as a person does: by keyboard in a headless Chromium, where the machine has one.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Browser, launch, type Page } from "puppeteer-core";
import { type Serving, serve } from "../../src/serve/index.ts";
import { byteModel } from "./model.ts";

const executablePath = ["chromium", "chromium-browser", "google-chrome"].map((name) => Bun.which(name)).find(Boolean);
if (!executablePath)
  console.log("  The page is not tried: there is no Chromium here (Debian's package is called chromium).");

describe.skipIf(!executablePath)("the page", () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-page-"));
  let server: Serving;
  let browser: Browser;
  let page: Page;
  const problems: string[] = [];

  beforeAll(async () => {
    await byteModel(join(folder, "byte"), { eos: [], positions: 8192 }); // an answer that lasts until it is stopped
    server = await serve({ models: [{ name: "byte", path: join(folder, "byte"), slots: 2, queue: 8 }], port: 0 });
    browser = await launch({ executablePath: executablePath!, args: ["--no-sandbox"] });
    page = await browser.newPage();
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error") problems.push(message.text());
    });
    await page.goto(server.url);
  }, 60_000);
  afterAll(async () => {
    await browser.close();
    await server.stop();
    rmSync(folder, { recursive: true });
  });

  const articles = () =>
    page.$$eval("article", (all) => all.map((one) => [one.className, one.querySelector("div")!.textContent]));
  const settled = () =>
    page.waitForFunction('document.getElementById("send").textContent === "Send"', { timeout: 60_000 });
  const press = (label: string) =>
    page.evaluate(`[...document.querySelectorAll("button")].find((one) => one.textContent === "${label}").click()`);
  const written = () => page.waitForFunction('document.querySelector("article.assistant div")?.textContent');

  test("a question by keyboard gets an answer, its speed and the memory", async () => {
    await page.keyboard.type("hi");
    await page.keyboard.press("Enter");
    await written();
    expect(await page.$eval("#send", (button) => button.textContent)).toBe("Stop");
    await page.keyboard.press("Escape");
    await settled();
    expect((await articles()).map(([role]) => role)).toEqual(["user", "assistant"]);
    expect(await page.$eval("#status", (status) => status.textContent)).toContain("Stopped");
  });

  test("history stays, and a turn can be edited, repeated and dropped", async () => {
    await page.reload();
    expect((await articles())[0]).toEqual(["user", "hi"]);
    await press("Repeat");
    await written();
    await press("Stop");
    await settled();
    expect((await articles()).map(([role]) => role)).toEqual(["user", "assistant"]);
    await press("Edit");
    expect(await page.$eval("#input", (input) => (input as unknown as { value: string }).value)).toBe("hi");
    expect(await articles()).toEqual([]);
    await press("New chat");
    expect(await page.evaluate('localStorage.getItem("bunsandbytes.chat")')).toBe("[]");
  });

  test("markdown becomes elements, and HTML stays text", async () => {
    const content =
      "# Title\n\n- **one**\n- `two`\n\n```ts\nlet a = 1;\n```\n<img src=x onerror=alert(1)> [link](https://example.com)";
    const history = JSON.stringify(JSON.stringify([{ role: "assistant", content }]));
    await page.evaluate(`localStorage.setItem("bunsandbytes.chat", ${history})`);
    await page.reload();
    const html = await page.$eval("article.assistant div", (body) => body.innerHTML);
    expect(html).toContain("<h2>Title</h2>");
    expect(html).toContain("<li><strong>one</strong></li><li><code>two</code></li>");
    expect(html).toContain("<pre><code>let a = 1;\n</code></pre>");
    expect(html).toContain("&lt;img src=x onerror=alert(1)&gt;");
    expect(html).toContain('<a href="https://example.com"');
  });

  test("fits a phone, and every control has a name", async () => {
    await page.setViewport({ width: 360, height: 640 });
    const wide = await page.evaluate("document.documentElement.scrollWidth > window.innerWidth");
    expect(wide).toBe(false);
    const nameless = await page.evaluate(
      '[...document.querySelectorAll("button, textarea, select")].filter((one) => !one.textContent.trim() && !one.labels?.length).map((one) => one.outerHTML)',
    );
    expect(nameless).toEqual([]);
    if (process.env.BNB_SCREENSHOT) await page.screenshot({ path: process.env.BNB_SCREENSHOT as `${string}.png` });
  });

  test("nothing went wrong in the browser", () => expect(problems).toEqual([]));
});
