// What the server's tests ask with: a request and its answer as text, a chat's body, a stream's events.
import type { Serving } from "../../src/serve/index.ts";

/** POSTs JSON, or what is to be taken for it. */
export async function post(
  server: Serving,
  route: string,
  body: object | string,
  headers: Record<string, string> = {},
): Promise<{ status: number; headers: Headers; text: string }> {
  const response = await fetch(`${server.url}${route}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
  return { status: response.status, headers: response.headers, text: await response.text() };
}

/** A chat with the model `byte`. */
export const chat = (more: object = {}) => ({
  model: "byte",
  messages: [{ role: "user", content: "hi" }],
  max_tokens: 8,
  ...more,
});

/** The data of server-sent events, `[DONE]` as it is. */
export const events = (text: string) =>
  text
    .split("\n\n")
    .filter(Boolean)
    .map((line) => line.replace(/^data: /, ""))
    .map((data) => (data === "[DONE]" ? data : JSON.parse(data)));
